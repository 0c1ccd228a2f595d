"""Worker processes for tests, started one by one: no launcher that would end the others.

def worker() -> None:            # a function of a test module
    cc.init(); ...

def test_...():
    results = run_ranks(worker, 4)                        # all must exit 0, else the test fails
or
    with start_ranks(worker, 4) as ranks:
        ranks.wait_for_line(2, "ready")
        ranks.kill(2)
        results = ranks.wait()
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nursery import ForkedWorker, call

__all__ = ["RankResult", "Ranks", "free_port", "run_ranks", "start_ranks"]

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 120.0
_LAUNCHER_VARIABLES = ("OMPI_", "PMI", "SLURM_", "TORCHELASTIC_", "CROSSOVER_", "GROUP_", "ROLE_")


@dataclass(frozen=True)
class RankResult:
    """How one worker ended. A negative exit code is a signal's number; stragglers are killed.

    `left_processes`: names of the processes that it had started and that still ran after its end.
    """

    rank: int
    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool
    left_processes: tuple[str, ...] = ()


class _Worker:
    def __init__(
        self,
        rank: int,
        process: subprocess.Popen[str] | ForkedWorker,
        news: threading.Condition,
    ) -> None:
        self.rank = rank
        self.process = process
        self.lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.timed_out = False
        self.left_processes: tuple[str, ...] = ()
        self._news = news
        assert process.stdout is not None
        assert process.stderr is not None
        streams = {"stdout": process.stdout, "stderr": process.stderr}
        self._readers = [
            threading.Thread(target=self._read, args=(self.lines[name], stream), daemon=True)
            for name, stream in streams.items()
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, lines: list[str], stream: IO[str]) -> None:
        for line in stream:
            with self._news:
                lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def is_reading(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def end_by(self, deadline: float) -> None:
        try:
            self.process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            self.timed_out = True
        if not self.timed_out and not self.left_processes:
            self.left_processes = tuple(_names_in_session(self.process.pid))
        self.kill_all()
        self.process.wait()
        for reader in self._readers:
            reader.join(5.0)

    def kill_all(self) -> None:
        """The worker and whatever it has started: they are one process group of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def result(self) -> RankResult:
        return RankResult(
            self.rank,
            self.process.wait(),
            "".join(self.lines["stdout"]),
            "".join(self.lines["stderr"]),
            self.timed_out,
            self.left_processes,
        )


class Ranks:
    """Running workers."""

    def __init__(self, workers: Sequence[_Worker], news: threading.Condition) -> None:
        self._workers = workers
        self._news = news

    def pid(self, rank: int) -> int:
        return self._workers[rank].process.pid

    def send_signal(self, rank: int, number: signal.Signals) -> None:
        """To the worker alone, not to what it has started."""
        os.kill(self.pid(rank), number)

    def kill(self, rank: int) -> None:
        """kill -9."""
        self.send_signal(rank, signal.SIGKILL)

    def wait_for_line(
        self, rank: int, text: str, timeout_s: float = TIMEOUT_S, *, stream: str = "stdout"
    ) -> str:
        """The first line of the rank's standard output that contains `text`, once it is there.

        `stream`: "stderr" for its standard error instead.
        """
        worker = self._workers[rank]
        lines = worker.lines[stream]

        def found() -> str | None:
            return next((line for line in lines if text in line), None)

        with self._news:
            self._news.wait_for(lambda: found() or not worker.is_reading(), timeout_s)
            line = found()
        if line is None:
            raise AssertionError(
                f"rank {rank} did not print {text!r}; its standard error:\n"
                + "".join(worker.lines["stderr"])
            )
        return line

    def wait(self, timeout_s: float = TIMEOUT_S) -> list[RankResult]:
        """Waits for all workers; those that are left after `timeout_s` are killed."""
        deadline = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.end_by(deadline)
        return [worker.result() for worker in self._workers]

    def wait_for(self, rank: int, timeout_s: float = TIMEOUT_S) -> RankResult:
        """Waits for one worker; it is killed if it is left after `timeout_s`."""
        worker = self._workers[rank]
        worker.end_by(time.monotonic() + timeout_s)
        return worker.result()

    def kill_all(self) -> None:
        for worker in self._workers:
            worker.kill_all()


@contextlib.contextmanager
def start_ranks(
    target: Callable[..., None],
    size: int,
    *args: str,
    env: Mapping[str, str] | None = None,
    env_of: Callable[[int], Mapping[str, str]] | None = None,
    command_prefix: Callable[[int], Sequence[str]] | None = None,
) -> Iterator[Ranks]:
    """Starts `size` workers that call `target(*args)`; kills what is left of them on exit.

    Args:
        target: A function at the top of a module; each worker imports the module by its path.
        size: Number of ranks.
        args: Strings for `target`.
        env: Additional environment of all ranks.
        env_of: Additional environment of one rank.
        command_prefix: Put before the command of a rank, e.g. ["ip", "netns", "exec", "h0"].
    """
    news = threading.Condition()
    workers: list[_Worker] = []
    port = str(free_port())
    try:
        for rank in range(size):
            own = {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            environ = {
                **_clean_environ(), **own, **(env or {}), **(env_of(rank) if env_of else {})
            }  # fmt: skip
            prefix = command_prefix(rank) if command_prefix else ()
            workers.append(_Worker(rank, _start(target, args, environ, prefix), news))
        yield Ranks(workers, news)
    finally:
        for worker in workers:
            worker.kill_all()
            worker.process.wait()


def run_ranks(
    target: Callable[..., None],
    size: int,
    *args: str,
    timeout_s: float = TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    env_of: Callable[[int], Mapping[str, str]] | None = None,
    check: bool = True,
) -> list[RankResult]:
    """Runs `size` workers to their end; with `check`, each must exit with 0 in time."""
    with start_ranks(target, size, *args, env=env, env_of=env_of) as ranks:
        results = ranks.wait(timeout_s)
    if check:
        for result in results:
            if result.exit_code != 0:
                raise AssertionError(
                    f"rank {result.rank} ended with {result.exit_code}"
                    f"{' (killed: out of time)' if result.timed_out else ''}\n"
                    f"--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
                )
    return results


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _names_in_session(session: int) -> Iterator[str]:
    """Of the processes of a session that have not ended; each worker has a session of its own."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            state, _, _, found = rest.split()[:4]
            if int(found) == session and state not in "ZX":
                yield name


def _start(
    target: Callable[..., None], args: Sequence[str], env: Mapping[str, str], prefix: Sequence[str]
) -> subprocess.Popen[str] | ForkedWorker:
    path = target.__code__.co_filename
    if not prefix:
        return ForkedWorker(path, target.__name__, args, env)
    return subprocess.Popen(
        [*prefix, sys.executable, str(Path(__file__).resolve()), path, target.__name__, *args],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _clean_environ() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHER_VARIABLES)
    }
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    call(sys.argv[1], sys.argv[2], sys.argv[3:])
