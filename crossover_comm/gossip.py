"""One model bound to one plan of the engine: its parameters posted, awaited and mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NoReturn

import torch
from torch import nn

from crossover_comm import _C
from crossover_comm.agreement import canonical_json
from crossover_comm.auto_wire import AutoWire
from crossover_comm.comm_bucket import ONCE, SentHook
from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.errors import InvalidArgument
from crossover_comm.first_needed import FirstNeeded
from crossover_comm.groups import Groups, within_groups
from crossover_comm.layout import DTYPE_NAMES
from crossover_comm.posted import PostedMemory
from crossover_comm.segments import cut, describe, issue_order
from crossover_comm.shards import awaited_at_root, require_shards
from crossover_comm.versions import addresses_of, compiled_graphs_count_first, increment_versions
from crossover_comm.wires import BLOCK_NUMEL, WIRE_DTYPES

__all__ = ["Gossip"]


class Gossip:
    """Posts and mixes the segments of one model. A collective call: all ranks build the same.

    Args:
        context: The rank's place and engine; it has at least 2 ranks.
        model: The model, only to be cut.
        parameters: Those of its parameters that are gossiped, by name, in model order.
        config: How; ``config.overlap`` is overruled by `overlap`.
        overlap: The mode that the caller has resolved.
        groups: Those that gossip in place of ranks; their members hold equal parameters.

    Attributes:
        order: In which segments are posted and awaited, as indices; in mode ``"forward"`` another
            one from the second round on.
        device: Where the model lives; what is exchanged beside it lies there too.
        is_sharded: Parameters are FSDP2's, and what is exchanged are this rank's shards of them.
        awaited: The segments with the modules at which they are to be awaited.
        fingerprint: Model, configuration and number of ranks, ready for JSON.
        companions: Plans of tensors that are exchanged beside the parameters.

    Raises:
        InvalidArgument: If a parameter cannot be exchanged, or the ranks differ.
    """

    def __init__(
        self,
        context: Context,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        config: GossipConfig,
        overlap: Overlap,
        groups: Groups | None = None,
    ) -> None:
        self.context = context
        self.model = model
        require_shards(parameters, context.members, config, overlap)
        self.segments = cut(model, parameters, config.segments)
        self.order = issue_order(len(self.segments), overlap)
        self.parameters = tuple(p for segment in self.segments for p in segment.parameters)
        self._names = tuple(name for segment in self.segments for name in segment.tensors)
        ends = list(accumulate(len(segment.tensors) for segment in self.segments))
        self._spans = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        self._memory = PostedMemory(self._names, self.parameters)
        self.is_sharded = self._memory.is_sharded
        self.awaited = awaited_at_root(self.segments) if self.is_sharded else self.segments
        self._open: set[int] = set()
        self._hook: SentHook | None = None
        self.device = context.placement.of(dict(zip(self._names, self.parameters, strict=True)))
        self.fingerprint: dict[str, object] = {
            "size": context.launch.size,
            "config": {**config.describe(), "overlap": overlap},
            "groups": groups,
            "segments": describe(self.segments),
        }
        description = {"device": self.device.describe(), **self.fingerprint}
        context.agree("the model's gossip", canonical_json(description))
        context.placement.connect()
        self._auto: AutoWire | None = None
        self._schedule = self._schedule_of(config, groups)
        self._plan = self._plan_of_segments(config)
        self.companions: list[int] = []
        self.plan = self._add_plan(0)
        self._first_needed: FirstNeeded | None = None
        if overlap == "forward" and len(self.segments) > 1:
            self._first_needed = FirstNeeded(context, str(self.plan), len(self.segments))

    @property
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The gossiped parameters by name."""
        return dict(zip(self._names, self.parameters, strict=True))

    def round(self, index: int) -> int:
        """The open round of a segment, or the next one."""
        return self.context.engine.round(self.plan, index)

    @property
    def is_push_sum(self) -> bool:
        """Whether parameters are x / w of a column-stochastic exchange."""
        return self._schedule.stochasticity == "column"

    @property
    def is_open(self) -> bool:
        """Whether a segment is posted and not mixed."""
        return bool(self._open)

    def open_round(self) -> None:
        """Posts every segment. Until a segment's wait returns, nobody may write its parameters.

        Raises:
            InvalidArgument: If a parameter has another shape, dtype, device or layout than at the
                start, or a CUDA graph is being captured.
            CrossoverError: The engine's first failure.
        """
        self.device.refuse_capture()
        self._note(slice(0, len(self.parameters)))
        self._reorder()
        self._begin(0)
        if self._hook is not None:
            for index in self.order:
                self._hook.post(index, self.segments[index])
        self.context.engine.open_round(self.plan, self._exchanged(), self.device.stream())
        self._open = set(range(len(self.segments)))

    def open_segment(self, index: int) -> None:
        """Posts one segment, as :meth:`open_round` posts all; in `order` if the device asks for it.

        Raises:
            InvalidArgument, CrossoverError: As for :meth:`open_round`; if the segment is open.
        """
        self.device.refuse_capture()
        span = self._spans[index]
        self._note(span)
        addresses = self._memory.addresses[span]
        self._begin(index)
        if self._hook is not None:
            addresses = self._hook.post(index, self.segments[index])
        self.context.engine.open_segment(self.plan, index, addresses, self.device.stream())
        self._open.add(index)

    def close_round(self) -> list[int]:
        """Awaits and mixes every segment that is still open, and tells which these were.

        Raises:
            InvalidArgument: If a parameter was written or moved since it was posted.
            CrossoverError: The engine's first failure.
        """
        if not self._open:
            return []
        self.device.refuse_capture()
        if self._memory.touched(slice(0, len(self.parameters))) is not None:
            for index in self._open:
                self._require_untouched(index)
        self.context.engine.close_round(self.plan, self._exchanged(), self.device.stream())
        if self._hook is not None:
            for index in self._open:
                self._hook.mixed(index, self.segments[index].parameters)
        increment_versions([p for index in self._open for p in self.segments[index].parameters])
        mixed = sorted(self._open)
        self._open.clear()
        self._mixed(mixed)
        return mixed

    def wait_segment(self, index: int, tensors: Sequence[torch.Tensor] | None = None) -> bool:
        """Awaits and mixes one segment; False at once if it is not open.

        Args:
            index: The segment, in model order.
            tensors: Tensors to be mixed in place of the parameters, of the same values: the ones
                that a compiled graph works on.

        Raises:
            InvalidArgument, CrossoverError: As for :meth:`close_round`.
        """
        if self._first_needed is not None:
            self._first_needed.needed(index)
        if index not in self._open:
            return False
        self.device.refuse_capture()
        is_counted = tensors is not None and compiled_graphs_count_first()
        self._require_untouched(index, num_expected=int(is_counted))
        if self._hook is not None:
            addresses = self._hook.addresses(index)
        elif tensors is None:
            addresses = self._memory.addresses[self._spans[index]]
        else:
            addresses = addresses_of(self._memory.held(tensors))
        self.context.engine.wait_segment(self.plan, index, addresses, self.device.stream())
        if self._hook is not None:
            self._hook.mixed(index, tensors or self.segments[index].parameters)
        increment_versions(tensors or self.segments[index].parameters)
        self._open.discard(index)
        self._mixed([index])
        return True

    def send_by(self, hook: SentHook) -> None:
        """From now on what is sent is what the hook makes of parameters. No round is open."""
        if self._hook is not None:
            raise InvalidArgument(f"register_comm_hook {ONCE}")
        self._hook = hook

    def peers_of(self, index: int) -> tuple[int, ...]:
        """The ranks that this one exchanges a segment with in its next round, ascending."""
        rank = self.context.launch.rank
        numel = sum(p.numel() for p in self.segments[index].parameters)
        phases = self._schedule.program(self.round(index), index, numel, rank)
        partners = {to for sends, _ in phases for to, *_ in sends}
        partners |= {source for _, receives in phases for source, *_ in receives}
        return tuple(sorted(partners - {rank}))

    def name_of(self, parameter: torch.Tensor) -> str:
        """The name of a gossiped parameter."""
        return next(n for n, p in zip(self._names, self.parameters, strict=True) if p is parameter)

    def has(self, name: str) -> bool:
        """Whether the parameter of this name is gossiped."""
        return name in self._names

    def fail(self, message: str) -> NoReturn:
        """Ends gossip here and on the peers: a loop that goes on would train unmixed.

        Raises:
            InvalidArgument: With this message.
        """
        self.context.engine.fail(message)
        raise InvalidArgument(message)

    def weights(self) -> list[float]:
        """Push-sum's w of each segment, as of its last mix; 1.0 with other schedules."""
        return self.context.engine.weights(self.plan)

    def set_weights(self, weights: Sequence[float]) -> None:
        """Takes up what `weights` gave, while no round is open.

        Raises:
            InvalidArgument: If these cannot be the segments' weights, or a round is open.
        """
        self.context.engine.set_weights(self.plan, weights)

    def add_companion(self) -> int:
        """Adds a plan of equal segments and draws, for tensors shaped as the parameters.

        Returns:
            Its index in `companions`.
        """
        self.companions.append(self._add_plan(self.round(0)))
        return len(self.companions) - 1

    def state_dict(self) -> dict[str, Any]:
        """Where the rounds stand, and whatever else of the plans outlives a round. None is open."""
        state: dict[str, Any] = {"round": self.round(0)}
        if self._auto is not None:
            state["levels"] = self._auto.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave. A collective call; an open round is dropped.

        The plans are made anew at that round, so that rooms announced for other rounds are
        forgotten.
        """
        self.remove()
        self._open.clear()
        if self._auto is not None:
            self._auto.load_state_dict(state["levels"], state["round"])
        if self._hook is not None:
            self._hook.forget()
        self.plan = self._add_plan(state["round"])
        self.context.engine.set_issue_order(self.plan, self.order)
        self.companions = [self._add_plan(state["round"]) for _ in self.companions]

    def remove(self) -> None:
        """Takes the plans out of the engine; open rounds are dropped."""
        for plan in (self.plan, *self.companions):
            self.context.engine.remove_plan(plan)

    def _add_plan(self, first_round: int) -> int:
        return self.context.add_plan(self._plan, self._schedule, first_round, self.device.handle)

    def _plan_of_segments(self, config: GossipConfig) -> _C.SegmentPlan:
        return _C.SegmentPlan(
            [
                (
                    segment.name,
                    DTYPE_NAMES[segment.dtype],
                    [p.numel() for p in self._memory.held(segment.parameters)],
                    segment.tensors,
                )
                for segment in self.segments
            ],
            WIRE_DTYPES[config.wire],
            self.order,
        )

    def _schedule_of(self, config: GossipConfig, groups: Groups | None) -> _C.Schedule:
        if not config.levels:
            return self._grouped(config, groups)
        self._require_measurable(config)
        levelled = _C.levelled_schedule(
            [
                (self._grouped(config, groups, level.rounds), WIRE_DTYPES[level.wire])
                for level in config.levels
            ]
        )
        self._auto = AutoWire(self.context, config.levels, levelled)
        return levelled

    def _grouped(
        self, config: GossipConfig, groups: Groups | None, rounds_per_step: int | None = None
    ) -> _C.Schedule:
        size = self.context.launch.size if groups is None else len(groups)
        schedule = config.schedule(size, len(self.segments), rounds_per_step)
        if groups is None:
            return schedule
        sizes = [([p.numel() for p in s.parameters], s.dtype.itemsize) for s in self.segments]
        unit = BLOCK_NUMEL if config.wire in ("int8", "auto") else 1
        return within_groups(schedule, groups, sizes, config.hierarchy, unit)

    def _require_measurable(self, config: GossipConfig) -> None:
        if self.device.handle is not None:
            raise InvalidArgument(
                "wire='auto': expected a model in host memory, where distances are measured, got "
                f"one on {self.device.device}; choose a wire"
            )
        schedule = config.schedule(self.context.launch.size, len(self.segments))
        if schedule.name == "all-reduce" or schedule.stochasticity == "column":
            raise InvalidArgument(
                "wire='auto': expected a topology whose rounds leave a distance and may be "
                f"several to a step, got '{schedule.name}' ({schedule.stochasticity} stochastic)"
            )

    def _begin(self, index: int) -> None:
        if self._auto is not None:
            self._auto.begin(self.round(index), self.plan, len(self.segments))

    def _mixed(self, segments: Sequence[int]) -> None:
        if self._auto is not None:
            self._auto.mixed(segments, self.plan)

    def _reorder(self) -> None:
        """Takes the order in which the forward needs segments as soon as it is agreed."""
        order = None if self._first_needed is None else self._first_needed.before_post()
        if order is not None:
            self._first_needed = None
            self.order = order
            self.context.engine.set_issue_order(self.plan, order)

    def _exchanged(self) -> list[int]:
        """Addresses of what is posted: the parameters', or those of what a hook sends for them."""
        if self._hook is None:
            return self._memory.addresses
        return self._hook.addresses_among(self._memory.addresses, self._spans)

    def _note(self, span: slice) -> None:
        wrong = self._memory.note(span)
        if wrong is not None:
            self.fail(wrong)

    def _require_untouched(self, index: int, num_expected: int = 0) -> None:
        """Raises if a parameter was moved, or written more often than autograd may know of."""
        touched = self._memory.touched(self._spans[index], num_expected)
        if touched is not None:
            self._raise_touched(index, touched)

    def _raise_touched(self, index: int, what: str) -> NoReturn:
        self.fail(
            f"segment '{self.segments[index].name}', {what} "
            f"between post (round {self.round(index)}) and mix; call "
            "crossover_comm.synchronize(model) before writing parameters (SAM, EMA swap, "
            "clamping, load_state_dict)"
        )
