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

__all__ = ["remedies_for"]

_MOMENTA = {
    "quasi-global": QuasiGlobalMomentum,
    "decentlam": DecentLaM,
    "exchange": MomentumExchange,
}


def remedies_for(gossip: Gossip, config: GossipConfig) -> tuple[Remedy, ...]:
    """Those that act on one model, in the order in which they act.

    Raises:
        InvalidArgument: If two of them cannot go together; `gossip` is removed then.
    """
    if gossip.is_push_sum:
        if config.momentum != "local":
            gossip.remove()
            raise InvalidArgument(
                "push-sum (a column-stochastic topology): expected momentum='local', got "
                f"{config.momentum!r}, which takes steps of x for steps of x / w"
            )
        return (PushSum(gossip),)
    if config.momentum == "local":
        return ()
    return (_MOMENTA[config.momentum](gossip),)
