"""Ranks as threads of the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch._C._distributed_c10d import HashStore

from crossover_comm.agreement import StoreGroup

__all__ = ["in_ranks", "outcomes"]

ResultT = TypeVar("ResultT")


def in_ranks(size: int, work: Callable[[StoreGroup], ResultT]) -> list[ResultT]:
    """What `work` returns on each of `size` ranks, run at once on one store."""
    store = HashStore()
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(StoreGroup(store, rank, size)), range(size)))


def outcomes(size: int, work: Callable[[StoreGroup], object]) -> list[str]:
    """As in_ranks, but each rank's exception, as "Type: message", or "returned"."""

    def guarded(group: StoreGroup) -> str:
        try:
            work(group)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "returned"

    return in_ranks(size, guarded)
