"""init and shutdown in every order, jobs of one rank, and what forked children may do."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
import torch
from failing import Training, init_together, message_of, said_by
from spawn import ROOT, run_ranks

import crossover_comm as cc
from crossover_comm import _C

SIZE = 3
HERE = Path(__file__).resolve()
FORWARD = cc.GossipConfig(overlap="forward", segments=200)
OURS = ("[pidfd]", "memfd:", "[eventfd]")


def in_child(work: Callable[[], None]) -> int:
    """Forks; the child ends as Python programs end. Its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        work()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class PipeSockets:
    """Files of the sockets that became pipes of the engine."""

    def __init__(self) -> None:
        self._files: set[tuple[int, int]] = set()
        self._make = _C.tcp_pipe

    def tcp_pipe(self, fd: int, label: str) -> _C.Pipe:
        self._files.add(_file_of(fd))
        return self._make(fd, label)

    def assert_held(self, *, held: bool) -> None:
        here = {_file_of(fd) for fd in _descriptors()}
        assert len(self._files) == SIZE - 1
        assert self._files <= here if held else not self._files & here


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if _is_open(int(name))]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _file_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def misuse(training: Training) -> dict[str, str]:
    """What a child is told that goes on as if it were the rank."""
    return {
        "step": message_of(training.step),
        "synchronize": message_of(cc.synchronize, training.model),
        "allreduce": message_of(cc.allreduce, torch.ones(1)),
        "wrap": message_of(cc.DistributedDataParallel, torch.nn.Linear(2, 2)),
        "init": message_of(cc.init),
        "counters": message_of(cc.counters),
    }


def raise_in_child() -> NoReturn:
    raise LookupError("of the child alone")


def live_twice() -> None:
    """Over TCP, then over shared memory: each time children come and go, and init is repeated."""
    rank = int(os.environ["RANK"])
    sockets = PipeSockets()
    with mock.patch.object(_C, "tcp_pipe", sockets.tcp_pipe):
        init_together(transport="tcp", timeout=20)
    training = Training(FORWARD)
    training.run(3)
    sockets.assert_held(held=True)

    def work_of_child() -> None:
        nonlocal training
        sockets.assert_held(held=False)
        assert cc.rank() == rank
        print("said", json.dumps(misuse(training)), flush=True)
        del training
        gc.collect()

    assert in_child(work_of_child) == 0
    assert in_child(raise_in_child) == 1
    training.run(3)
    assert cc.allreduce(torch.ones(1), average=False).item() == SIZE
    cc.shutdown()
    cc.shutdown()
    live_on_shared_memory()


def live_on_shared_memory() -> None:
    before = _kinds()
    cc.init(transport="shm")
    cc.init(transport="shm")
    assert "timeout_s=9.0 (before: 30.0)" in message_of(cc.init, transport="shm", timeout=9)
    assert _kinds() > before
    training = Training(FORWARD)
    training.run(3)

    def work_of_child() -> None:
        assert set(_kinds()) <= set(before)

    assert in_child(work_of_child) == 0
    training.run(3)
    cc.synchronize()
    cc.barrier()


def _kinds() -> set[str]:
    """Descriptors of the kinds that belong to shared memory, by number."""
    links = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()}
    return {f"{fd} {link}" for fd, link in links.items() if any(kind in link for kind in OURS)}


def test_ranks_leave_and_meet_again_and_forked_children_harm_nobody() -> None:
    for result in run_ranks(live_twice, SIZE):
        for message in said_by(result).values():
            assert message.startswith(
                "InvalidArgument: crossover_comm was used in a process forked after init()"
            ), message
        assert "LookupError: of the child alone" in result.stderr
        assert "Exception ignored" not in result.stderr
        assert result.left_processes == ()


def train_alone() -> None:
    cc.init()
    training = Training()
    training.run(3)
    assert (cc.rank(), cc.size(), cc.local_rank(), cc.local_size()) == (0, 1, 0, 1)
    assert cc.allreduce(torch.ones(2)).tolist() == [1.0, 1.0]
    assert cc.consensus_distance(training.model) == 0.0
    with cc.averaged(training.model):
        cc.broadcast_parameters(training.model)
    cc.barrier()
    assert set(cc.counters().values()) == {0}
    assert in_child(lambda: training.run(3)) == 0, "there is nothing to be in the way of"
    cc.shutdown()
    cc.init()
    cc.synchronize()
    print("trained")


@pytest.mark.parametrize(
    "launcher",
    [[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]],
    ids=["alone", "torchrun"],
)
def test_one_rank_trains_as_if_nothing_were_wrapped(launcher: list[str]) -> None:
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("RANK", "WORLD_SIZE"):
        given.pop(name, None)
    ran = subprocess.run(
        [sys.executable, *launcher, str(HERE.parent / "spawn.py"), str(HERE), "train_alone"],
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert "trained" in ran.stdout
