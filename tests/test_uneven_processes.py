"""Uneven inputs in processes of their own, one of which is killed: nobody hangs."""

from __future__ import annotations

import re

import pytest
from failing import Training, heard_from
from spawn import start_ranks

import crossover_comm as cc

SIZE = 3
SERVING = 2
TIMEOUT_S = 60.0  # of liveness: far longer than the survivors may need


def train_unevenly(preset: str) -> None:
    cc.init(transport="shm", timeout=TIMEOUT_S)
    training = Training(cc.GossipConfig(groups="world" if preset == "allreduce" else None))
    with training.model.join():
        if cc.rank() == SERVING:
            training.run(2)
            print("serving", flush=True)
        else:
            training.run_for_ever()


@pytest.mark.parametrize(
    ("preset", "victim"), [("crossover", 1), ("crossover", SERVING), ("allreduce", 1)]
)
def test_each_survivor_names_the_killed_rank(preset: str, victim: int) -> None:
    with start_ranks(train_unevenly, SIZE, preset) as ranks:
        for rank in range(SIZE):
            ranks.wait_for_line(rank, "serving" if rank == SERVING else "training")
        ranks.kill(victim)
        results = ranks.wait()
    cause = re.compile(
        f"TransportError: .*{heard_from(SIZE)}rank {victim}: connection ended without a farewell"
    )
    for result in results[:victim] + results[victim + 1 :]:
        assert cause.search(result.stderr), result.stderr
        assert not result.timed_out
