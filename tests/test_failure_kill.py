"""A rank is killed in mid-training: what each of the others says, and what it leaves behind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
import torch
from failing import PLACE, Training, heard_from, holdings_of, report_holdings_at_exit
from spawn import Ranks, start_ranks
from torch.utils.data import DataLoader, IterableDataset

import crossover_comm as cc

SIZE = 4
TIMEOUT_S = 60.0  # of liveness: far longer than the survivors may need
ENDED = {
    "shm": r"process {pid} ended \(shared memory with rank {rank} \(process {pid}\)\)",
    "tcp": r"(connection closed|reset by peer|connection closed while sending) "
    r"\(tcp rank {rank} \(127\.0\.0\.1:\d+\)\)",
}


class Noise(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.randn(6)


def train_for_ever(transport: str, num_workers: str) -> None:
    report_holdings_at_exit()
    cc.init(transport=transport, timeout=TIMEOUT_S)
    training = Training()
    loader = DataLoader(
        Noise(),
        batch_size=4,
        num_workers=int(num_workers),
        multiprocessing_context="fork" if num_workers != "0" else None,
    )
    training.run_for_ever(loader)


def await_training(ranks: Ranks) -> None:
    for rank in range(SIZE):
        ranks.wait_for_line(rank, "training")


@pytest.mark.parametrize(
    ("transport", "num_workers", "victim"),
    [("shm", 0, 0), ("shm", 1, 2), ("tcp", 1, 2)],
    ids=["shm-of-the-store", "shm-with-data-workers", "tcp-with-data-workers"],
)
def test_each_survivor_names_the_killed_rank_and_leaves_nothing(
    transport: str, num_workers: int, victim: int
) -> None:
    with start_ranks(train_for_ever, SIZE, transport, str(num_workers)) as ranks:
        await_training(ranks)
        pids = [ranks.pid(rank) for rank in range(SIZE)]
        ranks.kill(victim)
        results = ranks.wait()
    ended = ENDED[transport].format(rank=victim, pid=pids[victim])
    message = re.compile(
        f"TransportError: {PLACE}{heard_from(SIZE)}"
        f"rank {victim}: connection ended without a farewell: {ended}"
    )
    for result in results[:victim] + results[victim + 1 :]:
        assert message.search(result.stderr), result.stderr
        assert result.exit_code == 1
        assert result.left_processes == ()
        held = holdings_of(result)
        assert not {name for name in held if name.startswith("thread")} - {"thread pt_tcpstore_uv"}
        assert not held.keys() & {"[pidfd]", "/memfd", "mapped memfd"}
        if result.rank != 0:  # which holds the store's sockets
            assert held.get("socket", 0) == 1, "one to the store"
            assert held.get("[eventfd]", 0) <= 1, "the engine's own, while its object lives"
        assert not [name for name in os.listdir("/dev/shm") if str(pids[result.rank]) in name]
