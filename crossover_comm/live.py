"""Objects that are found as long as somebody else holds them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["LiveObjects"]

T = TypeVar("T")


class LiveObjects(Generic[T]):
    """A set of weakly held objects, in the order in which they came.

    Iteration goes over a snapshot: any thread may add, and the garbage collector remove, meanwhile.

    Args:
        start: Called when the first object comes.
        stop: Called when the last one is gone.
    """

    def __init__(self, start: Callable[[], None], stop: Callable[[], None]) -> None:
        self._start = start
        self._stop = stop
        self._lock = threading.RLock()  # a collection inside add() may run _discard()
        self._refs: tuple[weakref.ref[T], ...] = ()

    def add(self, item: T) -> None:
        ref = weakref.ref(item, self._discard)
        with self._lock:
            was_empty = not self._refs
            self._refs = (*self._refs, ref)
            if was_empty:
                self._start()

    def remove(self, item: T) -> None:
        """It is no longer found, though somebody holds it; nothing if it was not."""
        for ref in self._refs:
            if ref() is item:
                self._discard(ref)

    def __iter__(self) -> Iterator[T]:
        for ref in self._refs:
            item = ref()
            if item is not None:
                yield item

    def _discard(self, gone: weakref.ref[T]) -> None:
        with self._lock:
            self._refs = tuple(ref for ref in self._refs if ref is not gone)
            if not self._refs:
                self._stop()
