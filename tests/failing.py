"""What the failure tests share: a small job to be disturbed, and what a process holds."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from models import mlp
from spawn import RankResult
from torch import nn
from torch._C._distributed_c10d import TCPStore

import crossover_comm as cc

GOSSIP = cc.GossipConfig(segments=200)
"""Cuts the model of `Training` into four segments."""

PLACE = r"plan 0, round \d+, segment \d+ '\S+' \(send to [\d, ]+, receive from [\d, ]+\): "
"""How the message of a survivor begins."""


def heard_from(size: int) -> str:
    """Pattern of what stands before a first cause that another rank has seen."""
    rank = f"[0-{size - 1}]"
    return f"(rank {rank} stopped; first cause, seen by rank {rank}: )?"


def init_together(**settings: Any) -> TCPStore:
    """cc.init() when all ranks have come, so that short timeouts do not count their start."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        None,
        rank == 0,
        timedelta(seconds=60),
        wait_for_workers=False,
        multi_tenant=True,
    )
    store.set(f"has come/{rank}", "")
    store.wait([f"has come/{other}" for other in range(size)])
    cc.init(rank=rank, size=size, store=store, **settings)
    return store


class Training:
    """A replica with data of its own, stepped one by one."""

    def __init__(self, gossip: cc.GossipConfig = GOSSIP) -> None:
        torch.manual_seed(cc.rank())
        self.model = cc.DistributedDataParallel(mlp(6, 8, 8, 3), gossip=gossip)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def step(self, x: torch.Tensor | None = None) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 6) if x is None else x).square().mean().backward()
        self.optimizer.step()

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    def run_for_ever(self, batches: Iterable[torch.Tensor] | None = None) -> None:
        """Prints "training" when it is in full swing."""
        data: Iterator[torch.Tensor | None] = itertools.repeat(None)
        for number, x in enumerate(data if batches is None else batches):
            self.step(x)
            if number == 5:
                print("training", flush=True)

    @property
    def weights(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


def message_of(call: Callable[..., object], *args: object, **kwargs: Any) -> str:
    """The type and text of the error that a call raises."""
    try:
        call(*args, **kwargs)
    except cc.CrossoverError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def said_by(result: RankResult) -> dict[str, str]:
    """The JSON object that a worker has printed after "said"."""
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("said ")]
    messages: dict[str, str] = json.loads(line.removeprefix("said "))
    return messages


def block_signal() -> None:
    """From now on, also in threads to come, SIGUSR1 waits until `await_signal` takes it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def await_signal() -> None:
    """The training thread is busy elsewhere, until the test sends SIGUSR1."""
    signal.sigwait({signal.SIGUSR1})


def report_holdings_at_exit() -> None:
    """Called before init(): after its shutdown the worker prints what it holds more than now."""
    before = _holdings()
    process = os.getpid()

    def report() -> None:
        if os.getpid() == process:
            print("holdings", json.dumps(_holdings() - before), flush=True)

    atexit.register(report)


def holdings_of(result: RankResult) -> dict[str, int]:
    """What a worker held at its exit beyond what it held before init()."""
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("holdings ")]
    held: dict[str, int] = json.loads(line.removeprefix("holdings "))
    return held


def _holdings() -> Counter[str]:
    """Descriptors by kind, names of foreign threads, mappings of anonymous files."""
    held: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # the one of this very iteration
            continue
        held[re.sub(r"anon_inode:|:.*", "", target)] += 1
    own = _threads_of_python()
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) not in own:
            held["thread " + (task / "comm").read_text().strip()] += 1
    held["mapped memfd"] += Path("/proc/self/maps").read_text().count("/memfd:")
    return held


def progress_threads() -> list[int]:
    """Ids of the threads of this process that neither Python nor a library has named."""
    own = _threads_of_python()
    main_name = Path("/proc/self/comm").read_text()
    return [
        int(task.name)
        for task in Path("/proc/self/task").iterdir()
        if int(task.name) not in own and (task / "comm").read_text() == main_name
    ]


def _threads_of_python() -> set[int | None]:
    # The main thread's native_id is the parent's in a fork, before Python 3.13.
    return {os.getpid(), *(thread.native_id for thread in threading.enumerate())}
