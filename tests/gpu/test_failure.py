"""A rank on the GPU dies: NCCL would wait for it for ever."""

from __future__ import annotations

import os
import time

import pytest
import torch
from spawn import start_ranks
from torch import nn

import crossover_comm as cc
from crossover_comm.nccl import shared_gpu_environment

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and "CROSSOVER_REQUIRE_GPU" not in os.environ,
    reason="no GPU: torch.cuda.is_available() is False",
)

TIMEOUT_S = 5.0


def one_gpu_for_all(rank: int) -> dict[str, str]:
    return {**shared_gpu_environment(rank), "LOCAL_RANK": "0"}


def train_until_told() -> None:
    """A worker: trains for ever; prints "training", then the error that ends it."""
    cc.init(transport="nccl", timeout=TIMEOUT_S)
    model = cc.DistributedDataParallel(nn.Linear(64, 64).cuda())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.ones(8, 64, device="cuda")
    try:
        for step in range(10**9):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if step == 20:
                torch.cuda.synchronize()
                print("training", flush=True)
    except cc.CrossoverError as error:
        print(f"told: {error}", flush=True)


def test_survivors_of_a_killed_rank_are_told_in_time_and_end() -> None:
    with start_ranks(train_until_told, 3, env_of=one_gpu_for_all) as ranks:
        for rank in range(3):
            ranks.wait_for_line(rank, "training")
        ranks.kill(2)
        began = time.monotonic()
        told = [ranks.wait_for_line(rank, "told:") for rank in range(2)]
        assert time.monotonic() - began < 2 * TIMEOUT_S
        assert all("rank 2" in line for line in told)
        results = ranks.wait(timeout_s=60.0)
    assert [result.exit_code for result in results[:2]] == [0, 0]
