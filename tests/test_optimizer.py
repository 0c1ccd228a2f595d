"""Gossip through a wrapped optimizer: still torch's own object, with everything that uses it."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from models import mlp
from ranks import (
    DenseMixing,
    assert_states_close,
    joined_ranks,
    lone_rank,
    run_joined,
    run_ranks,
    state_of,
)
from torch import nn

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import synchronize
from crossover_comm.optimizer import DistributedOptimizer


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor | None = None) -> None:
    optimizer.zero_grad()
    x = torch.ones(2, 4) if x is None else x
    model(x).square().mean().backward()
    optimizer.step()


def wrap(
    context: Context, optimizer: torch.optim.Optimizer, model: nn.Module, **gossip: Any
) -> Any:
    return DistributedOptimizer(optimizer, model, gossip=GossipConfig(**gossip), context=context)


def test_the_answer_is_the_optimizer_itself() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        optimizer = sgd(model)
        assert wrap(context, optimizer, model) is optimizer
        assert isinstance(optimizer, torch.optim.SGD)

    run_ranks(2, work)


def test_schedulers_state_dict_and_copies_work() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        optimizer = wrap(context, sgd(model), model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for _ in range(2):
            step(model, optimizer)
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
        again = sgd(mlp(4, 8, 3))
        again.load_state_dict(optimizer.state_dict())
        assert set(copy.deepcopy(optimizer).state_dict()) == {"state", "param_groups"}
        synchronize(optimizer)

    run_ranks(2, work)


def test_the_default_mixes_after_the_step_where_the_next_forward_reads() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        optimizer = DistributedOptimizer(sgd(model), model, context=context)
        step(model, optimizer)
        assert context.engine.is_open(0)
        with torch.no_grad():
            model(torch.ones(1, 4))
        assert not context.engine.is_open(0)

    run_ranks(2, work)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_no_sync_accumulates_without_a_round(overlap: Overlap) -> None:
    def work(context: Context) -> int:
        model = mlp(4, 8, 3)
        optimizer = wrap(context, sgd(model), model, overlap=overlap)
        for _ in range(3):
            with optimizer.no_sync():
                model(torch.ones(2, 4)).sum().backward()
            step(model, optimizer)
        synchronize(model)
        return context.engine.round(0, 0)

    assert run_ranks(2, work) == [3, 3]


def test_one_rank_alone_has_no_sync_too() -> None:
    model = mlp(4, 3)
    optimizer: Any = DistributedOptimizer(sgd(model), model, context=lone_rank())
    with optimizer.no_sync():
        step(model, optimizer)


@pytest.mark.parametrize("wrong", [None, [torch.zeros(1)], nn.Linear(1, 1)])
def test_only_optimizers_of_torch_can_be_wrapped(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"expected a torch\.optim\.Optimizer"):
        DistributedOptimizer(wrong, mlp(4, 3), context=lone_rank())


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_two_wrapped_optimizers_gossip_their_parts_of_one_model(overlap: Overlap) -> None:
    def work(context: Context) -> list[int]:
        model = mlp(4, 8, 3)
        optimizers = [
            wrap(context, sgd(part), model, overlap=overlap) for part in (model[0], model[2])
        ]
        for _ in range(4):
            model(torch.ones(2, 4)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        synchronize(model)
        return [context.engine.round(plan, 0) for plan in range(2)]

    assert run_ranks(2, work) == [[4, 4], [4, 4]]


def test_gossip_ends_when_the_optimizer_is_no_longer_held() -> None:
    with joined_ranks(2) as contexts:
        models = [mlp(4, 8, 3) for _ in contexts]

        def work(context: Context) -> None:
            model = models[context.launch.rank]
            optimizer = wrap(context, sgd(model), model, overlap="backward")
            step(model, optimizer)

        run_joined(contexts, work)
        gc.collect()
        for context, model in zip(contexts, models, strict=True):
            assert not model._forward_pre_hooks
            with pytest.raises(InvalidArgument):
                context.engine.round(0, 0)


# --- unusual optimizers


class Lookahead(torch.optim.Optimizer):
    """Steps another optimizer inside its own step and then writes the parameters itself."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__([p for g in inner.param_groups for p in g["params"]], {})
        self.slow = [p.detach().clone() for g in inner.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.inner.step()
        for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
            p.lerp_(slow, 0.5)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_an_optimizer_that_steps_another_is_one_step(overlap: Overlap) -> None:
    torch.manual_seed(8)
    replicas = [mlp(4, 8, 3) for _ in range(2)]
    plain = copy.deepcopy(replicas)
    config = GossipConfig(overlap=overlap)
    mixing = DenseMixing(plain, config)
    optimizers = [Lookahead(sgd(model)) for model in plain]
    for _ in range(3):
        for model, optimizer in zip(plain, optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
        if overlap == "backward":
            mixing.mix()
        for optimizer in optimizers:
            optimizer.step()
        if overlap != "backward":
            mixing.mix()

    def work(context: Context) -> None:
        model = replicas[context.launch.rank]
        optimizer = wrap(context, Lookahead(sgd(model)), model, overlap=overlap)
        for _ in range(3):
            step(model, optimizer)
        synchronize(optimizer)

    run_ranks(2, work)
    for model, wanted in zip(replicas, plain, strict=True):
        assert_states_close(state_of(model), state_of(wanted))


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_a_step_with_a_closure_is_one_round(overlap: Overlap) -> None:
    torch.manual_seed(9)
    replicas = [mlp(4, 8, 3) for _ in range(2)]
    plain = copy.deepcopy(replicas)
    config = GossipConfig(overlap=overlap)
    mixing = DenseMixing(plain, config)

    def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> float:
            optimizer.zero_grad()
            loss = model(torch.ones(2, 4)).square().mean()
            loss.backward()
            return float(loss)

        optimizer.step(closure)

    def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    optimizers = [lbfgs(model) for model in plain]
    for _ in range(3):
        if overlap == "backward":
            mixing.mix()
        for model, optimizer in zip(plain, optimizers, strict=True):
            run(model, optimizer)
        if overlap != "backward":
            mixing.mix()

    def work(context: Context) -> None:
        model = replicas[context.launch.rank]
        optimizer = wrap(context, lbfgs(model), model, overlap=overlap)
        for _ in range(3):
            run(model, optimizer)
        synchronize(optimizer)

    run_ranks(2, work)
    for model, wanted in zip(replicas, plain, strict=True):
        assert_states_close(state_of(model), state_of(wanted), atol=1e-4)
