"""torch's gloo collectives on a process group of our own, for everything outside training."""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import BroadcastOptions, ProcessGroupGloo, Store

from crossover_comm.errors import TransportError

__all__ = ["GlooGroup"]


class GlooGroup:
    """Beside the default process group, if there is one, and independent of it.

    Its connections are plain TCP: they are neither authenticated nor encrypted.

    Args:
        store: For this group alone.
        rank: Of this process.
        size: Number of ranks.
        address: Address of this host that gloo listens on.
        timeout_s: For each operation.

    Raises:
        TransportError: Not all ranks could be connected.
    """

    def __init__(self, store: Store, rank: int, size: int, address: str, timeout_s: float) -> None:
        self.address = address
        gloo: Any = ProcessGroupGloo  # torch's stub knows a part of it only
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=address)]
        options._timeout = timedelta(seconds=timeout_s)
        try:
            self._group = gloo(store, rank, size, options)
        except RuntimeError as error:
            raise _failure("set-up", error) from error
        os.register_at_fork(after_in_child=functools.partial(_abandon, weakref.ref(self)))

    def barrier(self, what: str) -> None:
        """Returns when all ranks have called it. `what` names the operation in messages."""
        self._wait(what, lambda: self._group.barrier())

    def sum(self, tensor: torch.Tensor, what: str) -> None:
        """Replaces a dense CPU tensor by the sum over all ranks, the same bits on each."""
        self._wait(what, lambda: self._group.allreduce([tensor]))

    def broadcast(self, tensor: torch.Tensor, root_rank: int, what: str) -> None:
        """Replaces a dense CPU tensor by the root's."""
        options = BroadcastOptions()
        options.rootRank = root_rank
        options.rootTensor = 0
        self._wait(what, lambda: self._group.broadcast([tensor], options))

    def _wait(self, what: str, start: Callable[[], Any]) -> None:
        try:
            start().wait()
        except RuntimeError as error:
            raise _failure(what, error) from error


def _abandon(reference: weakref.ref[GlooGroup]) -> None:
    """In a forked child gloo must not be destroyed: it would wait for threads left behind."""
    group = reference()
    if group is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group._group))


def _failure(what: str, error: Exception) -> TransportError:
    return TransportError(f"{what}: gloo failed: {str(error).partition(chr(10))[0]}")
