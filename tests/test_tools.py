"""What people train with, on a wrapped model: against the same loop on plain replicas."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import DenseMixing, assert_states_close, run_ranks, state_of
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import synchronize

OVERLAPS: tuple[Overlap, ...] = ("none", "forward", "backward")
NUM_STEPS = 3
SIZE = 2


def convolutional() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def replicas_of() -> list[nn.Module]:
    torch.manual_seed(1)
    return [convolutional() for _ in range(SIZE)]


def batches_of(rank: int) -> list[torch.Tensor]:
    """What a DistributedSampler deals to this rank."""
    data = TensorDataset(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2)))
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, num_replicas=SIZE, rank=rank, shuffle=True, seed=3
    )
    return [
        x.to(memory_format=torch.channels_last) for (x,) in DataLoader(data, 2, sampler=sampler)
    ]


def gradients(model: nn.Module, x: torch.Tensor) -> None:
    model(x).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_clipping_schedules_samplers_and_channels_last_train_as_on_plain_replicas(
    overlap: Overlap,
) -> None:
    config = GossipConfig(overlap=overlap)
    replicas = replicas_of()
    plain = copy.deepcopy(replicas)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in plain]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in optimizers]
    mixing = DenseMixing(plain, config)
    for index in range(NUM_STEPS):
        for rank, (model, optimizer) in enumerate(zip(plain, optimizers, strict=True)):
            optimizer.zero_grad()
            gradients(model, batches_of(rank)[index])
        if overlap == "backward":
            mixing.mix()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        if overlap != "backward":
            mixing.mix()

    def work(context: Context) -> None:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for x in batches_of(rank):
            optimizer.zero_grad()
            gradients(ddp, x)
            optimizer.step()
            scheduler.step()
        synchronize(ddp)

    run_ranks(SIZE, work)
    for given, wanted in zip(replicas, plain, strict=True):
        assert_states_close(state_of(given), state_of(wanted))


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_rank_0_evaluates_and_saves_alone(overlap: Overlap) -> None:
    def work(context: Context) -> int:
        ddp = DistributedDataParallel(
            replicas_of()[context.launch.rank],
            gossip=GossipConfig(overlap=overlap),
            context=context,
            init_sync=False,
        )
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for x in batches_of(context.launch.rank):
            gradients(ddp, x)
            optimizer.step()
            optimizer.zero_grad()
            if context.launch.rank == 0:
                ddp.eval()
                with torch.no_grad():
                    ddp(x)
                torch.save(ddp.state_dict(), io.BytesIO())
                ddp.train()
        synchronize(ddp)
        return context.engine.round(0, 0)

    assert run_ranks(SIZE, work) == [NUM_STEPS] * SIZE


@pytest.fixture
def _lone_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step_with_zero(gossip: str, stepping: range) -> list[nn.Module]:
    replicas = replicas_of()
    replicas[1].load_state_dict(replicas[0].state_dict())

    def work(context: Context) -> None:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=gossip, context=context, init_sync=False
        )
        optimizer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.SGD, lr=0.1)
        gradients(ddp, batches_of(rank)[0])
        if rank in stepping:
            optimizer.step()

    run_ranks(SIZE, work)
    return replicas


def with_synced_norm() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return synced


@pytest.mark.parametrize("gossip", ["crossover", "allreduce"])
def test_synced_batch_norm_without_torchs_process_group_is_batch_norm(gossip: str) -> None:
    torch.manual_seed(4)
    start = with_synced_norm()

    def trained(context: Context, model: nn.Module) -> dict[str, torch.Tensor]:
        ddp = DistributedDataParallel(model, gossip=gossip, context=context, init_sync=False)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for x in batches_of(context.launch.rank):
            optimizer.zero_grad()
            gradients(ddp, x)
            optimizer.step()
        synchronize(ddp)
        return state_of(model)

    def work(context: Context) -> None:
        plain: Any = copy.deepcopy(start)
        plain[2] = nn.BatchNorm1d(4)
        given, wanted = trained(context, copy.deepcopy(start)), trained(context, plain)
        assert_states_close(given, wanted, atol=0.0)

    run_ranks(SIZE, work)


@pytest.mark.usefixtures("_lone_group")
def test_synced_batch_norm_on_a_cpu_is_torchs_own_error() -> None:
    def work(context: Context) -> None:
        ddp = DistributedDataParallel(
            with_synced_norm(), gossip="crossover", context=context, init_sync=False
        )
        with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):
            ddp(batches_of(0)[0])

    run_ranks(SIZE, work)


@pytest.mark.usefixtures("_lone_group")
def test_an_optimizer_that_makes_replicas_equal_by_itself_is_refused_under_gossip() -> None:
    with pytest.raises(InvalidArgument, match=r"got a ZeroRedundancyOptimizer, .*'allreduce'"):
        step_with_zero("crossover", range(1))


@pytest.mark.usefixtures("_lone_group")
def test_an_optimizer_that_makes_replicas_equal_by_itself_steps_on_averaged_gradients() -> None:
    first, second = step_with_zero("allreduce", range(SIZE))
    before = state_of(replicas_of()[0])
    assert_states_close(state_of(first), state_of(second), atol=0.0)
    assert not torch.equal(state_of(first)["0.weight"], before["0.weight"])
