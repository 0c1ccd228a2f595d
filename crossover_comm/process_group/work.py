"""What a collective of torch.distributed returns: a handle to wait for, and its future."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from torch._C._distributed_c10d import Work

from crossover_comm import _C
from crossover_comm.errors import CrossoverError, ProgressTimeout

__all__ = ["CollectiveWork", "Watcher"]

_SLICE_S = 0.2  # a blocked wait looks for Ctrl-C this often
_NO_TIMEOUT = timedelta(0)


class CollectiveWork(Work):
    """One or several calls of the engine, which are over together.

    Args:
        engine: Runs the calls.
        watcher: Completes futures.
        calls: All of them under way.
        result: What :meth:`result` and the future give.
        settle: Called once when all calls are complete, before anyone learns of it.
    """

    def __init__(
        self,
        engine: _C.Engine,
        watcher: Watcher,
        calls: Sequence[_C.Call],
        result: list[torch.Tensor],
        settle: Callable[[], None],
    ) -> None:
        super().__init__()
        self._engine = engine
        self._watcher = watcher
        self._calls = list(calls)
        self._result = result
        self._settle = settle
        self._lock = threading.Lock()
        self._is_settled = False
        self._error: Exception | None = None
        self._future: torch.futures.Future[list[torch.Tensor]] | None = None

    @property
    def calls(self) -> Sequence[_C.Call]:
        """The calls that are waited for."""
        return self._calls

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        """Returns True when the tensors hold the result.

        Args:
            timeout: How long to wait; 0: as long as the call itself may take.

        Raises:
            ProgressTimeout: Not within `timeout`, which ends nothing: wait again; or the call's own
                timeout has passed, which ends the group.
            CrossoverError: The group has failed.
        """
        limit_s = timeout.total_seconds()
        deadline = time.monotonic() + limit_s if limit_s > 0 else float("inf")
        for call in self._calls:
            while not self._wait_call(call, min(_SLICE_S, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    raise ProgressTimeout(f"wait: not complete within {limit_s:g} s")
        self.settle()
        return True

    def synchronize(self) -> None:
        """As :meth:`wait`."""
        self.wait()

    def is_over(self) -> bool:
        """Whether the engine has let go of the tensors' memory."""
        return all(self._engine.is_over(call) for call in self._calls)

    def is_completed(self) -> bool:
        """Whether it is over, with or without success. Does not block."""
        if not self.is_over():
            return False
        with contextlib.suppress(CrossoverError):
            self.wait()
        return True

    def is_success(self) -> bool:
        """Whether it is complete; False also while it is under way."""
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        """Why it failed; None if it has not."""
        return self._error if self.is_completed() else None

    def result(self) -> list[torch.Tensor]:
        """The tensors, once it is complete."""
        self.wait()
        return self._result

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Completed with the tensors, or with the exception, by a thread of the group."""
        with self._lock:
            known, future = self._future, self._future or torch.futures.Future()
            self._future = future
        if known is None:
            self._watcher.watch(self)
        return future

    def settle(self) -> None:
        """All calls are complete: leaves the result in the caller's tensors."""
        with self._lock:
            if not self._is_settled:
                self._settle()
                self._is_settled = True

    def complete_future(self, error: Exception | None) -> None:
        """For the watcher: it is over."""
        assert self._future is not None
        if error is not None:
            self._future.set_exception(error)  # type: ignore[arg-type]  # torch's stub
            return
        self.settle()
        self._future.set_result(self._result)

    def _wait_call(self, call: _C.Call, slice_s: float) -> bool:
        try:
            return self._engine.wait_call(call, max(slice_s, 0.0))
        except CrossoverError as error:
            self._error = error
            raise


class Watcher:
    """A thread that completes the futures of works; started by the first of them.

    Args:
        engine: Of the works.
    """

    def __init__(self, engine: _C.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._works: dict[int, CollectiveWork] = {}  # by the id of each call under way
        self._num_open: dict[CollectiveWork, int] = {}
        self._error: Exception | None = None

    def watch(self, work: CollectiveWork) -> None:
        """Completes the work's future when it is over."""
        with self._lock:
            error = self._error
            if error is None:
                self._num_open[work] = len(work.calls)
                self._works.update({call.id: work for call in work.calls})
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="crossover futures", daemon=True
                )
                self._thread.start()
        if error is not None:
            work.complete_future(error)
        elif not work.calls:
            self._finish(work)
        for call in work.calls:
            self._engine.watch_call(call)

    def _run(self) -> None:
        try:
            while True:
                for index in self._engine.wait_watched(_SLICE_S):
                    self._count(index)
        except CrossoverError as error:
            self._fail(error)

    def _count(self, index: int) -> None:
        with self._lock:
            work = self._works.pop(index)
            self._num_open[work] -= 1
            is_last = self._num_open[work] == 0
        if is_last:
            self._finish(work)

    def _finish(self, work: CollectiveWork) -> None:
        with self._lock:
            del self._num_open[work]
        work.complete_future(None)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._error = error
            works = list(self._num_open)
            self._num_open.clear()
            self._works.clear()
        for work in works:
            work.complete_future(error)
