"""What mode "fused" refuses: whatever would come too late, and optimizers with more than steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import mlp
from ranks import lone_rank, run_ranks
from test_fused import (
    OPTIMIZERS,
    Checkpointed,
    Loop,
    Make,
    assert_same,
    plain_loop,
    replicas_of,
    trained,
)
from torch import nn
from torch.optim import Optimizer

from crossover_comm.config import GossipConfig
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument, TransportError
from crossover_comm.optimizer import DistributedOptimizer

REFUSAL = (InvalidArgument, TransportError)
"""On the rank that refuses, and on the other, whom the same words reach."""


def scaled(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.zero_grad()
    scaler.scale(model(x).square().mean()).backward()
    scaler.step(optimizer)


def clipped(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
    optimizer.step()


def rescheduled(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.param_groups[0]["lr"] *= 0.5
    optimizer.step()


def twice(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
    plain_loop(model, optimizer, x)
    model(x).square().mean().backward()
    model(x).square().mean().backward()


def second_backward(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
    plain_loop(model, optimizer, x)
    loss = model(x).mean()
    loss.backward(retain_graph=True)
    loss.backward()


def with_graph(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
    model(x).square().mean().backward(create_graph=True)
    optimizer.step()


def with_closure(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> None:
    optimizer.step(lambda: float(model(x).sum()))


REFUSED: dict[str, tuple[Loop, str]] = {
    "clipping": (clipped, "expected gradients as the backward left them"),
    "GradScaler": (scaled, "expected gradients without GradScaler's scale"),
    "a schedule before the step": (rescheduled, r"expected param_groups\[0\]\['lr'\] as it was"),
    "two backwards": (twice, r"a forward before optimizer\.step\(\)"),
    "a graph's second backward": (second_backward, r"accumulated again after|inplace operation"),
    "create_graph": (with_graph, "expected backward.. without create_graph"),
    "a closure": (with_closure, r"expected optimizer\.step\(\) without a closure"),
}


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_come_too_late_is_refused(name: str) -> None:
    loop, message = REFUSED[name]
    replicas = replicas_of(lambda: nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises((*REFUSAL, RuntimeError), match=message):
        trained(replicas, "fused", loop=loop, wraps_optimizer=True)


def test_a_module_shared_by_reentrant_checkpoints_is_refused() -> None:
    replicas = replicas_of(lambda: Checkpointed(reentrant=True, shared=True))
    with pytest.raises(REFUSAL, match="after its segment was stepped"):
        trained(replicas, "fused", wraps_optimizer=True)


def test_a_parameter_of_two_optimizers_is_refused() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 3)
        ddp = DistributedDataParallel(
            model, gossip=GossipConfig(overlap="fused"), context=context, init_sync=False
        )
        first, second = (OPTIMIZERS["sgd"](ddp.parameters()) for _ in range(2))
        plain_loop(ddp, first, torch.ones(2, 4))
        second.step()

    with pytest.raises(REFUSAL, match=r"parameter '0\.weight' in one optimizer"):
        run_ranks(2, work)


class GlobalNorm(torch.optim.SGD):
    """As LAMB and its kin: the step of each depends on the gradients of all."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = sum(float(g.norm()) for g in gradients)
        for gradient in gradients:
            gradient.div_(1.0 + norm)
        return super().step(closure)


class Counting(torch.optim.SGD):
    """As schedule-free optimizers: a count in the group that each step advances."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
        return super().step(closure)


class Lookahead(Optimizer):
    """Steps another optimizer inside its own step."""

    def __init__(self, parameters: Any) -> None:
        self.inner = torch.optim.SGD(parameters, lr=0.1)
        super().__init__(self.inner.param_groups, {})

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ps: GlobalNorm(ps, lr=0.1), "other values when it steps"),
        (lambda ps: Counting(ps, lr=0.1), r"its step writes param_groups\[0\]\['k'\]"),
        (lambda ps: torch.optim.LBFGS(ps), "a trial on small tensors found: TypeError"),
        (Lookahead, "a trial on small tensors found"),
    ],
    ids=["a global norm", "a count in the group", "LBFGS", "an optimizer inside"],
)
def test_an_optimizer_that_cannot_step_in_parts_is_refused(make: Make, message: str) -> None:
    replicas = replicas_of(lambda: mlp(4, 3))
    before = copy.deepcopy(replicas)
    with pytest.raises(REFUSAL, match=message):
        trained(replicas, "fused", make, wraps_optimizer=True)
    for replica, untouched in zip(replicas, before, strict=True):
        assert_same(replica.state_dict(), untouched.state_dict())


def test_alone_any_loop_works() -> None:
    model = mlp(4, 3)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    DistributedOptimizer(
        optimizer, model, gossip=GossipConfig(overlap="fused"), context=lone_rank()
    )
    clipped(model, optimizer, torch.ones(2, 4))
