"""Which remedies a configuration asks for."""

from __future__ import annotations

from crossover_comm.config import GossipConfig
from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip
from crossover_comm.remedies.decentlam import DecentLaM
from crossover_comm.remedies.momentum_exchange import MomentumExchange
from crossover_comm.remedies.push_sum import PushSum
from crossover_comm.remedies.quasi_global import QuasiGlobalMomentum
from crossover_comm.remedies.remedy import Remedy
from crossover_comm.remedies.slow_momentum import SlowMomentum

__all__ = ["remedies_for"]

_MOMENTA = {
    "quasi-global": QuasiGlobalMomentum,
    "decentlam": DecentLaM,
    "exchanged": MomentumExchange,
}


def remedies_for(gossip: Gossip, config: GossipConfig) -> tuple[Remedy, ...]:
    """Those that act on one model, in the order in which they act.

    Raises:
        InvalidArgument: If two of them cannot go together; `gossip` is removed then.
    """
    if gossip.is_push_sum:
        if config.momentum != "local" or config.is_slow:
            gossip.remove()
            raise InvalidArgument(
                "push-sum (a column-stochastic topology): expected momentum='local' and no "
                f"slow_momentum, got momentum={config.momentum!r}, slow_momentum="
                f"{config.slow_momentum}: steps of x and parameters x / w are of unlike scale"
            )
        if config.overlap == "fused":
            gossip.remove()
            raise InvalidArgument(
                "push-sum (a column-stochastic topology): expected another overlap than 'fused', "
                "which would scale each segment for the time of its step"
            )
        return (PushSum(gossip),)
    remedies: list[Remedy] = []
    if config.momentum != "local":
        remedies.append(_MOMENTA[config.momentum](gossip))
    if config.is_slow:
        assert config.exact_every is not None
        remedies.append(
            SlowMomentum(gossip, config.slow_momentum, config.slow_lr, config.exact_every)
        )
    return tuple(remedies)
