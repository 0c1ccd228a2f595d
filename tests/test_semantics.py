"""What a distributed step does, against the same training with a dense mixing matrix.

Every rank starts from parameters of its own and trains on data of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from models import mlp
from ranks import DenseMixing, assert_states_close, run_ranks, state_of
from torch import nn

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.hooks import synchronize
from crossover_comm.optimizer import DistributedOptimizer

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
NUM_STEPS = 6


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def replicas_of(size: int, *widths: int) -> list[nn.Module]:
    """One model per rank, all different."""
    torch.manual_seed(3)
    return [mlp(*(widths or (4, 8, 3))) for _ in range(size)]


def inputs_of(size: int, num_batches: int = NUM_STEPS, features: int = 4) -> list[torch.Tensor]:
    """For each rank `num_batches` batches of its own."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(num_batches, 6, features, generator=generator) for _ in range(size)]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(x).square().mean())


def reference(
    replicas: Sequence[nn.Module],
    inputs: Sequence[torch.Tensor],
    config: GossipConfig,
    overlap: Overlap,
    make: MakeOptimizer,
) -> list[nn.Module]:
    """Plain training of all replicas, mixed by W where `overlap` says."""
    plain = copy.deepcopy(list(replicas))
    optimizers = [make(model) for model in plain]
    mixing = DenseMixing(plain, config)
    for step in range(inputs[0].shape[0]):
        for model, optimizer, x in zip(plain, optimizers, inputs, strict=True):
            optimizer.zero_grad()
            loss_of(model, x[step]).backward()
        if overlap == "backward":
            mixing.mix()
        for optimizer in optimizers:
            optimizer.step()
        if overlap != "backward":
            mixing.mix()
    return plain


def means_of(replicas: Sequence[nn.Module]) -> list[torch.Tensor]:
    """The mean over the replicas of each parameter."""
    parameters = zip(*(model.parameters() for model in replicas), strict=True)
    return [torch.stack([p.detach() for p in ps]).mean(0) for ps in parameters]


def assert_like_reference(given: Sequence[nn.Module], wanted: Sequence[nn.Module]) -> None:
    for model, plain in zip(given, wanted, strict=True):
        assert_states_close(state_of(model), state_of(plain))


CASES = [
    (2, GossipConfig()),
    (3, GossipConfig(seed=7)),
    (5, GossipConfig(segments=40)),
    (4, GossipConfig(topology="exponential")),
    (4, GossipConfig(topology="ring")),
    (3, GossipConfig(topology="complete")),
    (4, GossipConfig(wire="bf16")),
    (4, GossipConfig(wire="fp16")),
    (4, GossipConfig(wire="int8")),
]


def named(case: tuple[int, GossipConfig]) -> str:
    size, config = case
    return f"{size}-{config.topology}-{config.wire}-{config.segments}"


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_wrapped_model_trains_as_the_dense_reference(
    case: tuple[int, GossipConfig], overlap: Overlap, make: MakeOptimizer
) -> None:
    size, config = case
    config = dataclasses.replace(config, overlap=overlap)
    replicas, inputs = replicas_of(size), inputs_of(size)
    wanted = reference(replicas, inputs, config, overlap, make)

    def train(context: Context) -> None:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizer = make(ddp)
        for x in inputs[rank]:
            optimizer.zero_grad()
            loss_of(ddp, x).backward()
            optimizer.step()
        synchronize(ddp)

    run_ranks(size, train)
    assert_like_reference(replicas, wanted)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_the_wrapped_optimizer_trains_as_the_dense_reference(overlap: Overlap) -> None:
    config = GossipConfig(overlap=overlap)
    replicas, inputs = replicas_of(3), inputs_of(3)
    wanted = reference(replicas, inputs, config, overlap, sgd)

    def train(context: Context) -> None:
        rank = context.launch.rank
        model = replicas[rank]
        optimizer = DistributedOptimizer(sgd(model), model, gossip=config, context=context)
        for x in inputs[rank]:
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
        synchronize(optimizer)

    run_ranks(3, train)
    assert_like_reference(replicas, wanted)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_the_mean_over_the_workers_is_kept_exactly(overlap: Overlap) -> None:
    """Small integers and weights of 1/2 leave no rounding; the steps add nothing."""
    generator = torch.Generator().manual_seed(11)
    replicas = replicas_of(4)
    with torch.no_grad():
        for model in replicas:
            for p in model.parameters():
                p.copy_(torch.randint(-64, 64, p.shape, generator=generator))
    before = means_of(replicas)

    def train(context: Context) -> None:
        model = replicas[context.launch.rank]
        ddp = DistributedDataParallel(
            model, gossip=GossipConfig(overlap=overlap), context=context, init_sync=False
        )
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)
        for _ in range(5):
            loss_of(ddp, torch.ones(2, 4)).backward()
            optimizer.step()
        synchronize(ddp)

    run_ranks(4, train)
    for mean, wanted in zip(means_of(replicas), before, strict=True):
        assert torch.equal(mean, wanted)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_accumulation_under_no_sync_is_one_round_a_step(overlap: Overlap) -> None:
    config = GossipConfig(overlap=overlap)
    replicas, inputs = replicas_of(3), inputs_of(3, num_batches=3 * NUM_STEPS)
    merged = [x.reshape(NUM_STEPS, 3 * 6, 4) for x in inputs]
    wanted = reference(replicas, merged, config, overlap, sgd)

    def train(context: Context) -> int:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizer = sgd(ddp)
        for micro_batches in inputs[rank].reshape(NUM_STEPS, 3, 6, 4):
            optimizer.zero_grad()
            with ddp.no_sync():
                for x in micro_batches[:-1]:
                    (loss_of(ddp, x) / 3).backward()
            (loss_of(ddp, micro_batches[-1]) / 3).backward()
            optimizer.step()
        synchronize(ddp)
        return context.engine.round(0, 0)

    assert run_ranks(3, train) == [NUM_STEPS] * 3
    assert_like_reference(replicas, wanted)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_accumulation_without_no_sync_is_a_round_for_each_backward(overlap: Overlap) -> None:
    replicas, inputs = replicas_of(2), inputs_of(2, num_batches=8)

    def train(context: Context) -> int:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank],
            gossip=GossipConfig(overlap=overlap),
            context=context,
            init_sync=False,
        )
        optimizer = sgd(ddp)
        for index, x in enumerate(inputs[rank]):
            loss_of(ddp, x).backward()
            if index % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
        synchronize(ddp)
        return context.engine.round(0, 0)

    assert run_ranks(2, train) == [8, 8]


@pytest.mark.parametrize("skipped_at", [1, NUM_STEPS - 1])
@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_an_overflow_on_one_rank_skips_its_step_and_no_round(
    overlap: Overlap, skipped_at: int
) -> None:
    config = GossipConfig(overlap=overlap)
    replicas, inputs = replicas_of(3), inputs_of(3)
    plain = copy.deepcopy(replicas)
    optimizers = [sgd(model) for model in plain]
    mixing = DenseMixing(plain, config)
    for step in range(NUM_STEPS):
        for model, optimizer, x in zip(plain, optimizers, inputs, strict=True):
            optimizer.zero_grad()
            loss_of(model, x[step]).backward()
        if overlap == "backward":
            mixing.mix()
        for rank, optimizer in enumerate(optimizers):
            if (rank, step) != (1, skipped_at):
                optimizer.step()
        if overlap != "backward":
            mixing.mix()

    def train(context: Context) -> None:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizer = sgd(ddp)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        for step, x in enumerate(inputs[rank]):
            optimizer.zero_grad()
            overflow = float("inf") if (rank, step) == (1, skipped_at) else 1.0
            scaler.scale(loss_of(ddp, x) * overflow).backward()
            scaler.step(optimizer)
            scaler.update()
        synchronize(ddp)

    run_ranks(3, train)
    assert_like_reference(replicas, plain)


def two_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """One for the first layer, one for the second; a third layer is held by nobody."""
    return [
        torch.optim.SGD(model.get_submodule("0").parameters(), lr=0.1),
        torch.optim.AdamW(model.get_submodule("2").parameters(), lr=0.01),
    ]


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_two_optimizers_of_one_model_train_as_the_dense_reference(overlap: Overlap) -> None:
    config = GossipConfig(overlap=overlap)
    replicas, inputs = replicas_of(3, 4, 6, 5, 3), inputs_of(3)
    plain = copy.deepcopy(replicas)
    per_rank = [two_optimizers(model) for model in plain]
    mixing = DenseMixing(plain, config)
    for index in range(NUM_STEPS):
        for model, optimizers, x in zip(plain, per_rank, inputs, strict=True):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, x[index]).backward()
        if overlap == "backward":
            mixing.mix()
        for optimizers in per_rank:
            for optimizer in optimizers:
                optimizer.step()
        if overlap != "backward":
            mixing.mix()

    def train(context: Context) -> None:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizers = two_optimizers(ddp.module)
        for x in inputs[rank]:
            loss_of(ddp, x).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        synchronize(ddp)

    run_ranks(3, train)
    assert_like_reference(replicas, plain)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_two_wrapped_models_of_a_gan_train_as_the_dense_reference(overlap: Overlap) -> None:
    config = GossipConfig(overlap=overlap)
    generators, critics = replicas_of(3, 4, 6, 5), replicas_of(3, 5, 6, 1)
    inputs = inputs_of(3)

    def one_step(
        generator: nn.Module, critic: nn.Module, x: torch.Tensor, turn: int
    ) -> torch.Tensor:
        critic.requires_grad_(turn == 0)
        fake = generator(x)
        score = critic(fake.detach() if turn == 0 else fake)
        return torch.as_tensor(score.square().mean() if turn == 0 else -score.mean())

    plain = [copy.deepcopy(generators), copy.deepcopy(critics)]
    mixings = [DenseMixing(models, config) for models in plain]
    optimizers = [[sgd(model) for model in models] for models in plain]
    for step in range(NUM_STEPS):
        for turn, trained in ((0, 1), (1, 0)):
            for generator, critic, x in zip(*plain, inputs, strict=True):
                one_step(generator, critic, x[step], turn).backward()
            if overlap == "backward":
                mixings[trained].mix()
            for optimizer in optimizers[trained]:
                optimizer.step()
                optimizer.zero_grad()
            if overlap != "backward":
                mixings[trained].mix()
    if overlap == "backward":
        mixings[1].mix()  # the generator's last turn has called the critic

    def train(context: Context) -> None:
        rank = context.launch.rank
        wrapped = [
            DistributedDataParallel(models[rank], gossip=config, context=context, init_sync=False)
            for models in (generators, critics)
        ]
        own = [sgd(model) for model in wrapped]
        for x in inputs[rank]:
            for turn, trained in ((0, 1), (1, 0)):
                one_step(wrapped[0], wrapped[1], x, turn).backward()
                own[trained].step()
                own[trained].zero_grad()
        for model in wrapped:
            synchronize(model)

    run_ranks(3, train)
    assert_like_reference(generators, plain[0])
    assert_like_reference(critics, plain[1])
