"""Mode "fused": a segment is stepped and posted inside the backward that completes its gradients.

A gradient hook fires once everything that reads its parameter through autograd is done, so that the
step may write there. What reads a parameter otherwise is found: autograd compares versions, a
gradient that comes again or a recomputation of what is stepped is an error here.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from operator import is_
from types import FrameType
from typing import NoReturn

import torch
from torch.optim import Optimizer

from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip
from crossover_comm.partial_step import (
    HyperParameters,
    hyper_parameters,
    require_separable,
    step_group,
)
from crossover_comm.planned import holds_same
from crossover_comm.rounds import StepRule

__all__ = ["FusedSteps"]

ONE_STEP = (
    "call optimizer.step() after each backward; accumulate, and go backward through this model for "
    "another's loss, under no_sync(); evaluate under torch.no_grad()"
)


@dataclass(slots=True, eq=False)
class _Bound:
    """An optimizer that may be stepped in parts."""

    optimizer: weakref.ref[Optimizer]
    groups: list[list[torch.Tensor]]
    """Parameters by group, as they were when it was bound."""
    shares: dict[int, list[tuple[int, list[torch.Tensor]]]]
    """By segment: groups and what they hold of it."""
    stepped: list[torch.Tensor] = field(default_factory=list)
    """Parameters that await its step(), which is not to step them again."""
    gradients: list[torch.Tensor | None] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    used: dict[int, HyperParameters] = field(default_factory=dict)

    def forget_step(self) -> None:
        for what in (self.stepped, self.gradients, self.versions, self.used):
            what.clear()


class FusedSteps:
    """Steps the segments of one model in its backward, by the optimizers that are bound.

    Segments that no bound optimizers hold whole, or whose gradients are not all there, are left to
    ``optimizer.step()``, and posted after it: so every segment is posted in every round.

    Args:
        gossip: Posts and awaits.
        rule: Knows which backwards a step and a round belong to.
    """

    def __init__(self, gossip: Gossip, rule: StepRule) -> None:
        self._gossip = gossip
        self._rule = rule
        self._segment_of = {
            id(p): i for i, segment in enumerate(gossip.segments) for p in segment.parameters
        }
        self._bound: list[_Bound] = []
        self._is_whole = [False] * len(gossip.segments)
        self._missing: list[set[int]] = []
        self._stepped: set[int] = set()
        self._posted: set[int] = set()
        self._begin_round()

    def bind(self, optimizer: Optimizer) -> None:
        """Steps its parameters in the backwards to come.

        Raises:
            InvalidArgument: If it cannot be stepped in parts.
        """
        known = self._bound_to(optimizer)
        if known is not None:
            if holds_same(known.groups, optimizer):
                return
            self._bound.remove(known)
        try:
            require_separable(optimizer)
        except InvalidArgument as error:
            self._gossip.fail(str(error))
        self._drop_dead()
        taken = {id(p) for bound in self._bound for group in bound.groups for p in group}
        shares: dict[int, list[tuple[int, list[torch.Tensor]]]] = {}
        for index, group in enumerate(optimizer.param_groups):
            own: dict[int, list[torch.Tensor]] = {}
            for p in group["params"]:
                if id(p) in self._segment_of:
                    self._require_free(p, taken)
                    own.setdefault(self._segment_of[id(p)], []).append(p)
            for segment, parameters in own.items():
                shares.setdefault(segment, []).append((index, parameters))
        groups = [list(group["params"]) for group in optimizer.param_groups]
        self._bound.append(_Bound(weakref.ref(optimizer), groups, shares))
        self._find_whole()

    def forward_seen(self) -> None:
        """Called when a recorded forward begins that is no recomputation."""
        if self._awaits_step():
            self._gossip.fail(f"overlap='fused': a forward before optimizer.step(); {ONE_STEP}")

    def require_unstepped(self, index: int) -> None:
        """Called when a segment is read by a recomputation inside a backward."""
        if index in self._stepped:
            self._fail_again(f"segment '{self._gossip.segments[index].name}': it was recomputed")

    def gradient_seen(self, parameter: torch.Tensor) -> None:
        """Called when a gradient has been accumulated and the rule knows."""
        if not self._rule.is_owed:
            return
        index = self._segment_of[id(parameter)]
        if index in self._stepped:
            name = self._gossip.name_of(parameter)
            self._fail_again(f"parameter '{name}': its gradient was accumulated again")
        missing = self._missing[index]
        missing.discard(id(parameter))
        if not missing and self._is_whole[index]:
            self._step(index)

    def step_begins(self, optimizer: Optimizer, *, closure: bool) -> set[int]:
        """Called before an outermost step; the ids of the parameters that it is not to step again.

        Raises:
            InvalidArgument: Where something was written that the steps in the backward should have
                seen, or the optimizer cannot be stepped in parts.
        """
        if closure:
            self._refuse("optimizer.step() without a closure", "one: it comes too late")
        if _in_scaler_step() or getattr(optimizer, "grad_scale", None) is not None:
            self._refuse("gradients without GradScaler's scale", "scaled ones")
        stepped: set[int] = set()
        bound = self._bound_to(optimizer)
        if bound is not None:
            self._require_untouched(optimizer, bound)
            stepped = set(map(id, bound.stepped))
            bound.forget_step()
        self.bind(optimizer)
        bound = self._bound_to(optimizer)
        assert bound is not None
        for index in bound.shares:
            if index not in self._stepped or not stepped:
                self._gossip.wait_segment(index)
        return stepped

    def post_rest(self) -> None:
        """Posts what the backward has not posted."""
        for index in self._gossip.order:
            if index not in self._posted:
                self._gossip.wait_segment(index)
                self._gossip.open_segment(index)
                self._posted.add(index)

    def step_ends(self) -> None:
        """Called after an outermost step and what the round rule asked for."""
        if not self._awaits_step():
            self._begin_round()

    def _begin_round(self) -> None:
        self._missing = [{id(p) for p in s.parameters} for s in self._gossip.segments]
        self._stepped.clear()
        self._posted.clear()

    def _awaits_step(self) -> bool:
        return any(bound.stepped for bound in self._bound)

    def _step(self, index: int) -> None:
        if torch.is_grad_enabled():
            self._refuse("backward() without create_graph", "one with it")
        owners = [(bound, bound.optimizer()) for bound in self._bound if index in bound.shares]
        self._gossip.wait_segment(index)
        for bound, optimizer in owners:
            if optimizer is None:  # its parameters await the step that binds another
                self._drop_dead()
                return
            for group, parameters in bound.shares[index]:
                bound.used.setdefault(group, hyper_parameters(optimizer.param_groups[group]))
                step_group(optimizer, group, parameters)
                gradients = [p.grad for p in parameters]
                bound.stepped += parameters
                bound.gradients += gradients
                bound.versions += map(_version, gradients)
        self._stepped.add(index)
        self._post_stepped(index)

    def _post_stepped(self, index: int) -> None:
        """In the order of all ranks where the transport wants one."""
        ready = [index] if not self._gossip.device.posts_in_order else self._gossip.order
        for index in ready:
            if index not in self._stepped:
                return
            if index not in self._posted:
                self._gossip.open_segment(index)
                self._posted.add(index)

    def _find_whole(self) -> None:
        num_held = [0] * len(self._is_whole)
        for bound in self._bound:
            for segment, share in bound.shares.items():
                num_held[segment] += sum(len(parameters) for _, parameters in share)
        self._is_whole = [
            held == len(segment.parameters)
            for held, segment in zip(num_held, self._gossip.segments, strict=True)
        ]

    def _bound_to(self, optimizer: Optimizer) -> _Bound | None:
        return next((b for b in self._bound if b.optimizer() is optimizer), None)

    def _drop_dead(self) -> None:
        self._bound = [bound for bound in self._bound if bound.optimizer() is not None]
        self._find_whole()

    def _require_free(self, parameter: torch.Tensor, taken: set[int]) -> None:
        if id(parameter) in taken:
            self._refuse(
                f"parameter '{self._gossip.name_of(parameter)}' in one optimizer",
                "another one that holds it; wrap the model again to change its optimizer",
            )

    def _require_untouched(self, optimizer: Optimizer, bound: _Bound) -> None:
        """Raises if gradients or hyper-parameters are not those of the steps in the backward."""
        now = [p.grad for p in bound.stepped]
        if not all(map(is_, now, bound.gradients)) or list(map(_version, now)) != bound.versions:
            self._refuse(
                "gradients as the backward left them",
                "others: clipping by a global norm, like whatever writes gradients before "
                "optimizer.step(), comes too late",
            )
        for index, used in bound.used.items():
            given = hyper_parameters(optimizer.param_groups[index])
            for name in given:
                if given[name] != used.get(name):
                    self._refuse(
                        f"param_groups[{index}]['{name}'] as it was in the backward",
                        "another value; set it before the backward",
                    )

    def _refuse(self, wanted: str, given: str) -> NoReturn:
        self._gossip.fail(
            f"overlap='fused': expected {wanted}, got {given}; or use overlap='forward'"
        )

    def _fail_again(self, what: str) -> NoReturn:
        self._gossip.fail(
            f"overlap='fused': {what} after its segment was stepped (a second backward, or "
            f"a module shared by several re-entrant checkpoints); {ONE_STEP}"
        )


def _version(gradient: torch.Tensor | None) -> int:
    return -1 if gradient is None else gradient._version


def _in_scaler_step() -> bool:
    """Whether a GradScaler that scales calls this; what it writes is not counted as a version."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return bool(frame.f_locals["self"].is_enabled())
        frame = frame.f_back
    return False
