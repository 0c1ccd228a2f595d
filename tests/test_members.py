"""Gossip among some ranks of a job, against jobs of these ranks alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from group_cases import inputs_of, loss_of, replicas_of, sgd
from ranks import run_ranks, state_of
from spawn import run_ranks as run_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import crossover_comm as cc
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.hooks import synchronize
from crossover_comm.members import context_among

SIZE = 5
PARTS = ((3, 0), (1, 2, 4))
State = dict[str, torch.Tensor]


def trained(
    context: Context, model: nn.Module, inputs: torch.Tensor, config: cc.GossipConfig
) -> State:
    ddp = DistributedDataParallel(model, gossip=config, context=context, init_sync=False)
    optimizer = sgd(ddp)
    for x in inputs:
        optimizer.zero_grad()
        loss_of(ddp, x).backward()
        optimizer.step()
    synchronize(ddp)
    return state_of(model)


def alone(members: Sequence[int], config: cc.GossipConfig, size: int = SIZE) -> dict[int, State]:
    """What a job of these ranks comes to, by their ranks in the larger one."""
    replicas, inputs = replicas_of(size), inputs_of(size)

    def work(context: Context) -> State:
        rank = members[context.launch.rank]
        return trained(context, replicas[rank], inputs[rank], config)

    return dict(zip(members, run_ranks(len(members), work), strict=True))


def assert_same_bits(given: State, wanted: State) -> None:
    for name, value in wanted.items():
        assert torch.equal(given[name], value), name


@pytest.mark.parametrize(
    "chosen",
    [
        {"overlap": "backward", "segments": 80},
        {"overlap": "forward", "topology": "all-reduce"},
        {"overlap": "none", "momentum": "exchanged", "rounds_per_step": 2},
        {"overlap": "none", "wire": "auto", "wire_budget": 1.04},
        {"groups": "world"},
    ],
)
def test_parts_of_a_job_train_as_jobs_of_their_own(chosen: dict[str, Any]) -> None:
    config = cc.GossipConfig(**chosen)
    replicas, inputs = replicas_of(SIZE), inputs_of(SIZE)

    def work(context: Context) -> State:
        rank = context.launch.rank
        members = next(part for part in PARTS if rank in part)
        return trained(context_among(context, members), replicas[rank], inputs[rank], config)

    given = run_ranks(SIZE, work)
    wanted = alone(PARTS[0], config) | alone(PARTS[1], config)
    for rank, state in enumerate(given):
        assert_same_bits(state, wanted[rank])


def test_a_rank_gossips_among_several_parts_and_the_whole_job() -> None:
    """Some ranks have wrapped more than others before."""
    config = cc.GossipConfig(overlap="none")
    rows, columns, extra = ((0, 1), (2, 3)), ((0, 2), (1, 3)), (1, 2)
    inputs = inputs_of(4)

    def work(context: Context) -> list[State]:
        rank = context.launch.rank

        def part_of(parts: Sequence[Sequence[int]]) -> Context:
            return context_among(context, next(part for part in parts if rank in part))

        contexts = [part_of(rows), part_of(columns), context]
        if rank in extra:
            contexts.insert(0, context_among(context, extra))
        return [
            trained(c, replicas[rank], inputs[rank], config)
            for c, replicas in zip(contexts, copies[-len(contexts) :], strict=True)
        ]

    copies = [replicas_of(4) for _ in range(4)]
    given = run_ranks(4, work)
    for parts, index in ((rows, -3), (columns, -2), (((0, 1, 2, 3),), -1), ((extra,), 0)):
        for part in parts:
            for rank, wanted in alone(part, config, size=4).items():
                assert_same_bits(given[rank][index], wanted)


def test_ranks_of_a_part_that_differ_are_told_so_by_its_ranks() -> None:
    def work(context: Context) -> str:
        if context.launch.rank == 1:
            return "not asked"
        part = context_among(context, (2, 0))
        config = cc.GossipConfig(seed=part.launch.rank)
        model = copy.deepcopy(replicas[context.launch.rank])
        with pytest.raises(cc.InvalidArgument) as raised:
            DistributedDataParallel(model, gossip=config, context=part, init_sync=False)
        return str(raised.value)

    replicas = replicas_of(3)
    first, outsider, last = run_ranks(3, work)
    assert outsider == "not asked"
    assert first == last
    assert "(ranks counted among [2, 0]): not the same on every rank" in first
    assert "config.seed: rank 0 has 0, rank 1 has 1" in first


def work_on_a_mesh() -> None:
    """A worker of four: gossip along one dimension, exact equality along none."""
    dist.init_process_group("gloo")
    cc.init()
    rank = cc.rank()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, float(rank))
    column = rank % 2
    ddp = cc.DistributedDataParallel(
        model, device_mesh=mesh["replicate"], gossip=cc.GossipConfig(topology="all-reduce")
    )
    assert float(model.weight[0, 0].detach()) == column  # of the column's first, not of the job's
    assert cc.consensus_distance(ddp) == 0.0
    nn.init.constant_(model.weight, float(rank))
    nn.init.zeros_(model.bias)
    assert cc.consensus_distance(ddp) == pytest.approx(2.0**0.5)  # 1 off each of 2 weights
    with cc.averaged(ddp):
        assert float(model.weight[0, 0].detach()) == column + 1.0
    ddp(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(ddp.parameters(), lr=0.0).step()
    assert float(model.weight[0, 0].detach()) == column + 1.0
    assert ddp.device_mesh == mesh["replicate"]
    check_process_groups(rank, mesh)
    cc.shutdown()
    dist.destroy_process_group()


def check_process_groups(rank: int, mesh: Any) -> None:
    groups = [dist.new_group([0, 3]), dist.new_group([1, 2])]
    own, other = (groups[0], groups[1]) if rank in (0, 3) else (groups[1], groups[0])
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, float(rank))
    optimizer = cc.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        model,
        process_group=own,
        gossip=cc.GossipConfig(topology="all-reduce"),
    )
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    cc.synchronize(model)
    assert float(model.weight[0, 0].detach()) == 1.5
    for arguments, reason in (
        ({"process_group": other}, "each rank wraps with its own group"),
        ({"device_mesh": mesh}, r"expected one dimension, such as mesh\['replicate'\]"),
        ({"device_mesh": mesh["shard"], "process_group": own}, "Cannot specify both"),
    ):
        with pytest.raises(cc.InvalidArgument, match=reason):
            cc.DistributedDataParallel(nn.Linear(2, 1), **arguments)
    whole = cc.DistributedDataParallel(nn.Linear(2, 1), process_group=dist.group.WORLD)
    assert cc.consensus_distance(whole) == 0.0


def test_process_groups_and_meshes_confine_everything_to_their_ranks() -> None:
    run_processes(work_on_a_mesh, 4)
