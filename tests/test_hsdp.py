"""Models sharded by FSDP2 inside a node, gossiped across nodes, against whole replicas.

Four processes: two nodes of two ranks each.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import DenseMixing, assert_states_close, state_of
from spawn import run_ranks
from test_push_sum import DensePushSum
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import crossover_comm as cc
from crossover_comm.config import Overlap, SegmentRule

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch < 2.6
    from torch.distributed._composable.fsdp import fully_shard  # type: ignore[attr-defined]

NUM_STEPS = 5
OVERLAPS: tuple[Overlap, ...] = ("none", "forward", "backward")
SEGMENTS: tuple[SegmentRule, ...] = ("blocks", 100)
UNEVEN = cc.Table(tables=[[[(1, 0.3)], [(0, 0.3)]]])
"""Nodes that stay apart, so that a round left out shows."""
PUSH_SUM = cc.Table(tables=[[[(1, 0.3)], [(0, 0.6)]]], stochasticity="column")


class Tied(nn.Module):
    """Uneven shards (7 and 5 rows), empty ones (1 row), a tied weight, nested sharded modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.body = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
        self.scale = nn.Parameter(torch.ones(1, 5))
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.body(self.embedding(tokens)) * self.scale))


def model_of(node: int) -> Tied:
    torch.manual_seed(node)
    return Tied()


def tokens_of(rank: int) -> torch.Tensor:
    return torch.randint(7, (NUM_STEPS, 6), generator=torch.Generator().manual_seed(rank))


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(tokens), tokens.flip(0))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def reference(config: cc.GossipConfig) -> list[nn.Module]:
    """Whole replicas of both nodes; a node's gradient is the mean over its ranks' batches."""
    replicas: list[nn.Module] = [model_of(0), model_of(1)]
    optimizers = [sgd(model) for model in replicas]
    push_sum = DensePushSum(replicas, config) if config.topology is PUSH_SUM else None
    mixing = push_sum or DenseMixing(replicas, config)
    for step in range(NUM_STEPS):
        for node, (model, optimizer) in enumerate(zip(replicas, optimizers, strict=True)):
            optimizer.zero_grad()
            for rank in (2 * node, 2 * node + 1):
                (loss_of(model, tokens_of(rank)[step]) / 2).backward()
        if config.overlap == "backward":
            mixing.mix()
        if push_sum is not None:
            push_sum.scale(1)
        for optimizer in optimizers:
            optimizer.step()
        if push_sum is not None:
            push_sum.scale(-1)
        if config.overlap != "backward":
            mixing.mix()
    return replicas


def sharded(node: int, mesh: DeviceMesh) -> Tied:
    """body.2 is gathered with the root, long before it is called."""
    model = model_of(node)
    fully_shard(model.body[0], mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    return model


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.full_tensor() for name, p in model.state_dict().items()}


def work() -> None:
    dist.init_process_group("gloo")
    cc.init()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for overlap in OVERLAPS:
        for segments in SEGMENTS:
            config = cc.GossipConfig(overlap=overlap, segments=segments, topology=UNEVEN)
            check_training(mesh, config)
        check_training(mesh, cc.GossipConfig(overlap=overlap, topology=PUSH_SUM))
    check_the_average(mesh)
    check_refusals(mesh)
    cc.shutdown()
    dist.destroy_process_group()


def check_training(mesh: DeviceMesh, config: cc.GossipConfig) -> None:
    node = cc.rank() // 2
    model = sharded(node, mesh)
    optimizer = cc.DistributedOptimizer(
        sgd(model), model, device_mesh=mesh["replicate"], gossip=config
    )
    for tokens in tokens_of(cc.rank()):
        optimizer.zero_grad()
        loss_of(model, tokens).backward()
        optimizer.step()
        with torch.no_grad():  # leaves the root's parameters whole
            model(tokens)
    cc.synchronize(model)
    assert_states_close(whole_state(model), state_of(reference(config)[node]), atol=1e-5)


def check_the_average(mesh: DeviceMesh) -> None:
    node = cc.rank() // 2
    model = sharded(node, mesh)
    optimizer = cc.DistributedOptimizer(sgd(model), model, device_mesh=mesh["replicate"])
    replicas = [model_of(0), model_of(1)]
    middle = copy.deepcopy(replicas[0])
    with torch.no_grad():
        for p, a, b in zip(middle.parameters(), *(r.parameters() for r in replicas), strict=True):
            p.copy_((a + b) / 2)
    tokens = tokens_of(0)[0]
    distance = cc.consensus_distance(model)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(tokens), replicas[node](tokens))
            with cc.averaged(model):
                torch.testing.assert_close(model(tokens), middle(tokens))
    assert cc.consensus_distance(model) == distance > 0
    del optimizer


def check_refusals(mesh: DeviceMesh) -> None:
    model = sharded(0, mesh)
    whole: Any = nn.Linear(4, 4)
    fully_shard(whole, mesh=mesh)  # replicates and all-reduces by itself
    replicate = mesh["replicate"]
    for refused, options, reason in (
        (model, {}, "expected gossip among ranks that hold the same shard"),
        (model, {"device_mesh": replicate, "gossip": "allreduce"}, "groups: expected None"),
        (
            model,
            {"device_mesh": replicate, "gossip": cc.GossipConfig(momentum="quasi-global")},
            "momentum: expected 'local' with parameters that fully_shard has sharded",
        ),
        (whole, {"device_mesh": replicate}, r"expected one that fully_shard\(model, mesh="),
    ):
        with pytest.raises(cc.InvalidArgument, match=reason):
            cc.DistributedOptimizer(sgd(refused), refused, **options)
    with pytest.raises(cc.InvalidArgument, match=r"use DistributedOptimizer\(optimizer, model"):
        cc.DistributedDataParallel(model, device_mesh=replicate)


def test_shards_are_gossiped_as_whole_replicas_would_be() -> None:
    run_ranks(work, 4)


def test_flat_parameters_of_fsdp1_are_refused() -> None:
    class FullyShardedDataParallel(nn.Linear):
        """Known by its name: importing the real one costs seconds."""

    with pytest.raises(cc.InvalidArgument, match="module '0': expected one that is not sharded"):
        cc.DistributedDataParallel(nn.Sequential(FullyShardedDataParallel(2, 2)))
