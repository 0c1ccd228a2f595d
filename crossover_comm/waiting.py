"""Mode "forward": each segment is awaited where the forward first reads it.

In eager mode the hook mixes the parameters. A compiled graph may work on copies that it writes back
at its end, and a write behind its back would be lost; there the hook records a custom op that
mixes whatever tensors it is handed.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from crossover_comm.segments import Segment

__all__ = ["ForwardHook", "InertHook", "OutputHook", "SegmentWaiter", "register_wait_hooks"]


class SegmentWaiter(Protocol):
    """Who is told that a segment is about to be read."""

    def await_segment(
        self, index: int, grad_enabled: bool, tensors: Sequence[torch.Tensor] | None
    ) -> None: ...


class InertHook:
    """What a hook becomes in a copy of its module: the copy is not gossiped."""

    def __call__(self, *_: object) -> None:
        return None


class WaitHook:
    """Forward pre-hook of one module that reads some segments.

    Args:
        waiter: Held weakly.
        key: The waiter's number in the registry, for compiled graphs.
        segments: Index and parameters of each segment to be awaited, in order.
    """

    def __init__(
        self,
        waiter: SegmentWaiter,
        key: int,
        segments: Sequence[tuple[int, tuple[nn.Parameter, ...]]],
    ) -> None:
        self._waiter = weakref.ref(waiter)
        self._key = key
        with _defining:  # a cached function may run twice at once
            self._segments = tuple(
                (index, parameters, _op(len(parameters))) for index, parameters in segments
            )

    def __call__(self, module: nn.Module, args: Any) -> None:
        grad_enabled = torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            with torch.no_grad():
                for index, parameters, op in self._segments:
                    op(*parameters, self._key, index, grad_enabled)
            return
        waiter = self._waiter()
        if waiter is None:
            return
        for index, _, _ in self._segments:
            waiter.await_segment(index, grad_enabled, None)

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()


class ForwardHook:
    """Forward pre-hook of a whole model: calls `forward_begins`, whatever the arguments."""

    def __init__(self, forward_begins: Callable[[], None]) -> None:
        self._forward_begins = forward_begins

    def __call__(self, module: nn.Module, args: Any) -> None:
        self._forward_begins()

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()


class OutputHook:
    """Forward hook of a whole model: hands on what it returns."""

    def __init__(self, watch: Callable[[Any], None]) -> None:
        self._watch = watch

    def __call__(self, module: nn.Module, args: Any, outputs: Any) -> None:
        self._watch(outputs)

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()


_waiters: weakref.WeakValueDictionary[int, SegmentWaiter] = weakref.WeakValueDictionary()
_keys = itertools.count()
_defining = threading.Lock()


def register_wait_hooks(
    model: nn.Module, segments: Sequence[Segment], waiter: SegmentWaiter
) -> list[RemovableHandle]:
    """Makes every module that reads a segment await it first, before other pre-hooks.

    Args:
        model: The model that `segments` were cut from.
        waiter: Told of each reading; held weakly.
    """
    key = next(_keys)
    _waiters[key] = waiter
    awaited: dict[str, list[tuple[int, tuple[nn.Parameter, ...]]]] = {}
    for index, segment in enumerate(segments):
        for path in segment.wait_modules:
            awaited.setdefault(path, []).append((index, segment.parameters))
    return [
        model.get_submodule(path).register_forward_pre_hook(
            WaitHook(waiter, key, items), prepend=True
        )
        for path, items in awaited.items()
    ]


@functools.cache
def _library() -> torch.library.Library:
    """Where the ops live, as long as this answer."""
    return torch.library.Library("crossover_comm", "FRAGMENT")


@functools.cache
def _op(num_tensors: int) -> Callable[..., None]:
    """``torch.ops.crossover_comm.await_segment_<n>``: awaits a segment of so many tensors.

    One op for each number, since the compiler of torch 2.4 takes none that writes to a list of
    tensors. Not by ``torch.library.custom_op``: that counts the tensors as written before it calls,
    so that a write of the user's could no longer be told.
    """
    library = _library()
    name = f"await_segment_{num_tensors}"
    tensors = "".join(f"Tensor(a{i}!) tensor{i}, " for i in range(num_tensors))
    library.define(f"{name}({tensors}int key, int index, bool grad_enabled) -> ()")
    library.impl(name, _await_segment, "CompositeExplicitAutograd")
    torch.library.register_fake(f"crossover_comm::{name}", lambda *_: None, lib=library)
    op: Callable[..., None] = getattr(torch.ops.crossover_comm, name)
    return op


def _await_segment(*args: Any) -> None:
    *tensors, key, index, grad_enabled = args
    waiter = _waiters.get(key)
    if waiter is not None:
        waiter.await_segment(index, grad_enabled, tensors)
