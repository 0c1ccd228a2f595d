"""Which remedies a configuration asks for."""

from __future__ import annotations

from crossover_comm.config import GossipConfig
from crossover_comm.gossip import Gossip
from crossover_comm.remedies.push_sum import PushSum
from crossover_comm.remedies.remedy import Remedy

__all__ = ["remedies_for"]


def remedies_for(gossip: Gossip, config: GossipConfig) -> tuple[Remedy, ...]:
    """Those that act on one model.

    Raises:
        InvalidArgument: If two of them cannot go together.
    """
    del config
    return (PushSum(gossip),) if gossip.is_push_sum else ()
