"""Models on the GPU, several ranks on one GPU, against the dense reference on the CPU."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from dense_cases import OVERLAPS, Case, dense_states, joined, load_runs, save_runs
from ranks import assert_states_close, state_of
from spawn import run_ranks

import crossover_comm as cc
from crossover_comm.config import Wire

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}
"""Matrix products of the GPU and the CPU round apart; a sum next to a border of bf16 then jumps."""


def cases() -> list[Case]:
    wires: tuple[Wire, ...] = ("fp32", "bf16")
    topologies = ("crossover", "complete")
    return [
        Case(topology, cc.GossipConfig(topology=topology, overlap=overlap, wire=wire, seed=3))
        for topology, overlap, wire in itertools.product(topologies, OVERLAPS, wires)
    ]


def one_gpu_for_all(rank: int) -> dict[str, str]:
    """What lets several NCCL ranks share a GPU: a host name each before 2.30, a switch after."""
    return {
        "NCCL_HOSTID": f"crossover-test-{rank}",
        "NCCL_NET": "Socket",
        "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_MAX_CTAS": "2",
        "NCCL_MULTI_RANK_GPU_ENABLE": "1",
        "NCCL_NVLS_ENABLE": "0",
        "LOCAL_RANK": "0",
    }


def train_on_gpu(folder: str, transport: str) -> None:
    """A worker: trains every case with its model on the GPU."""
    with joined(transport):
        runs = {case.name: {"state": train(case)} for case in cases()}
        save_runs(runs, folder)


def train(case: Case) -> dict[str, torch.Tensor]:
    model = case.replicas(cc.size())[cc.rank()].cuda()
    ddp = cc.DistributedDataParallel(model, gossip=case.config, init_sync=False)
    optimizer = case.optimizer_of(ddp)
    for x in case.batches(cc.rank()).cuda():
        optimizer.zero_grad()
        (ddp(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
    cc.synchronize(ddp)
    return {name: value.cpu() for name, value in state_of(model).items()}


@pytest.mark.parametrize("transport", ["nccl", "tcp", "shm"])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_on_one_gpu_train_as_the_dense_reference(
    tmp_path: Path, transport: str, size: int
) -> None:
    run_ranks(train_on_gpu, size, str(tmp_path), transport, env_of=one_gpu_for_all)
    runs = load_runs(tmp_path, transport, size)
    for case in cases():
        for rank, wanted in enumerate(dense_states(case, size)):
            state = runs[rank][case.name]["state"]
            assert_states_close(state, wanted, atol=TOLERANCES[case.config.wire])
