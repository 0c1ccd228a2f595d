"""Buffers beside gossiped parameters: averaged with them, or made rank 0's as torch's DDP does.

What is exchanged are copies, in a plan of their own, so that a forward may write its buffers at any
time. Each exchange belongs to a round, so that all ranks run equally many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from crossover_comm import _C
from crossover_comm.agreement import canonical_json
from crossover_comm.blocks import visible_path
from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip
from crossover_comm.layout import DTYPE_NAMES
from crossover_comm.remedies.remedy import Remedy

__all__ = ["Buffers", "buffers_for"]

_PlannedSegment: TypeAlias = tuple[str, str, list[int], list[str]]
_WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A buffer by its place: the module may put another tensor of the same kind there."""

    name: str
    owner: nn.Module
    key: str
    dtype: torch.dtype
    shape: torch.Size

    def tensor(self) -> torch.Tensor | None:
        """What is there now."""
        return self.owner._buffers[self.key]


class _Values:
    """Floating-point buffers laid end to end, one tensor for each element type."""

    def __init__(self, gossip: Gossip, buffers: Sequence[_Buffer]) -> None:
        self._gossip = gossip
        self._buffers = buffers
        self._dtypes = list(dict.fromkeys(buffer.dtype for buffer in buffers))

    def segments(self) -> list[_PlannedSegment]:
        """Those of a plan that exchanges what `read` gives."""
        names = [f"buffers ({DTYPE_NAMES[dtype]})" for dtype in self._dtypes]
        return [
            (name, DTYPE_NAMES[flat.dtype], [flat.numel()], [name])
            for name, flat in zip(names, self.read(), strict=True)
        ]

    def read(self) -> list[torch.Tensor]:
        """Copies of the values.

        Raises:
            InvalidArgument: A buffer is not of the kind that it was at the start.
        """
        return [torch.cat([t.reshape(-1) for t in self._tensors(dtype)]) for dtype in self._dtypes]

    def write(self, flats: Sequence[torch.Tensor]) -> None:
        """Sets the values to what `read` gave somewhere."""
        for dtype, flat in zip(self._dtypes, flats, strict=True):
            tensors = self._tensors(dtype)
            parts = flat.split([t.numel() for t in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def _tensors(self, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        return [self._checked(b) for b in self._buffers if dtype in (None, b.dtype)]

    def _checked(self, buffer: _Buffer) -> torch.Tensor:
        tensor = buffer.tensor()
        if tensor is None or (tensor.dtype, tensor.shape) != (buffer.dtype, buffer.shape):
            found = None if tensor is None else (tensor.dtype, tuple(tensor.shape))
            self._gossip.fail(
                f"buffer '{buffer.name}': expected {buffer.dtype} of shape {tuple(buffer.shape)} "
                f"as at the start, got {found}; wrap the model again after changing it"
            )
        return tensor


class _Bytes(_Values):
    """Buffers of any kind, their bytes laid end to end in float32 words, which are only copied."""

    def segments(self) -> list[_PlannedSegment]:
        return [("buffers", "float32", [self.read()[0].numel()], ["buffers"])]

    def read(self) -> list[torch.Tensor]:
        data = torch.cat([_bytes_of(tensor) for tensor in self._tensors()])
        return [nn.functional.pad(data, (0, -data.numel() % _WORD_BYTES)).view(torch.float32)]

    def write(self, flats: Sequence[torch.Tensor]) -> None:
        data, begin = flats[0].view(torch.uint8), 0
        for tensor in self._tensors():
            part = data[begin : begin + tensor.nbytes].clone()  # so that it is aligned
            begin += tensor.nbytes
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))


class _Exchange:
    """A plan of a few tensors beside the parameters; a collective call."""

    def __init__(
        self, gossip: Gossip, segments: Sequence[_PlannedSegment], schedule: _C.Schedule
    ) -> None:
        self._gossip = gossip
        self._segments = segments
        self._schedule = schedule
        self.plan = self._add_plan(0)

    def open(self, flats: Sequence[torch.Tensor]) -> None:
        gossip = self._gossip
        gossip.context.engine.open_round(self.plan, _addresses(flats), gossip.device.stream())

    def close(self, flats: Sequence[torch.Tensor]) -> None:
        gossip = self._gossip
        gossip.context.engine.close_round(self.plan, _addresses(flats), gossip.device.stream())

    @property
    def round(self) -> int:
        return self._gossip.context.engine.round(self.plan, 0)

    def go_on_at(self, first_round: int) -> None:
        self.remove()
        self.plan = self._add_plan(first_round)

    def remove(self) -> None:
        self._gossip.context.engine.remove_plan(self.plan)

    def _add_plan(self, first_round: int) -> int:
        order = range(len(self._segments))
        plan = _C.SegmentPlan(self._segments, "float32", order)
        return self._gossip.context.add_plan(
            plan, self._schedule, first_round, self._gossip.device.handle, raise_on_non_finite=False
        )


class Buffers(Remedy):
    """Exchanges a model's buffers beside its rounds."""

    def forward_begins(self, num_rounds: int) -> None:
        """A forward of the whole model begins, outside of any backward.

        Args:
            num_rounds: So many rounds have been counted.
        """
        raise NotImplementedError

    def remove(self) -> None:
        """Takes the plans out of the engine."""
        raise NotImplementedError


class AveragedBuffers(Buffers):
    """Floating-point buffers are mixed with the rounds of the parameters, by draws of the same
    schedule: b_i <- b_i + sum_j w_ij (s_j - s_i), with s the buffers when the round opened.

    So the mean over ranks is kept, whatever a forward has written since. In modes ``"forward"`` and
    ``"fused"`` they are mixed when the next forward begins, in the others when the round closes.
    """

    def __init__(
        self, gossip: Gossip, buffers: Sequence[_Buffer], config: GossipConfig, overlap: Overlap
    ) -> None:
        super().__init__(gossip)
        self._values = _Values(gossip, buffers)
        segments = self._values.segments()
        schedule = config.schedule(gossip.context.launch.size, len(segments))
        self._exchange = _Exchange(gossip, segments, schedule)
        self._mixes_in_forward = overlap in ("forward", "fused")
        self._sent: list[torch.Tensor] = []
        self._mixed: list[torch.Tensor] = []

    @torch.no_grad()
    def opened(self) -> None:
        self._sent = self._values.read()
        self._mixed = [flat.clone() for flat in self._sent]
        self._exchange.open(self._mixed)

    @torch.no_grad()
    def closing(self) -> None:
        if not self._sent:
            return
        self._exchange.close(self._mixed)
        now = self._values.read()
        triples = zip(now, self._mixed, self._sent, strict=True)
        self._values.write([b + (mixed - sent) for b, mixed, sent in triples])
        self._sent = self._mixed = []

    def forward_begins(self, num_rounds: int) -> None:
        if self._mixes_in_forward:
            self.closing()

    def state_dict(self) -> dict[str, Any]:
        return {"round": self._exchange.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sent = self._mixed = []
        self._exchange.go_on_at(state["round"])

    def remove(self) -> None:
        self._exchange.remove()


class CommonBuffers(Buffers):
    """All ranks have the same buffers when the first forward after a round begins: rank 0's, or of
    floating-point ones the mean.

    Args:
        gossip: The model's.
        buffers: What is exchanged.
        averages: Whether it is the mean.
        interval: Every so many rounds, as they are counted, one exchange.
        seen: The number of rounds that the first exchange does not follow: 0 where forwards open
            rounds, -1 where forwards come before them.

    Attributes:
        is_uneven: Ranks may run out of data: rank 0's place is taken by the first that has some.
        has_data: Whether this one has.
    """

    def __init__(
        self,
        gossip: Gossip,
        buffers: Sequence[_Buffer],
        *,
        averages: bool,
        interval: int,
        seen: int,
    ) -> None:
        super().__init__(gossip)
        self._values = _Values(gossip, buffers) if averages else _Bytes(gossip, buffers)
        self._averages = averages
        self._interval = interval
        self._seen = seen
        self._size = gossip.context.launch.size
        average = _C.group_average_schedule([range(self._size)], False)
        flags = [("who has data", "float32", [self._size], ["who has data"])]
        self._flags = _Exchange(gossip, flags, average)
        if averages:
            self._exchange = _Exchange(gossip, self._values.segments(), average)
        else:
            self._exchange = self._exchange_from(0)
        self.is_uneven = False
        self.has_data = True

    def forward_begins(self, num_rounds: int) -> None:
        number = num_rounds // self._interval
        if number == self._seen:
            return
        self._seen = number
        if not self.is_uneven or self._averages:
            self._run(self._exchange)
            return
        root = self._first_with_data()
        if root == 0:
            self._run(self._exchange)
        elif root is not None:
            self.copy_from(root)

    def copy_from(self, root: int) -> None:
        """The buffers become those of this rank. A collective call."""
        exchange = self._exchange_from(root)
        self._run(exchange)
        exchange.remove()

    def state_dict(self) -> dict[str, Any]:
        return {
            "round": self._exchange.round,
            "flags": self._flags.round,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = state["seen"]
        self._exchange.go_on_at(state["round"])
        self._flags.go_on_at(state["flags"])

    def remove(self) -> None:
        self._exchange.remove()
        self._flags.remove()

    @torch.no_grad()
    def _run(self, exchange: _Exchange) -> None:
        flats = self._values.read()
        exchange.open(flats)
        exchange.close(flats)
        self._values.write(flats)

    def _exchange_from(self, root: int) -> _Exchange:
        others = [rank for rank in range(self._size) if rank != root]
        schedule = _C.group_broadcast_schedule([[root, *others]])
        return _Exchange(self.gossip, self._values.segments(), schedule)

    def _first_with_data(self) -> int | None:
        flags = torch.zeros(self._size, device=self.gossip.device.device)
        flags[self.gossip.context.launch.rank] = float(self.has_data)
        self._flags.open([flags])
        self._flags.close([flags])
        return next((rank for rank, flag in enumerate(flags.tolist()) if flag > 0), None)


def buffers_for(gossip: Gossip, config: GossipConfig, overlap: Overlap) -> Buffers | None:
    """What exchanges the model's buffers as the configuration says; None if there is nothing to do.

    A collective call. Buffers that are marked as ignored stay out.

    Raises:
        InvalidArgument: The ranks have unlike buffers, or push-sum would have to average them;
            `gossip` is removed then.
    """
    if config.buffers in (None, "local"):
        return None
    averages = config.buffers == "average"
    if averages and gossip.is_push_sum:
        gossip.remove()
        raise InvalidArgument(
            "buffers='average': expected a doubly or row-stochastic topology, got push-sum, whose "
            "weights belong to parameters; use buffers='broadcast'"
        )
    found = list(_found_in(gossip.model))
    buffers = [b for b in found if b.dtype in DTYPE_NAMES] if averages else found
    description = [{"name": b.name, "dtype": str(b.dtype), "shape": list(b.shape)} for b in buffers]
    gossip.context.agree("the model's buffers", canonical_json({"buffers": description}))
    if not buffers:
        return None
    if averages and config.groups is None:
        return AveragedBuffers(gossip, buffers, config, overlap)
    is_opened_by_forward = config.groups is None and overlap == "backward"
    return CommonBuffers(
        gossip,
        buffers,
        averages=averages,
        interval=config.interval if config.groups is None else 1,
        seen=0 if is_opened_by_forward else -1,
    )


def _found_in(model: nn.Module) -> Iterator[_Buffer]:
    known = set()
    for path, module in model.named_modules():
        for key, tensor in module._buffers.items():
            if tensor is None or tensor.numel() == 0 or hasattr(tensor, "_ddp_ignored"):
                continue
            if id(tensor) not in known:
                known.add(id(tensor))
                name = visible_path(f"{path}.{key}" if path else key)
                yield _Buffer(name, module, key, tensor.dtype, tensor.shape)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _addresses(flats: Sequence[torch.Tensor]) -> list[int]:
    return [flat.data_ptr() for flat in flats]
