"""Compiled as a whole, a model hides no exchange behind its backward: each rank is told once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import mlp
from ranks import run_ranks
from torch import nn

from crossover_comm.config import GossipConfig
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel

NUM_STEPS = 2


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def whole(model: nn.Module) -> Any:
    return torch.compile(model, backend="aot_eager")


def by_blocks(model: nn.Module) -> nn.Module:
    for block in model.children():
        block.compile(backend="aot_eager")
    return model


def eager(model: nn.Module) -> nn.Module:
    return model


def num_warnings(prepare: Callable[[nn.Module], Any], gossip: Any, *, outside: bool = False) -> int:
    """How many warnings two ranks get in several steps."""
    replicas = [mlp(4, 8, 3) for _ in range(2)]

    def work(context: Context) -> None:
        inner = replicas[context.launch.rank] if outside else prepare(replicas[context.launch.rank])
        ddp = DistributedDataParallel(inner, gossip=gossip, context=context, init_sync=False)
        called = prepare(ddp) if outside else ddp
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            called(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_ranks(2, work)
    return sum("is one compiled graph" in str(w.message) for w in caught)


@pytest.mark.parametrize("gossip", ["allreduce", GossipConfig(overlap="fused")])
def test_a_model_compiled_as_a_whole_is_warned_of_once(gossip: Any) -> None:
    assert num_warnings(whole, gossip) == 2


def test_a_compiled_wrapper_is_warned_of_once() -> None:
    assert num_warnings(whole, "allreduce", outside=True) == 2


@pytest.mark.parametrize("gossip", ["allreduce", GossipConfig(overlap="fused")])
@pytest.mark.parametrize("prepare", [by_blocks, eager])
def test_a_model_compiled_by_blocks_or_not_at_all_is_not_warned_of(
    prepare: Callable[[nn.Module], Any], gossip: Any
) -> None:
    assert num_warnings(prepare, gossip) == 0


@pytest.mark.parametrize(
    "gossip",
    [
        GossipConfig(overlap="backward"),
        GossipConfig(overlap="forward"),
        GossipConfig(groups="world", overlap="none"),
    ],
)
def test_where_nothing_begins_inside_the_backward_there_is_nothing_to_warn_of(gossip: Any) -> None:
    assert num_warnings(whole, gossip) == 0
