"""Which of an optimizer's parameters are gossiped, and whether any should be that is not."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch.optim import Optimizer

from crossover_comm.gossip import Gossip

__all__ = ["PlannedParameters"]


class PlannedParameters:
    """The parameters that one model had when it was wrapped.

    Args:
        gossip: The model's.
        known: The ids of those that are gossiped.
        mixes: Whether parameters are exchanged, not gradients averaged over all ranks.
    """

    def __init__(self, gossip: Gossip, known: Set[int], *, mixes: bool) -> None:
        self._gossip = gossip
        self._known = known
        self._mixes = mixes
        self._foreign: set[int] = set()

    def held_by(self, optimizer: Optimizer) -> set[int]:
        """The ids of the gossiped parameters in it; it may hold no unplanned ones of the model.

        Raises:
            InvalidArgument: Naming a parameter that was added, unfrozen or replaced after wrapping,
                or the optimizer makes replicas equal by itself.
        """
        held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
        ours = held.keys() & self._known
        if ours and self._mixes:
            self._refuse_redundancy(optimizer)
        known = ours | self._foreign
        strangers = [p for i, p in held.items() if p.requires_grad and i not in known]
        if strangers:
            self._require_foreign(strangers, bool(ours))
        return ours

    def _refuse_redundancy(self, optimizer: Optimizer) -> None:
        """Told by its name: its module exists only where torch has torch.distributed."""
        if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__):
            self._gossip.fail(
                "optimizer: expected one that steps this rank's replica alone, got a "
                "ZeroRedundancyOptimizer, which overwrites gossiped parameters by those of other "
                "ranks; use gossip='allreduce', or the optimizer inside it without it"
            )

    def _require_foreign(self, strangers: list[torch.Tensor], ours: bool) -> None:
        names = {id(p): name for name, p in self._gossip.model.named_parameters()}
        for stranger in strangers:
            name = names.get(id(stranger))
            is_ignored = hasattr(stranger, "_ddp_ignored")
            if name is None or is_ignored or not (ours or self._gossip.has(name)):
                continue
            self._gossip.fail(
                f"parameter '{name}': expected the one that was in the model and trainable when it "
                "was wrapped, got one that was added, unfrozen or put in its place later "
                "(load_state_dict(assign=True), say); wrap the model again"
            )
        self._foreign.update(map(id, strangers))
