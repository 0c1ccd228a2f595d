"""A wrapped model computes what the unwrapped one does, bit for bit, where no round mixes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from models import Gpt, ResNet50, mlp
from ranks import lone_rank, run_ranks, state_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.hooks import synchronize

Losses = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Checkpointed(nn.Module):
    """An MLP whose layers are recomputed; one of them is used twice."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.shared = nn.Linear(4, 4)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        for layer in (self.first, self.shared, self.shared):
            x = torch.tanh(checkpoint(layer, x, use_reentrant=self.reentrant))
        return x


class Branching(nn.Module):
    """Half of it is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.used(x)
        return out


class TiedByHand(nn.Module):
    """The decoder reads the encoder's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x[None], x[None], x[None])[0]
        return out


def plain_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    loss = torch.as_tensor(model(x)).square().mean()
    loss.backward()
    return loss


def double_use(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As a GAN's critic: once on real, once on generated data."""
    loss = torch.as_tensor(model(x).mean() - model(x.flip(0) * 2).square().mean())
    loss.backward()
    return loss


def with_create_graph(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A gradient penalty."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    loss = torch.as_tensor((gradient.norm() - 1).square())
    loss.backward()
    return loss


def with_second_order(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    loss = torch.as_tensor(model(x)).square().mean()
    loss.backward(create_graph=True)
    penalty = torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None])
    penalty.sum().backward()
    return loss


def with_retain_graph(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    loss = torch.as_tensor(model(x)).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()
    return loss


def with_detached_weight(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight = next(p for p in model.parameters() if p.dim() == 2)
    loss = torch.as_tensor(model(x).square().mean() + (x @ weight.detach()[:, :4].t()).mean())
    loss.backward()
    return loss


@dataclass
class Case:
    make: Callable[[], nn.Module]
    inputs: Callable[[], torch.Tensor]
    losses: Losses = plain_loss


def vectors() -> torch.Tensor:
    return torch.randn(5, 4)


def tokens() -> torch.Tensor:
    return torch.randint(0, 11, (2, 6))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


CASES = {
    "tied weights": Case(lambda: Gpt(tied=True), tokens),
    "weights tied by hand": Case(TiedByHand, vectors),
    "batch norm": Case(ResNet50, images),
    "re-entrant checkpointing": Case(lambda: Checkpointed(reentrant=True), vectors),
    "checkpointing": Case(lambda: Checkpointed(reentrant=False), vectors),
    "unused parameters": Case(Branching, vectors),
    "attention": Case(Attention, vectors),
    "double use": Case(lambda: mlp(4, 8, 3), vectors, double_use),
    "create_graph": Case(lambda: mlp(4, 8, 3), vectors, with_create_graph),
    "second order": Case(lambda: mlp(4, 8, 3), vectors, with_second_order),
    "retain_graph": Case(lambda: mlp(4, 8, 3), vectors, with_retain_graph),
    "detached use": Case(lambda: mlp(4, 8, 3), vectors, with_detached_weight),
}


def gradients_of(model: nn.Module) -> list[torch.Tensor | None]:
    return [p.grad for p in model.parameters()]


def assert_same_bits(given: list[torch.Tensor | None], wanted: list[torch.Tensor | None]) -> None:
    for a, b in zip(given, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)


def train_a_little(ddp: DistributedDataParallel, x: torch.Tensor, losses: Losses) -> None:
    """Some rounds, so that the ranks have mixed."""
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for _ in range(2):
        losses(ddp, x)
        optimizer.step()
        optimizer.zero_grad()
    synchronize(ddp)


def compare(case: Case, overlap: Overlap, *, under_no_sync: bool) -> None:
    torch.manual_seed(1)
    models = [case.make() for _ in range(2)]
    inputs = [case.inputs() for _ in range(2)]

    def work(context: Context) -> None:
        model, x = models[context.launch.rank], inputs[context.launch.rank]
        ddp = DistributedDataParallel(
            model, gossip=GossipConfig(overlap=overlap), context=context, init_sync=False
        )
        train_a_little(ddp, x, case.losses)
        plain = copy.deepcopy(model)
        with ddp.no_sync() if under_no_sync else nullcontext():
            loss = case.losses(ddp, x)
        assert torch.equal(loss, case.losses(plain, x))
        assert_same_bits(gradients_of(model), gradients_of(plain))

    run_ranks(2, work)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_under_no_sync_are_those_of_the_plain_model(name: str, overlap: Overlap) -> None:
    compare(CASES[name], overlap, under_no_sync=True)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_after_closed_rounds_are_those_of_the_plain_model(
    name: str, overlap: Overlap
) -> None:
    compare(CASES[name], overlap, under_no_sync=False)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
@pytest.mark.parametrize("name", ["tied weights", "batch norm", "attention"])
def test_an_evaluation_gives_the_outputs_of_the_plain_model(name: str, overlap: Overlap) -> None:
    case = CASES[name]
    torch.manual_seed(2)
    models = [case.make() for _ in range(2)]
    x = case.inputs()

    def work(context: Context) -> None:
        model = models[context.launch.rank]
        ddp = DistributedDataParallel(
            model, gossip=GossipConfig(overlap=overlap), context=context, init_sync=False
        )
        train_a_little(ddp, x, case.losses)
        ddp.eval()
        plain = copy.deepcopy(model)
        before = state_of(model)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(ddp(x), plain(x))
        after = state_of(model)
        assert all(torch.equal(after[key], value) for key, value in before.items())

    run_ranks(2, work)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_with_one_rank_is_that_of_the_plain_model(name: str, overlap: Overlap) -> None:
    case = CASES[name]
    torch.manual_seed(4)
    model, x = case.make(), case.inputs()
    plain = copy.deepcopy(model)
    ddp = DistributedDataParallel(
        model, gossip=GossipConfig(overlap=overlap), context=lone_rank(), init_sync=False
    )
    for each in (ddp, plain):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            case.losses(each, x.clone())
            optimizer.step()
    wanted = state_of(plain)
    assert all(torch.equal(value, wanted[key]) for key, value in state_of(ddp).items())
