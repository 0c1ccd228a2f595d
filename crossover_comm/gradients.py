"""Exact averages of gradients inside groups of ranks, by the engine's own exchange programs.

A segment's gradients are posted when the last of them has been accumulated, so that they travel
beside the rest of backward, and mixed when the backward ends, before anybody clips, unscales or
steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crossover_comm import _C
from crossover_comm.comm_bucket import ONCE, GradientHook
from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip
from crossover_comm.groups import Groups
from crossover_comm.layout import DTYPE_NAMES
from crossover_comm.rounds import GradientRule
from crossover_comm.rule_state import load_rule_state, rule_state
from crossover_comm.segments import issue_order
from crossover_comm.versions import increment_versions
from crossover_comm.whole_graph import WholeGraph, tensors_in
from crossover_comm.wires import WIRE_DTYPES

__all__ = ["GradientAverager", "copy_from_roots"]


@dataclass(slots=True)
class _Posted:
    """A segment's gradients while the engine holds them."""

    tensors: list[torch.Tensor]
    versions: list[int]
    absent: list[tuple[int, nn.Parameter]]
    """Position and parameter of the gradients that stand for None."""
    sparse: list[tuple[int, nn.Parameter, int]]
    """Position, parameter and number of sparse dimensions of those that stand for sparse ones."""


class GradientAverager:
    """Averages the gradients of one model inside this rank's group. A collective call.

    Afterwards they are equal bit for bit on the group's members. A parameter without a gradient
    counts as zero; if it has none on any member, as one element more per parameter tells, it is
    left without. A sparse gradient travels dense and is sparse again afterwards, without what is
    zero. One element more tells whether the rank has data at all (:meth:`shadow`). NaN and infinity
    travel, for a GradScaler to find.

    Args:
        gossip: The model's; segments are its own.
        groups: Of all ranks of the context.
        config: `wire` and `hierarchy` hold for gradients, too.
        overlap: ``"none"``: everything is posted at the end of the backward.

    Attributes:
        divides_by_size: Sums are divided by the group's size, else by the number of its ranks that
            have data.
        num_groups: How many groups there are.
        round_begins: Told the number of each average that begins, from 1 on.
    """

    def __init__(
        self,
        gossip: Gossip,
        groups: Groups,
        config: GossipConfig,
        overlap: Overlap,
    ) -> None:
        segments = gossip.segments
        self._gossip = gossip
        self._engine = gossip.context.engine
        self._segments = segments
        self._order = issue_order(len(segments), "backward")
        self._waits_for_end = overlap == "none"
        self._rule = GradientRule()
        self._segment_of = {id(p): i for i, s in enumerate(segments) for p in s.parameters}
        self.divides_by_size = True
        self.num_groups = len(groups)
        self._size = sum(map(len, groups))
        self._is_shadow = False
        self.round_begins: Callable[[int], None] | None = None
        self._flags = [
            torch.empty(len(s.parameters) + 1, dtype=s.dtype, device=gossip.device.device)
            for s in segments
        ]
        self._hook: GradientHook | None = None
        self._missing: list[set[int]] = []
        self._posted: dict[int, _Posted] = {}
        self._has_begun = False
        self._forget()
        whole_graph = None if self._waits_for_end else WholeGraph(segments)
        watch = _watcher(weakref.ref(self), whole_graph)
        self.watch: Callable[[Any], None] = torch.compiler.disable(watch)
        """Takes the outputs of a forward of the whole model, whose backward is averaged."""
        self._schedule = _C.group_average_schedule(groups, config.hierarchy == "root")
        self._wire = WIRE_DTYPES[config.wire]
        self.plan = self._add_plan(0)

    def forward_seen(self, grad_enabled: bool, *, synced: bool, recomputing: bool) -> None:
        """Called when a forward begins, or goes on where a segment is read."""
        if self._has_begun and grad_enabled and not recomputing:
            self._finish()  # of a backward that an exception has ended
        self._rule.forward(grad_enabled=grad_enabled, synced=synced, recomputing=recomputing)

    def backward_begins(self, *, synced: bool) -> bool:
        """Called within a backward; whether its gradients are averaged."""
        if not self._rule.backward(synced=synced):
            return False
        if not self._has_begun:
            self._has_begun = True
            ends = _end_of_backward(weakref.ref(self))
            torch.autograd.Variable._execution_engine.queue_callback(ends)
        return True

    def gradient_seen(self, parameter: torch.Tensor, *, synced: bool) -> None:
        """Called when the gradient of a parameter has been accumulated."""
        if not self.backward_begins(synced=synced):
            return
        index = self._segment_of[id(parameter)]
        if index in self._posted:
            self._fail_twice(index, parameter)
        self._missing[index].discard(id(parameter))
        if not self._waits_for_end:
            while self._num_posted < len(self._order):
                index = self._order[self._num_posted]
                if self._missing[index]:
                    break
                self._post(index)

    def step_begins(self) -> None:
        """Called before the outermost optimizer step."""
        if self._rule.step_begin() or self._has_begun:
            self._finish()

    def backward_ends(self) -> None:
        """Called once all gradients of a backward are there."""
        if self._has_begun:
            self._finish()

    def shadow(self) -> None:
        """Takes part in one average with gradients of zero; this rank's own stay as they are."""
        self._is_shadow = True
        try:
            self._finish()
        finally:
            self._is_shadow = False

    def exchange_by(self, hook: GradientHook) -> None:
        """From now on the hook exchanges gradients, and only which are there is exchanged here.

        A collective call outside of any backward. It is the hook that divides.

        Raises:
            InvalidArgument: There is one already.
        """
        if self._hook is not None:
            raise InvalidArgument(f"register_comm_hook {ONCE}")
        first_round = self.num_averages
        self.remove()
        self._hook = hook
        self.plan = self._add_plan(first_round)

    @property
    def num_averages(self) -> int:
        """How many have been begun."""
        return self._engine.round(self.plan, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the averages stand. No backward runs."""
        return {"round": self._engine.round(self.plan, 0), "rule": rule_state(self._rule)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave. A collective call."""
        self.remove()
        self._forget()
        self.plan = self._add_plan(state["round"])
        load_rule_state(self._rule, state["rule"])

    def remove(self) -> None:
        """Takes the plan out of the engine; what is under way is dropped."""
        self._engine.remove_plan(self.plan)

    def _add_plan(self, first_round: int) -> int:
        segments = []
        for s in self._segments:
            numels, names = [len(s.parameters) + 1], ["(which are there)"]
            if self._hook is None:
                numels = [*(p.numel() for p in s.parameters), *numels]
                names = [*(f"{name}.grad" for name in s.tensors), *names]
            segments.append((s.name, DTYPE_NAMES[s.dtype], numels, names))
        return self._gossip.context.add_plan(
            _C.SegmentPlan(segments, self._wire, self._order),
            self._schedule,
            first_round,
            self._gossip.device.handle,
            raise_on_non_finite=False,
        )

    @property
    def is_expected(self) -> bool:
        """Whether the next backward is averaged, or the current one is."""
        return self._rule.is_expected

    @property
    def _num_posted(self) -> int:
        return len(self._posted)

    def _forget(self) -> None:
        self._missing = [{id(p) for p in s.parameters} for s in self._segments]
        self._posted = {}
        self._has_begun = False
        if self._hook is not None:
            self._hook.forget()

    def _finish(self) -> None:
        for index in self._order[self._num_posted :]:
            self._post(index)
        for index in self._order:
            self._wait(index)
        self._forget()
        self._rule.averaged()

    @torch.no_grad()
    def _post(self, index: int) -> None:
        segment = self._segments[index]
        tensors = []
        absent = []
        sparse = []
        for i, (name, p) in enumerate(zip(segment.tensors, segment.parameters, strict=True)):
            if p.grad is None or self._is_shadow:
                absent.append((i, p))
                tensors.append(torch.zeros_like(p))
            elif p.grad.layout == torch.sparse_coo:
                sparse.append((i, p, p.grad.sparse_dim()))
                tensors.append(_like_its_parameter(name, p, p.grad.to_dense()))
            else:
                tensors.append(_like_its_parameter(name, p, p.grad))
        flags = self._flags[index].fill_(0 if self._is_shadow else 1)
        for i, _ in absent:
            flags[i] = 0
        tensors.append(flags)
        if self.round_begins is not None and not self._posted:
            self.round_begins(self.num_averages + 1)
        if self._hook is not None:
            place = self._order.index(index)
            self._hook.post((place, place + 1 == len(self._order)), segment, tensors[:-1])
        self._posted[index] = _Posted(tensors, [t._version for t in tensors], absent, sparse)
        addresses = self._addresses(tensors)
        self._engine.open_segment(self.plan, index, addresses, self._gossip.device.stream())

    @torch.no_grad()
    def _wait(self, index: int) -> None:
        posted = self._posted[index]
        if [t._version for t in posted.tensors] != posted.versions:
            self._gossip.fail(
                f"segment '{self._segments[index].name}': a gradient was written while it was "
                'being averaged; write gradients after the backward, or use overlap="none"'
            )
        addresses = self._addresses(posted.tensors)
        self._engine.wait_segment(self.plan, index, addresses, self._gossip.device.stream())
        if self._hook is not None:
            self._hook.wait(self._order.index(index), posted.tensors[:-1])
        increment_versions(posted.tensors)
        if self._is_shadow:
            return
        for i, p in posted.absent:
            if self._flags[index][i] > 0:
                p.grad = posted.tensors[i]
        if not self.divides_by_size and self._hook is None:
            num_with_data = round(float(self._flags[index][-1]) * self._size)
            torch._foreach_mul_(posted.tensors, self._size / num_with_data)
        for i, p, num_dims in posted.sparse:
            p.grad = posted.tensors[i].to_sparse(num_dims)

    def _addresses(self, tensors: list[torch.Tensor]) -> list[int]:
        """Of what the engine exchanges."""
        return [t.data_ptr() for t in (tensors if self._hook is None else tensors[-1:])]

    def _fail_twice(self, index: int, parameter: torch.Tensor) -> None:
        segment = self._segments[index]
        names = {id(p): name for name, p in zip(segment.tensors, segment.parameters, strict=True)}
        self._gossip.fail(
            f"parameter '{names[id(parameter)]}': its gradient was accumulated again in the "
            "backward that has posted it, as a module shared by several re-entrant checkpoints "
            'does; use overlap="none" or checkpoint(use_reentrant=False)'
        )


def copy_from_roots(gossip: Gossip, groups: Groups) -> None:
    """Parameters become those of the first member of the rank's group. A collective call."""
    segments, device = gossip.segments, gossip.device
    plan = _C.SegmentPlan(
        [
            (s.name, DTYPE_NAMES[s.dtype], [p.numel() for p in s.parameters], s.tensors)
            for s in segments
        ],
        "float32",
        range(len(segments)),
    )
    engine = gossip.context.engine
    index = gossip.context.add_plan(plan, _C.group_broadcast_schedule(groups), 0, device.handle)
    parameters = [p for s in segments for p in s.parameters]
    addresses = [p.data_ptr() for p in parameters]
    engine.open_round(index, addresses, device.stream())
    engine.close_round(index, addresses, device.stream())
    increment_versions(parameters)
    engine.remove_plan(index)


def _like_its_parameter(name: str, p: nn.Parameter, grad: torch.Tensor) -> torch.Tensor:
    if grad.layout != torch.strided or grad.dtype != p.dtype or grad.device != p.device:
        raise InvalidArgument(
            f"gradient of parameter '{name}': expected a dense {p.dtype} on {p.device}, got "
            f"{grad.layout}, {grad.dtype} on {grad.device}"
        )
    if grad.stride() != p.stride():
        grad = p.grad = torch.empty_like(p).copy_(grad)
    return grad


def _watcher(
    ref: weakref.ref[GradientAverager], whole_graph: WholeGraph | None
) -> Callable[[Any], None]:
    def in_backward(_: torch.Tensor) -> None:
        averager = ref()
        if averager is not None and averager.is_expected:
            averager.backward_begins(synced=True)

    def watch(outputs: Any) -> None:
        if whole_graph is not None:
            whole_graph.look_at(outputs)
        if torch.is_grad_enabled():
            for tensor in tensors_in(outputs):
                if tensor.requires_grad:
                    tensor.register_hook(in_backward)

    return watch


def _end_of_backward(ref: weakref.ref[GradientAverager]) -> Callable[[], None]:
    def ends() -> None:
        averager = ref()
        if averager is not None:
            averager.backward_ends()

    return ends
