"""Mode "fused": the values of mode "none", bit for bit, or an error that says what cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Gpt, mlp
from ranks import run_ranks
from torch import nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from crossover_comm.config import GossipConfig, Overlap, SegmentRule
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.hooks import synchronize
from crossover_comm.optimizer import DistributedOptimizer

Make = Callable[[Any], Optimizer]
Loop = Callable[[nn.Module, Optimizer, torch.Tensor], object]

NUM_STEPS = 5

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd-foreach": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, foreach=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
    "adamw-fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
    "nadam": lambda ps: torch.optim.NAdam(ps, lr=0.01),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=0.01),
    "rprop": lambda ps: torch.optim.Rprop(ps, lr=0.01),
}


class Branches(nn.Module):
    """Some parameters are never used, others on some batches only; one is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.rare = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.first(x))
        if float(x[0, 0]) > 0:
            y = self.rare(y)
        y = self.last(torch.tanh(self.first(y)))
        return torch.as_tensor(y)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool, shared: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(4, 8, 4) for _ in range(3))
        self.reentrant = reentrant
        self.order = (0, 1, 2, 1) if shared else (0, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone().requires_grad_()
        for index in self.order:
            y = checkpoint(self.blocks[index], y, use_reentrant=self.reentrant)
        return y


def plain_loop(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def unsynced(model: nn.Module) -> Any:
    return model.no_sync()  # type: ignore[operator]


def batches(rank: int, num: int = NUM_STEPS) -> torch.Tensor:
    return torch.randn(num, 6, 4, generator=torch.Generator().manual_seed(rank))


def trained(
    replicas: list[nn.Module],
    overlap: Overlap,
    make: Make = OPTIMIZERS["sgd"],
    loop: Loop = plain_loop,
    *,
    segments: SegmentRule = "blocks",
    wraps_optimizer: bool = False,
    scheduled: bool = False,
    inputs: Callable[[int], torch.Tensor] = batches,
) -> list[dict[str, Any]]:
    """By rank what a training of copies of `replicas` has left: model, optimizer, rounds."""
    replicas = copy.deepcopy(replicas)
    config = GossipConfig(overlap=overlap, segments=segments)

    def work(context: Context) -> dict[str, Any]:
        model = replicas[context.launch.rank]
        optimizer = make(model.parameters())
        called = model
        if wraps_optimizer:
            DistributedOptimizer(optimizer, model, gossip=config, context=context)
        else:
            called = DistributedDataParallel(model, gossip=config, context=context, init_sync=False)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        for x in inputs(context.launch.rank):
            loop(called, optimizer, x)
            if scheduled:
                schedule.step()
        synchronize(model)
        return {
            "model": copy.deepcopy(model.state_dict()),
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "round": context.engine.round(0, 0),
        }

    return run_ranks(len(replicas), work)


def assert_same(given: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(given, wanted)
    elif isinstance(wanted, dict):
        assert given.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_same(given[key], value)
    elif isinstance(wanted, list | tuple):
        assert len(given) == len(wanted)
        for a, b in zip(given, wanted, strict=True):
            assert_same(a, b)
    else:
        assert given == wanted


def replicas_of(make: Callable[[], nn.Module], size: int = 2) -> list[nn.Module]:
    torch.manual_seed(3)
    return [make() for _ in range(size)]


# --- values


@pytest.mark.parametrize("wraps_optimizer", [False, True], ids=["ddp", "optimizer"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_and_optimizer_state_are_those_of_mode_none(
    name: str, wraps_optimizer: bool
) -> None:
    replicas = replicas_of(lambda: mlp(4, 8, 7, 3), size=3)
    given, wanted = (
        trained(
            replicas,
            overlap,
            OPTIMIZERS[name],
            wraps_optimizer=wraps_optimizer,
            scheduled=True,
        )
        for overlap in ("fused", "none")
    )
    assert_same(given, wanted)


@pytest.mark.parametrize("segments", ["blocks", 100])
@pytest.mark.parametrize(
    "make",
    [
        Branches,
        lambda: Checkpointed(reentrant=False),
        lambda: Checkpointed(reentrant=True),
        lambda: Checkpointed(reentrant=False, shared=True),
    ],
    ids=["branches", "checkpoints", "re-entrant checkpoints", "a shared checkpoint"],
)
def test_models_of_many_kinds_train_as_in_mode_none(
    make: Callable[[], nn.Module], segments: SegmentRule
) -> None:
    replicas = replicas_of(make)
    given, wanted = (trained(replicas, overlap, segments=segments) for overlap in ("fused", "none"))
    assert_same(given, wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_a_transformer_trains_as_in_mode_none(tied: bool) -> None:
    def tokens(rank: int) -> torch.Tensor:
        return torch.randint(
            0, 11, (NUM_STEPS, 2, 6), generator=torch.Generator().manual_seed(rank)
        )

    replicas = replicas_of(lambda: Gpt(tied=tied))
    given, wanted = (
        trained(replicas, overlap, OPTIMIZERS["adamw"], inputs=tokens)
        for overlap in ("fused", "none")
    )
    assert_same(given, wanted)


def test_accumulation_under_no_sync_steps_once_with_all_gradients() -> None:
    def loop(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
        optimizer.zero_grad()
        with unsynced(model):
            for part in x[:4].split(2):
                model(part).square().mean().backward()
        model(x[4:]).square().mean().backward()
        optimizer.step()

    replicas = replicas_of(lambda: mlp(4, 8, 3))
    given, wanted = (trained(replicas, overlap, loop=loop) for overlap in ("fused", "none"))
    assert_same(given, wanted)
    assert given[0]["round"] == NUM_STEPS


def test_gradients_that_no_hook_has_seen_are_stepped_by_the_step() -> None:
    def loop(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(model(x).square().mean(), parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizer.step()

    replicas = replicas_of(lambda: mlp(4, 8, 3))
    given, wanted = (trained(replicas, overlap, loop=loop) for overlap in ("fused", "none"))
    assert_same(given, wanted)


def test_a_second_step_after_one_backward_steps_again() -> None:
    def loop(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
        plain_loop(model, optimizer, x)
        optimizer.step()

    replicas = replicas_of(lambda: mlp(4, 8, 3))
    given, wanted = (trained(replicas, overlap, loop=loop) for overlap in ("fused", "none"))
    assert_same(given, wanted)


def test_a_forward_without_gradients_between_backward_and_step_changes_nothing() -> None:
    def loop(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        with torch.no_grad():
            model(x)
        optimizer.step()

    replicas = replicas_of(lambda: mlp(4, 8, 3))
    given, wanted = (trained(replicas, overlap, loop=loop) for overlap in ("fused", "none"))
    assert_same(given, wanted)


def test_two_optimizers_step_their_parts_of_one_segment() -> None:

    def train(overlap: Overlap) -> list[Any]:
        replicas = replicas_of(lambda: mlp(4, 8, 3))

        def work(context: Context) -> Any:
            model = replicas[context.launch.rank]
            config = GossipConfig(overlap=overlap, segments=10**6)
            ddp = DistributedDataParallel(model, gossip=config, context=context, init_sync=False)
            optimizers = [
                torch.optim.SGD(ddp.module.get_submodule("0").parameters(), lr=0.1),
                torch.optim.AdamW(ddp.module.get_submodule("2").parameters(), lr=0.01),
            ]
            for x in batches(context.launch.rank):
                ddp(x).square().mean().backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            synchronize(ddp)
            return copy.deepcopy(model.state_dict()), context.engine.round(0, 0)

        return run_ranks(2, work)

    assert_same(train("fused"), train("none"))


# --- when


def test_segments_are_stepped_and_posted_inside_the_backward() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        DistributedOptimizer(
            optimizer, model, gossip=GossipConfig(overlap="fused"), context=context
        )
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.ones(2, 4)).square().mean().backward()
        assert context.engine.is_open(0)
        after = [p.detach().clone() for p in model.parameters()]
        assert not any(map(torch.equal, before, after))
        optimizer.step()
        assert all(map(torch.equal, after, model.parameters()))
        synchronize(model)

    run_ranks(2, work)


def test_step_hooks_and_schedulers_see_the_optimizer_as_it_is() -> None:
    seen: list[tuple[bool, int]] = []

    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        DistributedOptimizer(
            optimizer, model, gossip=GossipConfig(overlap="fused"), context=context
        )
        if context.launch.rank == 0:
            for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
                register(
                    lambda given, *_: seen.append(
                        (
                            given is optimizer,
                            sum(p.grad is not None for p in given.param_groups[0]["params"]),
                        )
                    )
                )
        plain_loop(model, optimizer, torch.ones(2, 4))
        synchronize(model)

    run_ranks(2, work)
    assert seen == [(True, 4), (True, 4)]
