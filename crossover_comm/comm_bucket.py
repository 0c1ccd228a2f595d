"""What a communication hook sees of a segment, and where its outcome goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

import torch

from crossover_comm.segments import Segment

__all__ = ["ONCE", "CommBucket", "CommHook", "GradientHook", "SentHook"]

CommHook: TypeAlias = Callable[[Any, "CommBucket"], Any]
"""Called with the user's state and a bucket; returns a future of a tensor."""

ONCE: Final = (
    "or register_builtin_comm_hook can only be called once. Wrap the model again for another hook"
)
_Failing: TypeAlias = Callable[[str], Any]


class CommBucket:
    """A segment as a hook sees it: the interface of torch's ``dist.GradBucket``, and `peers`.

    Args:
        index: The place in the order in which segments are handed over.
        is_last: Whether it is the last of a round or backward.
        segment: What it is made of.
        tensors: Gradients or parameters of the segment, copied.
        peers: See :meth:`peers`.
    """

    def __init__(
        self,
        index: int,
        is_last: bool,
        segment: Segment,
        tensors: Sequence[torch.Tensor],
        peers: tuple[int, ...],
    ) -> None:
        self._index = index
        self._is_last = is_last
        self._segment = segment
        self._peers = peers
        ends = list(accumulate(t.numel() for t in tensors))
        self._spans = list(zip([0, *ends], ends, strict=False))
        self._buffer = torch.empty(ends[-1], dtype=segment.dtype, device=tensors[0].device)
        for view, tensor in zip(self.gradients(), tensors, strict=True):
            view.copy_(tensor)

    def index(self) -> int:
        """The place in the order in which segments are handed over, from 0 on."""
        return self._index

    def is_last(self) -> bool:
        """Whether it is the last one of the round or backward."""
        return self._is_last

    def buffer(self) -> torch.Tensor:
        """One dimension: the tensors' memory laid end to end. A copy, which may be written."""
        return self._buffer

    def set_buffer(self, tensor: torch.Tensor) -> None:
        """Puts another tensor in place of `buffer`."""
        self._buffer = tensor

    def gradients(self) -> list[torch.Tensor]:
        """The parts of `buffer`, each a view in the shape of its parameter."""
        return self.views_of(self._buffer)

    def parameters(self) -> list[torch.Tensor]:
        """The segment's parameters."""
        return list(self._segment.parameters)

    def peers(self) -> tuple[int, ...]:
        """The ranks that this one sends the segment to or receives it from in this round; where
        gradients are averaged all others. They count as in the model's process group."""
        return self._peers

    def views_of(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The parts of a tensor that is laid out as `buffer`."""
        return [
            flat[begin:end].as_strided(p.shape, p.stride())
            for (begin, end), p in zip(self._spans, self._segment.parameters, strict=True)
        ]


class GradientHook:
    """Replaces the average of gradients by what a hook's futures give, as torch's DDP does.

    Args:
        hook: The user's.
        state: Its first argument.
        peers: The other ranks.
        fail: Raises InvalidArgument with a message, and tells the peers.
    """

    def __init__(self, hook: CommHook, state: Any, peers: tuple[int, ...], fail: _Failing) -> None:
        self._hook = hook
        self._state = state
        self._peers = peers
        self._fail = fail
        self._open: dict[int, tuple[CommBucket, torch.futures.Future[Any]]] = {}

    def post(
        self, place: tuple[int, bool], segment: Segment, grads: Sequence[torch.Tensor]
    ) -> None:
        """Hands a segment's gradients over.

        Args:
            place: The segment's index in the order of handing over, and whether it is the last.
            segment: Whose they are.
            grads: One per parameter.
        """
        bucket = CommBucket(*place, segment, grads, self._peers)
        future = self._hook(self._state, bucket)
        if not isinstance(future, torch._C.Future):
            self._fail(
                "register_comm_hook: callback must return a torch.futures.Future object, but got "
                f"{type(future).__name__}"
            )
        self._open[place[0]] = bucket, future

    def wait(self, index: int, grads: Sequence[torch.Tensor]) -> None:
        """Waits for what the hook has promised and writes it to the gradients."""
        bucket, future = self._open.pop(index)
        flat = _flat_result(future.wait(), bucket, self._fail)
        for grad, view in zip(grads, bucket.views_of(flat), strict=True):
            grad.copy_(view)

    def forget(self) -> None:
        """Drops what was handed over."""
        self._open.clear()


class SentHook:
    """Replaces what gossip sends: with s = hook(x) a round makes x_i + sum_j w_ij (s_j - s_i).

    So the mean over ranks is kept, whatever the hook makes of x.

    Args:
        hook: The user's.
        state: Its first argument.
        order: Of handing over, as indices of segments.
        peers: Those of a segment in its next round, by its index.
        fail: Raises InvalidArgument with a message, and tells the peers.
    """

    def __init__(
        self,
        hook: CommHook,
        state: Any,
        order: Sequence[int],
        peers: Callable[[int], tuple[int, ...]],
        fail: _Failing,
    ) -> None:
        self._hook = hook
        self._state = state
        self._order = list(order)
        self._peers = peers
        self._fail = fail
        self._open: dict[int, tuple[CommBucket, torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def post(self, index: int, segment: Segment) -> list[int]:
        """What is to be posted for a segment: addresses, one per parameter."""
        place = self._order.index(index)
        bucket = CommBucket(
            place, place + 1 == len(self._order), segment, segment.parameters, self._peers(index)
        )
        result = self._hook(self._state, bucket)
        if isinstance(result, torch._C.Future):
            result = result.wait()
        sent = _flat_result(result, bucket, self._fail).to(segment.dtype)
        mixed = sent.clone()
        self._open[index] = bucket, sent, mixed
        return self.addresses(index)

    def addresses(self, index: int) -> list[int]:
        """Those that `post` gave for an open segment."""
        bucket, _, mixed = self._open[index]
        return [view.data_ptr() for view in bucket.views_of(mixed)]

    def addresses_among(self, others: Sequence[int], spans: Sequence[slice]) -> list[int]:
        """Those of open segments; of segments that are not open those among `others`.

        Args:
            others: One address per parameter of the model.
            spans: Which of them are a segment's, by its index.
        """
        found = list[int]()
        for index, span in enumerate(spans):
            found += self.addresses(index) if index in self._open else others[span]
        return found

    @torch.no_grad()
    def mixed(self, index: int, tensors: Sequence[torch.Tensor]) -> None:
        """Adds to the parameters, or to what stands for them, what mixing has changed."""
        bucket, sent, mixed = self._open.pop(index)
        torch._foreach_add_(list(tensors), bucket.views_of(mixed - sent))

    def forget(self) -> None:
        """Drops what is open."""
        self._open.clear()


def _flat_result(result: Any, bucket: CommBucket, fail: _Failing) -> torch.Tensor:
    """The one tensor that a hook gave, in one dimension and of the right size."""
    if isinstance(result, (list, tuple)) and len(result) == 1:
        result = result[0]
    wanted = sum(p.numel() for p in bucket.parameters())
    if not isinstance(result, torch.Tensor) or result.numel() != wanted:
        given = (
            f"shape {tuple(result.shape)}" if isinstance(result, torch.Tensor) else f"{result!r}"
        )
        fail(
            f"register_comm_hook: expected of the hook one tensor of the {wanted} elements of "
            f"bucket {bucket.index()}, got {given}"
        )
    flat: torch.Tensor = result.reshape(-1)
    return flat
