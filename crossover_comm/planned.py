"""Which of an optimizer's parameters are gossiped, and whether any should be that is not."""

from __future__ import annotations

import weakref
from collections.abc import Set
from dataclasses import dataclass
from operator import is_

import torch
from torch.optim import Optimizer

from crossover_comm.gossip import Gossip

__all__ = ["PlannedParameters", "holds_same"]


def holds_same(groups: list[list[torch.Tensor]], optimizer: Optimizer) -> bool:
    """Whether the parameter groups of `optimizer` are these, object by object."""
    given = [group["params"] for group in optimizer.param_groups]
    return list(map(len, groups)) == list(map(len, given)) and all(
        all(map(is_, own, others)) for own, others in zip(groups, given, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """An optimizer as it was when it was looked through."""

    groups: list[list[torch.Tensor]]
    ours: Set[int]
    others: list[torch.Tensor]
    trainable: list[bool]
    """Whether each of `others` required a gradient."""

    def is_true_of(self, optimizer: Optimizer) -> bool:
        return [p.requires_grad for p in self.others] == self.trainable and holds_same(
            self.groups, optimizer
        )


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
        self._seen = weakref.WeakKeyDictionary[Optimizer, _Seen]()

    def held_by(self, optimizer: Optimizer) -> Set[int]:
        """The ids of the gossiped parameters in it; it may hold no unplanned ones of the model.

        Raises:
            InvalidArgument: Naming a parameter that was added, unfrozen or replaced after wrapping,
                or the optimizer makes replicas equal by itself.
        """
        seen = self._seen.get(optimizer)
        if seen is None or not seen.is_true_of(optimizer):
            seen = self._seen[optimizer] = self._look_through(optimizer)
        return seen.ours

    def _look_through(self, optimizer: Optimizer) -> _Seen:
        groups = [list(group["params"]) for group in optimizer.param_groups]
        held = {id(p): p for group in groups for p in group}
        ours = held.keys() & self._known
        if ours and self._mixes:
            self._refuse_redundancy(optimizer)
        known = ours | self._foreign
        strangers = [p for i, p in held.items() if p.requires_grad and i not in known]
        if strangers:
            self._require_foreign(strangers, bool(ours))
        others = [p for i, p in held.items() if i not in ours]
        return _Seen(groups, ours, others, [p.requires_grad for p in others])

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
