"""Models on the GPU, several ranks on one GPU, against the dense reference on the CPU."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from dense_cases import OVERLAPS, Case, dense_states, joined, load_runs, save_runs
from ranks import assert_states_close, state_of
from spawn import run_ranks

import crossover_comm as cc
from crossover_comm.config import Wire
from crossover_comm.nccl import shared_gpu_environment

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and "CROSSOVER_REQUIRE_GPU" not in os.environ,
    reason="no GPU: torch.cuda.is_available() is False",
)

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
    return {**shared_gpu_environment(rank), "LOCAL_RANK": "0"}


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


def call_collectives_on_gpu() -> None:
    """A worker: every collective for GPU tensors gives what it gives on the CPU."""
    with joined("nccl"):
        rank, size = cc.rank(), cc.size()
        x = torch.full((3, 5), float(rank), device="cuda")
        assert cc.allreduce(x).eq((size - 1) / 2).all()
        model = torch.nn.BatchNorm1d(4).cuda()
        with torch.no_grad():
            model.weight.fill_(float(rank))
        assert cc.consensus_distance(model) > 0
        with cc.averaged(model):
            assert model.weight.eq((size - 1) / 2).all()
        assert model.weight.eq(rank).all()
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(8, 4, device="cuda")).sum().backward()
        optimizer.step()
        cc.broadcast_parameters(model)
        cc.broadcast_optimizer_state(optimizer)
        assert cc.consensus_distance(model) == 0.0
        moments = optimizer.state[model.weight]["exp_avg"]
        assert moments.is_cuda
        assert cc.allreduce(moments).eq(moments).all()


def test_collectives_take_gpu_tensors() -> None:
    run_ranks(call_collectives_on_gpu, 2, env_of=one_gpu_for_all)


def drop_in(device_ids: str) -> None:
    """A worker: wraps as torch's examples do, with inputs that are on the CPU."""
    with joined("auto"):
        model = torch.nn.Linear(4, 3).cuda()
        ddp = cc.DistributedDataParallel(model, device_ids=[int(device_ids)])
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for _ in range(3):
            ddp(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        cc.synchronize(ddp)
        assert cc.counters()["first_contact_s"] > 0


def test_auto_means_nccl_and_device_ids_move_the_inputs() -> None:
    run_ranks(drop_in, 2, "0", env_of=one_gpu_for_all)
