"""Ranks as threads of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from unittest import mock

from torch._C._distributed_c10d import HashStore, PrefixStore

from crossover_comm import _C
from crossover_comm.agreement import StoreGroup
from crossover_comm.context import Context, Settings
from crossover_comm.gloo import GlooGroup
from crossover_comm.launch import Launch

__all__ = ["in_contexts", "in_ranks", "outcomes"]

TIMEOUT_S = 60.0

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


def in_contexts(size: int, work: Callable[[Context], ResultT]) -> list[ResultT]:
    """What `work` returns on each of `size` ranks that have met; each sees its own context."""
    network = _C.LocalNetwork(size)
    store = HashStore()
    own = threading.local()

    def one(rank: int) -> ResultT:
        own.context = _context(network, store, rank, size)
        try:
            return work(own.context)
        finally:
            own.context.engine.shutdown(TIMEOUT_S)

    def current_context() -> Context:
        context: Context = own.context
        return context

    with (
        mock.patch("crossover_comm.collectives.current_context", current_context),
        mock.patch("crossover_comm.hooks.current_context", current_context),
        ThreadPoolExecutor(size) as pool,
    ):
        return list(pool.map(one, range(size)))


def _context(network: _C.LocalNetwork, store: HashStore, rank: int, size: int) -> Context:
    settings = Settings(
        rank=rank,
        size=size,
        store=store,
        timeout_s=TIMEOUT_S,
        stall_timeout_s=TIMEOUT_S,
        transport="auto",
        interface=None,
        check_finite=True,
        event_capacity=0,
    )
    engine = _C.Engine(
        rank=rank,
        size=size,
        pipes=network.take_pipes(rank),
        timeout_s=TIMEOUT_S,
        stall_timeout_s=TIMEOUT_S,
        stall_warning_s=TIMEOUT_S,
        raise_on_non_finite=True,
        event_capacity=0,
        incarnation=rank,
        warn=print,
    )
    gloo = None
    if size > 1:
        gloo = GlooGroup(PrefixStore("gloo", store), rank, size, "127.0.0.1", TIMEOUT_S)
    group = StoreGroup(PrefixStore("group", store) if size > 1 else None, rank, size)
    return Context(Launch(rank, size, rank, size), settings, group, engine, gloo)
