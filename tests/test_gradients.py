"""Gradients averaged exactly over ranks, as torch's DDP does.

Ranks start from parameters of their own; the members of a group take those of its first.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from group_cases import (
    OVERLAPS,
    WIDTHS,
    assert_equal_bits,
    flat_reference,
    inputs_of,
    loss_of,
    merged,
    replicas_of,
    sgd,
    train,
)
from models import mlp
from ranks import assert_states_close, run_ranks, state_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from crossover_comm.config import WIRES, GossipConfig, Overlap, resolve
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import CrossoverError
from crossover_comm.optimizer import DistributedOptimizer

ALL_REDUCE = resolve("allreduce")


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 8, 12])
def test_all_reduce_trains_as_one_replica_on_all_data_with_equal_bits(size: int) -> None:
    overlap = OVERLAPS[size % 3]
    config = dataclasses.replace(ALL_REDUCE, overlap=overlap)
    replicas, inputs = replicas_of(size), inputs_of(size)
    world = [range(size)]
    wanted = flat_reference(replicas[:1], merged(inputs, world), config)
    train(replicas, inputs, config)
    assert_equal_bits(replicas)
    assert_states_close(state_of(replicas[0]), state_of(wanted[0]))


@pytest.mark.parametrize("wire", WIRES)
def test_replicas_of_all_reduce_keep_equal_bits_over_many_rounds(wire: Any) -> None:
    replicas = replicas_of(3)
    train(replicas, inputs_of(3, 200), dataclasses.replace(ALL_REDUCE, wire=wire))
    assert_equal_bits(replicas)


def gradients_after(
    work: Callable[[DistributedDataParallel, torch.Tensor], object],
    config: GossipConfig = ALL_REDUCE,
    model: Callable[[], nn.Module] = lambda: mlp(*WIDTHS),
) -> tuple[list[dict[str, torch.Tensor | None]], list[dict[str, torch.Tensor | None]]]:
    """By rank, the gradients after `work` with the wrapped model, and with the plain one."""
    torch.manual_seed(1)
    start, inputs = model(), inputs_of(2)

    def gradients_of(model: nn.Module) -> dict[str, torch.Tensor | None]:
        return {name: p.grad for name, p in model.named_parameters()}

    def on_rank(context: Context) -> tuple[Any, Any]:
        rank = context.launch.rank
        own, plain = copy.deepcopy(start), copy.deepcopy(start)
        ddp = DistributedDataParallel(own, gossip=config, context=context, init_sync=False)
        work(ddp, inputs[rank])
        lone = Lone(plain)
        work(lone, inputs[rank])  # type: ignore[arg-type]
        return gradients_of(own), gradients_of(plain)

    results = run_ranks(2, on_rank)
    return [r[0] for r in results], [r[1] for r in results]


class Lone(nn.Module):
    """What gossips nothing and has the wrapper's surface."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)

    def no_sync(self) -> Any:
        return torch.enable_grad()


def assert_averaged(
    given: Sequence[dict[str, torch.Tensor | None]], own: Sequence[dict[str, torch.Tensor | None]]
) -> None:
    for name, gradient in given[0].items():
        parts = [torch.zeros_like(gradient) if g[name] is None else g[name] for g in own]  # type: ignore
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.stack(parts).mean(0), msg=name)  # type: ignore
        other = given[1][name]
        assert other is not None
        assert torch.equal(gradient, other), name


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_gradients_are_averaged_when_the_backward_returns(overlap: Overlap) -> None:
    """So that clipping and unscaling see what DDP would show them."""
    config = dataclasses.replace(ALL_REDUCE, overlap=overlap)
    assert_averaged(*gradients_after(lambda ddp, x: loss_of(ddp, x[0]).backward(), config))


def test_gradients_accumulate_under_no_sync_and_are_averaged_with_the_next_backward() -> None:
    def work(ddp: DistributedDataParallel, x: torch.Tensor) -> None:
        with ddp.no_sync():
            loss_of(ddp, x[0]).backward()
            loss_of(ddp, x[1]).backward()
        loss_of(ddp, x[2]).backward()

    assert_averaged(*gradients_after(work))


def test_nothing_is_sent_under_no_sync() -> None:
    def work(context: Context) -> int:
        ddp = DistributedDataParallel(
            mlp(*WIDTHS), gossip=ALL_REDUCE, context=context, init_sync=False
        )
        with ddp.no_sync():
            loss_of(ddp, torch.ones(2, 4)).backward()
            sgd(ddp).step()
        return context.engine.round(ddp._hooks.gradients.plan, 0)  # type: ignore[union-attr]

    assert run_ranks(2, work) == [0, 0]


def test_every_synced_backward_before_a_step_is_averaged() -> None:
    def work(ddp: DistributedDataParallel, x: torch.Tensor) -> None:
        loss_of(ddp, x[0]).backward()
        loss_of(ddp, x[1]).backward()

    assert_averaged(*gradients_after(work))


def test_two_forwards_and_one_backward_are_averaged_once() -> None:
    def work(ddp: DistributedDataParallel, x: torch.Tensor) -> None:
        (loss_of(ddp, x[0]) + loss_of(ddp, x[1])).backward()

    assert_averaged(*gradients_after(work))


class Branches(nn.Module):
    """Its third layer is never used, its second only by ranks whose data say so."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layers[0](x)
        return {"y": self.layers[1](y) if x[0, 0] == inputs_of(1)[0][0, 0, 0] else y}


def test_a_gradient_missing_here_counts_as_zero_and_one_missing_everywhere_stays_none() -> None:
    given, own = gradients_after(
        lambda ddp, x: ddp(x[0])["y"].square().mean().backward(), model=Branches
    )
    assert {g["layers.1.weight"] is None for g in own} == {True, False}
    for gradients in (*given, *own):
        for name in ("layers.2.weight", "layers.2.bias"):
            assert gradients.pop(name) is None
    assert_averaged(given, own)


class Checkpointed(nn.Module):
    """Its one hidden layer runs in two re-entrant checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(2):
            x = checkpoint(self.shared, x, use_reentrant=True)
        return x


def test_sparse_gradients_are_averaged_and_stay_sparse() -> None:
    tables = [torch.nn.Embedding(6, 3, sparse=True) for _ in range(2)]
    used = [torch.tensor([0, 2]), torch.tensor([2, 5, 5])]

    def work(context: Context) -> None:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            tables[rank], gossip="allreduce", context=context, init_sync=False
        )
        ddp(used[rank]).sum().backward()

    run_ranks(2, work)
    wanted = torch.zeros(6, 3)
    for row, count in {0: 1.0, 2: 2.0, 5: 2.0}.items():
        wanted[row] = count / 2
    for table in tables:
        gradient = table.weight.grad
        assert gradient is not None
        assert gradient.is_sparse
        assert gradient.coalesce().indices().tolist() == [[0, 2, 5]]
        torch.testing.assert_close(gradient.to_dense(), wanted)


def test_reentrant_checkpoints_are_averaged_once_all_is_there() -> None:
    config = dataclasses.replace(ALL_REDUCE, overlap="none")
    run = gradients_after(lambda d, x: loss_of(d, x[0]).backward(), config, Checkpointed)
    assert_averaged(*run)


def test_a_gradient_accumulated_after_it_was_posted_is_an_error_that_says_what_to_do() -> None:
    config = dataclasses.replace(ALL_REDUCE, segments=1)
    with pytest.raises(CrossoverError, match=r"'shared\..*overlap=\"none\""):
        gradients_after(lambda d, x: loss_of(d, x[0]).backward(), config, Checkpointed)


def test_an_infinity_on_one_rank_lets_every_rank_skip_its_step() -> None:
    def work(context: Context) -> list[float]:
        ddp = DistributedDataParallel(
            mlp(*WIDTHS), gossip=ALL_REDUCE, context=context, init_sync=False
        )
        optimizer = sgd(ddp)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        for step in range(3):
            optimizer.zero_grad()
            overflows = step == 1 and context.launch.rank == 1
            loss = loss_of(ddp, torch.ones(2, 4)) * (float("inf") if overflows else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return [scaler.get_scale(), *(float(p.detach().sum()) for p in ddp.parameters())]

    first, second = run_ranks(2, work)
    assert first == second
    assert first[0] == 8.0


def test_the_wrapped_optimizer_averages_gradients_too() -> None:
    replicas, inputs = replicas_of(3), inputs_of(3)
    wanted = flat_reference(replicas[:1], merged(inputs, [range(3)]), ALL_REDUCE)

    def work(context: Context) -> None:
        model = replicas[context.launch.rank]
        optimizer = DistributedOptimizer(sgd(model), model, gossip="allreduce", context=context)
        for x in inputs[context.launch.rank]:
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()

    run_ranks(3, work)
    assert_equal_bits(replicas)
    assert_states_close(state_of(replicas[0]), state_of(wanted[0]))
