"""Gossip under torch.compile: the values of every backend are those of eager training."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from models import mlp
from ranks import assert_states_close, run_ranks, state_of
from torch import nn

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import synchronize
from crossover_comm.optimizer import DistributedOptimizer

BACKENDS = ["eager", "aot_eager", "inductor"]
NUM_STEPS = 3


class Tied(nn.Module):
    """The head is the embedding, so that their segment is awaited at the model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.body(self.embedding(tokens))))
        return logits


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def compiled(model: Any, backend: str | None, **options: Any) -> Any:
    return model if backend is None else torch.compile(model, backend=backend, **options)


def trained(
    replicas: list[nn.Module], inputs: torch.Tensor, backend: str | None, overlap: Overlap
) -> list[list[torch.Tensor]]:
    """Trains copies of `replicas`, one a rank; the gradients of the last step and the parameters.

    Ranks compile one after the other: the compiler is not made for several threads.
    """
    replicas = copy.deepcopy(replicas)

    def work(context: Context) -> list[torch.Tensor]:
        rank = context.launch.rank
        model = replicas[rank]
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer: torch.optim.Optimizer = DistributedOptimizer(
            sgd, model, gossip=GossipConfig(overlap=overlap), context=context
        )
        called = compiled(model, backend, fullgraph=overlap in ("forward", "fused"))
        for x in inputs[rank]:
            optimizer.zero_grad()
            called(x).square().mean().backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
        synchronize(model)
        return gradients + [p.detach().clone() for p in model.parameters()]

    return run_ranks(len(replicas), work)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("overlap", ["forward", "fused", "backward", "none"])
def test_a_compiled_model_trains_as_the_eager_one(backend: str, overlap: Overlap) -> None:
    torch.manual_seed(6)
    replicas: list[nn.Module] = [mlp(4, 8, 3) for _ in range(2)]
    inputs = torch.randn(2, NUM_STEPS, 5, 4)
    wanted = trained(replicas, inputs, None, overlap)
    given = trained(replicas, inputs, backend, overlap)
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("overlap", ["forward", "fused"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_with_a_tied_weight_trains_as_the_eager_one(
    backend: str, overlap: Overlap
) -> None:
    torch.manual_seed(7)
    replicas: list[nn.Module] = [Tied() for _ in range(2)]
    inputs = torch.randint(0, 11, (2, NUM_STEPS, 2, 6))
    wanted = trained(replicas, inputs, None, overlap)
    given = trained(replicas, inputs, backend, overlap)
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_write_between_post_and_a_compiled_forward_raises(backend: str) -> None:
    all_posted = threading.Barrier(2)

    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer: torch.optim.Optimizer = DistributedOptimizer(sgd, model, context=context)
        called = compiled(model, backend)
        called(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
        all_posted.wait()
        with torch.no_grad():
            model.get_parameter("0.weight").add_(1.0)
        with pytest.raises(InvalidArgument, match=r"'0\.weight': written between post"):
            called(torch.ones(2, 4))

    run_ranks(2, work)


@pytest.mark.parametrize("overlap", ["forward", "fused", "backward", "none"])
@pytest.mark.parametrize("outside", [False, True], ids=["compiled inside", "compiled outside"])
def test_compiling_inside_or_outside_the_wrapper_trains_alike(
    overlap: Overlap, outside: bool
) -> None:
    torch.manual_seed(5)
    replicas = [mlp(4, 8, 3) for _ in range(2)]
    plain = copy.deepcopy(replicas)
    inputs = torch.randn(2, NUM_STEPS, 5, 4)

    def train(context: Context, model: nn.Module, backend: str | None) -> None:
        inner = model if outside else compiled(model, backend)
        ddp = DistributedDataParallel(
            inner, gossip=GossipConfig(overlap=overlap), context=context, init_sync=False
        )
        called = compiled(ddp, backend) if outside else ddp
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for x in inputs[context.launch.rank]:
            optimizer.zero_grad()
            called(x).square().mean().backward()
            optimizer.step()
        synchronize(ddp)

    run_ranks(2, lambda context: train(context, replicas[context.launch.rank], "aot_eager"))
    run_ranks(2, lambda context: train(context, plain[context.launch.rank], None))
    for model, wanted in zip(replicas, plain, strict=True):
        assert_states_close(state_of(model), state_of(wanted))
