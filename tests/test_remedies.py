"""Remedies for momentum against their formulas, with a dense mixing matrix.

Every rank starts from parameters of its own and trains on data of its own, with a learning rate
that differs between parameter groups, changes with every step and is 0 at times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import networkx
import pytest
import torch
from models import mlp
from ranks import DenseMixing, assert_states_close, run_ranks, state_of
from torch import nn

from crossover_comm.config import GossipConfig
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument
from crossover_comm.graphs import from_networkx
from crossover_comm.hooks import attach, synchronize
from crossover_comm.optimizer import DistributedOptimizer
from crossover_comm.segments import trainable_parameters

MOMENTUM = 0.9
DECAY = 0.01
BASE_LRS = (0.05, 0.02)
FACTORS = (0.0, 1.0, 0.9, 0.0, 0.5, 0.7, 1.0, 0.3)

Replicas = Sequence[nn.Module]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Weights and biases, each with a learning rate of its own."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    split = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    return [{"params": ps, "lr": lr} for ps, lr in zip(split, BASE_LRS, strict=True)]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups_of(model), momentum=MOMENTUM, weight_decay=DECAY)


def nesterov(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups_of(model), momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups_of(model), weight_decay=DECAY)


def set_lr(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group, lr in zip(optimizer.param_groups, BASE_LRS, strict=True):
        group["lr"] = lr * FACTORS[step]


def replicas_of(size: int) -> list[nn.Module]:
    torch.manual_seed(3)
    return [mlp(4, 8, 3) for _ in range(size)]


def inputs_of(size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(len(FACTORS), 6, 4, generator=generator) for _ in range(size)]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(x).square().mean())


def backwards(replicas: Replicas, inputs: Sequence[torch.Tensor], step: int) -> None:
    for model, x in zip(replicas, inputs, strict=True):
        model.zero_grad()
        loss_of(model, x[step]).backward()


def with_lr(replicas: Replicas, step: int) -> Iterator[tuple[nn.Parameter, torch.Tensor, float]]:
    """Every parameter of every worker, its gradient and its learning rate."""
    for model in replicas:
        for p in model.parameters():
            assert p.grad is not None
            yield p, p.grad, BASE_LRS[0 if p.dim() > 1 else 1] * FACTORS[step]


def train(
    replicas: Replicas,
    inputs: Sequence[torch.Tensor],
    config: GossipConfig,
    make: MakeOptimizer,
) -> list[int]:
    """Trains every replica in place; each rank's bytes sent."""

    def one(context: Context) -> int:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizer = make(ddp)
        for step, x in enumerate(inputs[rank]):
            set_lr(optimizer, step)
            optimizer.zero_grad()
            loss_of(ddp, x).backward()
            optimizer.step()
        synchronize(ddp)
        return int(context.engine.counters()["payload_sent_bytes"])

    return run_ranks(len(replicas), one)


def assert_like(given: Replicas, wanted: Replicas) -> None:
    for model, plain in zip(given, wanted, strict=True):
        assert_states_close(state_of(model), state_of(plain), atol=1e-5)


@torch.no_grad()
def quasi_global_steps(replicas: Replicas, step: int, state: dict[Any, Any], look: bool) -> None:
    for p, g, lr in with_lr(replicas, step):
        x, m, lr_before = state.get(p, (p, torch.zeros_like(p), 0.0))
        if lr_before > 0:
            m = MOMENTUM * m + (1 - MOMENTUM) * (x - p) / lr_before
        state[p] = (p.clone(), m, lr)
        direction = MOMENTUM * m + g + DECAY * p
        if look:
            direction = g + DECAY * p + MOMENTUM * direction
        p.sub_(lr * direction)


@pytest.mark.parametrize(
    ("size", "config", "make"),
    [
        (2, GossipConfig(overlap="none", momentum="quasi-global"), sgd),
        (3, GossipConfig(overlap="backward", momentum="quasi-global"), sgd),
        (4, GossipConfig(overlap="forward", momentum="quasi-global", segments=80), sgd),
        (5, GossipConfig(overlap="none", momentum="quasi-global", topology="ring"), nesterov),
        (8, GossipConfig(overlap="forward", momentum="quasi-global"), sgd),
    ],
)
def test_quasi_global_momentum_equals_its_formula(
    size: int, config: GossipConfig, make: MakeOptimizer
) -> None:
    replicas, inputs = replicas_of(size), inputs_of(size)
    plain = copy.deepcopy(replicas)
    mixing, state = DenseMixing(plain, config), {}  # type: ignore[var-annotated]
    for step in range(len(FACTORS)):
        backwards(plain, inputs, step)
        if config.overlap == "backward":
            mixing.mix()
        quasi_global_steps(plain, step, state, make is nesterov)
        if config.overlap != "backward":
            mixing.mix()
    train(replicas, inputs, config, make)
    assert_like(replicas, plain)


@torch.no_grad()
def decentlam_step(
    replicas: Replicas, step: int, mixing: DenseMixing, buffers: dict[Any, torch.Tensor]
) -> None:
    before = {}
    for p, g, lr in with_lr(replicas, step):
        before[p] = p.clone()
        p.sub_(lr * g)
    mixing.mix()
    for p, _, lr in with_lr(replicas, step):
        x = before[p] if lr > 0 else p.clone()
        gradient = (x - p) / lr if lr > 0 else torch.zeros_like(p)
        buffers[p] = MOMENTUM * buffers.get(p, torch.zeros_like(p)) + gradient + DECAY * x
        p.copy_(x - lr * buffers[p])


@pytest.mark.parametrize(
    ("size", "config"),
    [
        (2, GossipConfig(momentum="decentlam")),
        (3, GossipConfig(momentum="decentlam", overlap="none", segments=80)),
        (4, GossipConfig(momentum="decentlam", topology="ring")),
        (5, GossipConfig(momentum="decentlam", topology="exponential")),
        (8, GossipConfig(momentum="decentlam")),
    ],
)
def test_decentlam_equals_its_formula(size: int, config: GossipConfig) -> None:
    replicas, inputs = replicas_of(size), inputs_of(size)
    plain = copy.deepcopy(replicas)
    mixing, buffers = DenseMixing(plain, config), {}  # type: ignore[var-annotated]
    for step in range(len(FACTORS)):
        backwards(plain, inputs, step)
        decentlam_step(plain, step, mixing, buffers)
    train(replicas, inputs, config, sgd)
    assert_like(replicas, plain)


def test_decentlam_runs_the_round_of_a_skipped_step_all_the_same() -> None:
    config = GossipConfig(momentum="decentlam")
    replicas, inputs = replicas_of(3), inputs_of(3)
    plain = copy.deepcopy(replicas)
    mixing, buffers = DenseMixing(plain, config), {}  # type: ignore[var-annotated]
    for step in range(1, 3):
        backwards(plain, inputs, step)
        if step == 2:
            for p in plain[1].parameters():
                p.grad = None if p.grad is None else torch.zeros_like(p)
        decentlam_step(plain, step, mixing, buffers)

    def one(context: Context) -> int:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizer = sgd(ddp)
        for step in (1, 2):
            set_lr(optimizer, step)
            optimizer.zero_grad()
            loss_of(ddp, inputs[rank][step]).backward()
            if (rank, step) != (1, 2):
                optimizer.step()
        synchronize(ddp)
        return context.engine.round(0, 0)

    assert run_ranks(3, one) == [2, 2, 2]
    for rank in (0, 2):
        assert_states_close(state_of(replicas[rank]), state_of(plain[rank]), atol=1e-5)


@torch.no_grad()
def mix_momenta(
    shadows: Replicas, optimizers: Sequence[torch.optim.Optimizer], mixing: DenseMixing
) -> None:
    """Mixes the buffers where they exist, through models that hold them."""
    pairs = []
    for shadow, optimizer in zip(shadows, optimizers, strict=True):
        held = [p for group in optimizer.param_groups for p in group["params"]]
        mirrored = [p for group in groups_of(shadow) for p in group["params"]]
        for p, mirror in zip(held, mirrored, strict=True):
            state = optimizer.state.get(p, {})
            buffer = state.get("momentum_buffer", state.get("exp_avg"))
            mirror.zero_() if buffer is None else mirror.copy_(buffer)
            pairs.append((mirror, buffer))
    mixing.mix()
    for mirror, buffer in pairs:
        if buffer is not None:
            buffer.copy_(mirror)


@pytest.mark.parametrize(
    ("size", "config", "make"),
    [
        (2, GossipConfig(overlap="none", momentum="exchanged"), sgd),
        (3, GossipConfig(overlap="forward", momentum="exchanged"), adam),
        (4, GossipConfig(overlap="backward", momentum="exchanged", segments=80), sgd),
        (5, GossipConfig(overlap="backward", momentum="exchanged", topology="ring"), adam),
        (8, GossipConfig(overlap="forward", momentum="exchanged"), sgd),
    ],
)
def test_exchanged_momenta_equal_the_dense_reference_for_twice_the_bytes(
    size: int, config: GossipConfig, make: MakeOptimizer
) -> None:
    replicas, inputs = replicas_of(size), inputs_of(size)
    plain, shadows = copy.deepcopy(replicas), copy.deepcopy(replicas)
    mixings = DenseMixing(plain, config), DenseMixing(shadows, config)
    optimizers = [make(model) for model in plain]

    def mix() -> None:
        mixings[0].mix()
        mix_momenta(shadows, optimizers, mixings[1])

    for step in range(len(FACTORS)):
        backwards(plain, inputs, step)
        if config.overlap == "backward":
            mix()
        for optimizer in optimizers:
            set_lr(optimizer, step)
            optimizer.step()
        if config.overlap != "backward":
            mix()
    sent = train(replicas, inputs, config, make)
    assert_like(replicas, plain)
    num_peers = 2 if config.topology == "ring" else 1
    model_bytes = 4 * sum(p.numel() for p in replicas[0].parameters())
    assert sent == [2 * len(FACTORS) * num_peers * model_bytes] * size


def test_quasi_global_state_survives_a_restart() -> None:
    config = GossipConfig(overlap="backward", topology="ring", momentum="quasi-global")
    inputs = inputs_of(3)

    def one(context: Context, model: nn.Module, restart: bool) -> dict[str, torch.Tensor]:
        optimizer = sgd(model)
        parameters = trainable_parameters(model)
        hooks = attach(context, model, parameters, config, "backward")
        for step, x in enumerate(inputs[context.launch.rank]):
            if restart and step == 4:
                assert hooks is not None
                state = copy.deepcopy(hooks.state_dict())
                del hooks
                hooks = attach(context, model, parameters, config, "backward")
                assert hooks is not None
                hooks.load_state_dict(state)
            assert hooks is not None
            hooks.forward_begins()
            set_lr(optimizer, step)
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
        return state_of(model)

    def run_all(restart: bool) -> list[dict[str, torch.Tensor]]:
        models = replicas_of(3)
        return run_ranks(3, lambda context: one(context, models[context.launch.rank], restart))

    for given, wanted in zip(run_all(restart=True), run_all(restart=False), strict=True):
        assert_states_close(given, wanted)


def first_step(
    config: GossipConfig, make: MakeOptimizer, closure: Callable[[], Any] | None = None
) -> list[str]:
    """What each of two ranks says to a first step."""

    def one(context: Context) -> str:
        model = mlp(4, 8, 3)
        optimizer = make(model)
        try:
            DistributedOptimizer(optimizer, model, gossip=config, context=context)
            loss_of(model, torch.ones(2, 4)).backward()
            optimizer.step(closure)
        except InvalidArgument as error:
            return str(error)
        return "done"

    return run_ranks(2, one)


def without_momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def fused_under_amp(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = sgd(model)
    optimizer.grad_scale = torch.ones(())  # type: ignore[attr-defined]  # as GradScaler does
    return optimizer


@pytest.mark.parametrize(
    ("momentum", "make", "reason"),
    [
        ("quasi-global", adam, "expected torch.optim.SGD, whose step is lr times a momentum"),
        ("quasi-global", without_momentum, "which becomes the factor of quasi-global momentum"),
        ("quasi-global", fused_under_amp, "expected gradients without GradScaler's scale"),
        ("decentlam", adam, "expected torch.optim.SGD, whose step is lr times a momentum"),
        ("exchanged", without_momentum, "got SGD, whose state of '0.weight' has"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(
    momentum: Any, make: MakeOptimizer, reason: str
) -> None:
    for said in first_step(GossipConfig(overlap="none", momentum=momentum), make):
        assert reason in said


def test_a_closure_comes_too_late_for_remedies_that_need_gradients() -> None:
    for momentum in ("quasi-global", "decentlam"):
        config = GossipConfig(overlap="none", momentum=momentum)
        for said in first_step(config, sgd, closure=lambda: 0.0):
            assert "expected optimizer.step() without a closure" in said


def test_decentlam_asks_for_one_optimizer_of_all_parameters() -> None:
    def one(context: Context) -> None:
        ddp = DistributedDataParallel(
            mlp(4, 8, 3),
            gossip=GossipConfig(momentum="decentlam"),
            context=context,
            init_sync=False,
        )
        optimizer = torch.optim.SGD([ddp.get_parameter("module.0.weight")], lr=0.1)
        loss_of(ddp, torch.ones(2, 4)).backward()
        with pytest.raises(InvalidArgument, match=r"got one without '0\.bias'"):
            optimizer.step()

    run_ranks(2, one)


def test_what_cannot_go_together_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument, match="momentum='decentlam': expected overlap='none'"):
        GossipConfig(momentum="decentlam", overlap="backward")
    with pytest.raises(InvalidArgument, match="momentum: expected one of 'local', 'quasi-global'"):
        GossipConfig(momentum="global")  # type: ignore[arg-type]
    star = from_networkx(networkx.DiGraph([(0, 1), (1, 0)]), push_sum=True)
    for said in first_step(GossipConfig(topology=star, momentum="exchanged"), sgd):
        assert "push-sum (a column-stochastic topology): expected momentum='local'" in said
