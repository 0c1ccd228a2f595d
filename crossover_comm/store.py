"""The key-value store through which the ranks find each other."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from crossover_comm.errors import ProgressTimeout, TransportError
from crossover_comm.launch import Launch

__all__ = ["await_key", "open_store", "store_host"]

_SLICE = timedelta(seconds=1)


def open_store(launch: Launch, timeout_s: float) -> Store:
    """The store at the launch's master address.

    Rank 0 hosts it, unless the launcher does. It stays open until the process ends: after
    shutdown() and a new init() the same store serves again, so that no rank can find a dying one.

    Raises:
        TransportError: It cannot be opened, or nobody answers in time.
    """
    assert launch.master_addr is not None
    assert launch.master_port is not None
    hosts = launch.rank == 0 and not launch.agent_store
    try:
        return _open(launch.master_addr, launch.master_port, hosts, timeout_s)
    except dist.DistError as error:
        place = f"{launch.master_addr}:{launch.master_port}"
        cause = str(error).partition("\n")[0]
        what = (
            f"rank 0 cannot host the store at {place}"
            if hosts
            else f"rank {launch.rank} cannot reach the store of rank 0 at {place} "
            f"within {timeout_s:g} s"
        )
        raise TransportError(f"{what}: {cause}") from error


@functools.cache
def _open(host: str, port: int, hosts: bool, timeout_s: float) -> Store:
    # Multi-tenant: torch.distributed may host its own store at the same address and port later.
    return TCPStore(
        host,
        port,
        None,
        hosts,
        timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
    )


def await_key(
    store: Store, key: str, check: Callable[[], None], timeout_s: float, absence: str
) -> None:
    """Waits for a key that another rank sets.

    Args:
        store: Shared with it.
        key: The key.
        check: Raises if there is no use in waiting any more; called every second.
        timeout_s: Seconds to wait.
        absence: What has not happened then, for the message.

    Raises:
        ProgressTimeout: It was not set in time.
        TransportError: The store does not answer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            store.wait([key], _SLICE)
            return
        except RuntimeError:  # out of time; if the store is gone instead, check() says so
            check()
            _require_answer(store, key)
        if time.monotonic() > deadline:
            raise ProgressTimeout(f"{absence} for {timeout_s:g} s")


def _require_answer(store: Store, key: str) -> None:
    try:
        store.check([key])
    except dist.DistError as error:
        cause = str(error).partition("\n")[0]
        raise TransportError(f"the store does not answer ({cause})") from error


def store_host(store: Store) -> str | None:
    """The host of a TCPStore, also below prefixes; None for other kinds of store."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return str(store.host) if isinstance(store, TCPStore) else None
