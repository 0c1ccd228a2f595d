"""SlowMo against its formula, with a dense mixing matrix.

Every rank starts from parameters of its own and trains on data of its own, with a learning rate
that changes with every step and is 0 at the end of a period.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from models import mlp
from ranks import DenseMixing, assert_states_close, run_ranks, state_of
from torch import nn

from crossover_comm.config import GossipConfig
from crossover_comm.context import Context
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import RoundHooks, attach, synchronize
from crossover_comm.segments import trainable_parameters

PERIOD = 2
LRS = (0.05, 0.04, 0.05, 0.0, 0.03, 0.05, 0.02, 0.05, 0.01)

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1.0, weight_decay=0.01)


def replicas_of(size: int) -> list[nn.Module]:
    torch.manual_seed(3)
    return [mlp(4, 8, 3) for _ in range(size)]


def inputs_of(size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(len(LRS), 6, 4, generator=generator) for _ in range(size)]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(x).square().mean())


class DenseSlowMomentum:
    """The formula, of all workers."""

    def __init__(self, replicas: Sequence[nn.Module], config: GossipConfig) -> None:
        self._config = config
        self._mixing = DenseMixing(replicas, config)
        self._parameters = [p for model in replicas for p in model.parameters()]
        self._start = [p.detach().clone() for p in self._parameters]
        self._slow = [torch.zeros_like(p) for p in self._start]

    @torch.no_grad()
    def mix(self, step: int) -> None:
        self._mixing.mix()
        if (step + 1) % PERIOD != 0:
            return
        lr, beta, alpha = LRS[step], self._config.slow_momentum, self._config.slow_lr
        for i, p in enumerate(self._parameters):
            if lr > 0:
                self._slow[i] = beta * self._slow[i] + (self._start[i] - p) / lr
                p.copy_(self._start[i] - alpha * lr * self._slow[i])
            self._start[i] = p.detach().clone()


@pytest.mark.parametrize(
    ("size", "config", "make"),
    [
        (2, GossipConfig(overlap="none", exact_every=PERIOD, slow_momentum=0.5), sgd),
        (3, GossipConfig(overlap="forward", exact_every=PERIOD, slow_momentum=0.6), sgd),
        (4, GossipConfig(overlap="backward", exact_every=PERIOD, slow_momentum=0.5), adam),
        (
            5,
            GossipConfig(
                overlap="forward",
                exact_every=PERIOD,
                exact_first=3,
                slow_momentum=0.5,
                slow_lr=0.7,
                segments=80,
            ),
            adam,
        ),
        (8, GossipConfig(overlap="none", exact_every=PERIOD, slow_lr=0.5), sgd),
    ],
)
def test_slow_momentum_equals_its_formula(
    size: int, config: GossipConfig, make: MakeOptimizer
) -> None:
    replicas, inputs = replicas_of(size), inputs_of(size)
    plain = copy.deepcopy(replicas)
    optimizers, dense = [make(model) for model in plain], DenseSlowMomentum(plain, config)
    for step, lr in enumerate(LRS):
        for model, x in zip(plain, inputs, strict=True):
            model.zero_grad()
            loss_of(model, x[step]).backward()
        if config.overlap == "backward":
            dense.mix(step)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        if config.overlap != "backward":
            dense.mix(step)
    run_all(replicas, inputs, config, make)
    for model, wanted in zip(replicas, plain, strict=True):
        assert_states_close(state_of(model), state_of(wanted), atol=1e-5)


def run_all(
    replicas: Sequence[nn.Module],
    inputs: Sequence[torch.Tensor],
    config: GossipConfig,
    make: MakeOptimizer,
    restart_at: int | None = None,
) -> None:
    """Trains every replica in place; from `restart_at` on by new hooks that take up the state."""

    def one(context: Context) -> None:
        model = replicas[context.launch.rank]
        optimizer, hooks = make(model), attached(context, model, config)
        for step, (lr, x) in enumerate(zip(LRS, inputs[context.launch.rank], strict=True)):
            if step == restart_at:
                state = copy.deepcopy(hooks.state_dict())
                del hooks
                hooks = attached(context, model, config)
                hooks.load_state_dict(state)
            hooks.forward_begins()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
        synchronize(model)

    run_ranks(len(replicas), one)


def attached(context: Context, model: nn.Module, config: GossipConfig) -> RoundHooks:
    hooks = attach(context, model, trainable_parameters(model), config, "none")
    assert hooks is not None
    return hooks


def test_its_state_survives_a_restart() -> None:
    config = GossipConfig(topology="ring", overlap="none", exact_every=PERIOD, slow_momentum=0.5)
    inputs = inputs_of(3)
    broken, unbroken = replicas_of(3), replicas_of(3)
    run_all(broken, inputs, config, sgd, restart_at=2 * PERIOD)  # rounds start again at 0
    run_all(unbroken, inputs, config, sgd)
    for model, wanted in zip(broken, unbroken, strict=True):
        assert_states_close(state_of(model), state_of(wanted))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"slow_momentum": 0.5}, "expected exact_every=<rounds>, whose averages it follows"),
        ({"slow_momentum": 1.0, "exact_every": 4}, r"expected a number in \[0, 1\), got 1.0"),
        ({"slow_lr": 0.0, "exact_every": 4}, "slow_lr: expected a number > 0, got 0.0"),
        (
            {"slow_momentum": 0.5, "exact_every": 4, "momentum": "decentlam"},
            "slow_momentum: expected another momentum than 'decentlam'",
        ),
    ],
)
def test_factors_that_cannot_be_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        GossipConfig(**arguments)
