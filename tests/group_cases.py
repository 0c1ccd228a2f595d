"""Trainings of ranks in groups, and the same by one plain replica per group on its whole batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from models import mlp
from ranks import DenseMixing, run_ranks, state_of
from torch import nn

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.hooks import synchronize

NUM_STEPS = 6
NUM_SAMPLES = 4
WIDTHS = (4, 8, 3)
OVERLAPS: tuple[Overlap, ...] = ("none", "forward", "backward")


def replicas_of(size: int) -> list[nn.Module]:
    torch.manual_seed(3)
    return [mlp(*WIDTHS) for _ in range(size)]


def inputs_of(size: int, num_batches: int = NUM_STEPS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(num_batches, NUM_SAMPLES, 4, generator=generator) for _ in range(size)]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(x).square().mean())


def flat_reference(
    replicas: Sequence[nn.Module], inputs: Sequence[torch.Tensor], config: GossipConfig
) -> list[nn.Module]:
    """Plain training of one replica per group with the group's whole batch, mixed by W."""
    plain = copy.deepcopy(list(replicas))
    optimizers = [sgd(model) for model in plain]
    mixing = DenseMixing(plain, config)
    for step in range(inputs[0].shape[0]):
        is_round = (step + 1) % config.interval == 0
        for model, optimizer, x in zip(plain, optimizers, inputs, strict=True):
            optimizer.zero_grad()
            loss_of(model, x[step]).backward()
        if config.overlap == "backward" and is_round:
            mixing.mix()
        for optimizer in optimizers:
            optimizer.step()
        if config.overlap != "backward" and is_round:
            mixing.mix()
    return plain


def train(
    replicas: Sequence[nn.Module], inputs: Sequence[torch.Tensor], config: GossipConfig
) -> list[dict[str, float]]:
    """Trains every replica on a thread of its own; what the engines have counted."""

    def work(context: Context) -> dict[str, float]:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        before = context.engine.counters()
        optimizer = sgd(ddp)
        for x in inputs[rank]:
            optimizer.zero_grad()
            loss_of(ddp, x).backward()
            optimizer.step()
        synchronize(ddp)
        return {name: n - before[name] for name, n in context.engine.counters().items()}

    return run_ranks(len(replicas), work)


def assert_equal_bits(replicas: Sequence[nn.Module]) -> None:
    for model in replicas[1:]:
        for name, value in state_of(model).items():
            assert torch.equal(value, state_of(replicas[0])[name]), name


def merged(inputs: Sequence[torch.Tensor], groups: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """For each group the batches of its members as one."""
    return [torch.cat([inputs[rank] for rank in members], dim=1) for members in groups]
