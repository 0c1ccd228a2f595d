"""Push-sum training against the dense x' = P x, w' = P w with the model at z = x / w.

Every rank starts from parameters of its own and trains on data of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import networkx
import numpy as np
import pytest
import torch
from models import mlp
from ranks import assert_states_close, run_ranks, state_of
from torch import nn

from crossover_comm.config import PRESETS, GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument
from crossover_comm.graphs import from_networkx
from crossover_comm.hooks import attach, synchronize
from crossover_comm.optimizer import DistributedOptimizer
from crossover_comm.segments import cut, trainable_parameters
from crossover_comm.topology import Table, mixing_matrix, topology_from

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
NUM_STEPS = 8


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)


def irregular(size: int) -> Table:
    """A ring one way, and arcs from some ranks to many: in- and out-degrees differ."""
    graph = networkx.DiGraph([(r, (r + 1) % size) for r in range(size)])
    graph.add_edges_from((0, r) for r in range(2, size))
    graph.add_edges_from((r, size // 2) for r in range(size - 1) if r != size // 2)
    return from_networkx(graph, push_sum=True)


class DensePushSum:
    """The workers' x = w z and w under P, segment by segment, in float64."""

    def __init__(self, replicas: Sequence[nn.Module], config: GossipConfig) -> None:
        self._segments = [cut(r, trainable_parameters(r), config.segments) for r in replicas]
        num_segments = len(self._segments[0])
        self._schedule = topology_from(config.topology).schedule(len(replicas), 0, num_segments)
        self.weights = np.ones((len(replicas), num_segments))
        self._rounds = 0

    @torch.no_grad()
    def scale(self, sign: int) -> None:
        """Takes parameters from z to x, or back."""
        for weights, segments in zip(self.weights, self._segments, strict=True):
            for weight, segment in zip(weights, segments, strict=True):
                for p in segment.parameters:
                    p.mul_(weight**sign)

    @torch.no_grad()
    def mix(self) -> None:
        for index, per_rank in enumerate(zip(*self._segments, strict=True)):
            shares = mixing_matrix(self._schedule, self._rounds, index)
            before = self.weights[:, index].copy()
            self.weights[:, index] = shares @ before
            q = torch.from_numpy(shares * before / self.weights[:, index : index + 1])
            for tensors in zip(*(segment.parameters for segment in per_rank), strict=True):
                mixed = torch.einsum("ij,j...->i...", q, torch.stack(tensors).double())
                for tensor, value in zip(tensors, mixed, strict=True):
                    tensor.copy_(value)
        self._rounds += 1


def replicas_of(size: int) -> list[nn.Module]:
    torch.manual_seed(3)
    return [mlp(4, 8, 3) for _ in range(size)]


def inputs_of(size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(NUM_STEPS, 6, 4, generator=generator) for _ in range(size)]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(x).square().mean())


def reference(
    replicas: Sequence[nn.Module],
    inputs: Sequence[torch.Tensor],
    config: GossipConfig,
    make: MakeOptimizer,
) -> tuple[list[nn.Module], DensePushSum]:
    plain = copy.deepcopy(list(replicas))
    optimizers = [make(model) for model in plain]
    dense = DensePushSum(plain, config)
    for step in range(NUM_STEPS):
        for model, optimizer, x in zip(plain, optimizers, inputs, strict=True):
            optimizer.zero_grad()
            loss_of(model, x[step]).backward()
        if config.overlap == "backward":
            dense.mix()
        dense.scale(1)
        for optimizer in optimizers:
            optimizer.step()
        dense.scale(-1)
        if config.overlap != "backward":
            dense.mix()
    return plain, dense


def train(
    replicas: Sequence[nn.Module],
    inputs: Sequence[torch.Tensor],
    config: GossipConfig,
    make: MakeOptimizer,
) -> list[list[float]]:
    """Trains every replica in place; each rank's weights."""

    def one(context: Context) -> list[float]:
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
        return context.engine.weights(0)

    return run_ranks(len(replicas), one)


CASES: list[tuple[int, Overlap, MakeOptimizer]] = [
    (2, "none", sgd),
    (2, "backward", adam),
    (3, "forward", sgd),
    (4, "none", adam),
    (4, "backward", sgd),
    (5, "forward", adam),
    (6, "backward", sgd),
    (8, "none", sgd),
    (12, "forward", sgd),
]


@pytest.mark.parametrize(("size", "overlap", "make"), CASES)
def test_training_equals_the_dense_reference_on_irregular_digraphs(
    size: int, overlap: Overlap, make: MakeOptimizer
) -> None:
    config = GossipConfig(topology=irregular(size), overlap=overlap, segments=80)
    replicas, inputs = replicas_of(size), inputs_of(size)
    wanted, dense = reference(replicas, inputs, config, make)
    weights = train(replicas, inputs, config, make)
    np.testing.assert_allclose(weights, dense.weights, rtol=1e-12)
    np.testing.assert_allclose(np.sum(weights, axis=0), size, rtol=1e-12)
    if size > 2:
        assert np.ptp(dense.weights) > 0.1
    for model, plain in zip(replicas, wanted, strict=True):
        assert_states_close(state_of(model), state_of(plain), atol=1e-5)


def means_after(topology: Table, num_steps: int) -> tuple[float, float]:
    """How far the workers end from their first mean, and from each other, without learning."""
    replicas = [nn.Linear(3, 2).double() for _ in range(topology.size)]
    start = torch.stack([model.weight.detach().clone() for model in replicas]).mean(0)
    config = GossipConfig(topology=topology, overlap="none")

    def mix(context: Context) -> None:
        model = replicas[context.launch.rank]
        optimizer = DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0), model, gossip=config, context=context
        )
        for _ in range(num_steps):
            model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
            optimizer.step()

    run_ranks(topology.size, mix)
    ends = torch.stack([model.weight.detach() for model in replicas])
    return float((ends - start).abs().max()), float((ends - ends[0]).abs().max())


def test_the_exact_mean_is_found_where_row_stochastic_mixing_drifts() -> None:
    torch.manual_seed(1)
    shares = irregular(6)
    off, apart = means_after(shares, 80)
    assert off < 1e-12
    assert apart < 1e-12
    graph = networkx.DiGraph([(u, v) for v, row in enumerate(shares.tables[0]) for u, _ in row])
    off, apart = means_after(from_networkx(graph), 80)
    assert apart < 1e-9
    assert off > 0.05


def test_bf16_on_the_wire_costs_no_more_than_its_rounding() -> None:
    config = GossipConfig(topology=irregular(5), overlap="none", wire="bf16")
    replicas, inputs = replicas_of(5), inputs_of(5)
    wanted, _ = reference(replicas, inputs, config, sgd)
    train(replicas, inputs, config, sgd)
    for model, plain in zip(replicas, wanted, strict=True):
        assert_states_close(state_of(model), state_of(plain), atol=2e-2)


def test_the_sgp_preset_is_the_paper_s_order_over_the_exponential_graph() -> None:
    config = PRESETS["sgp"]
    replicas, inputs = replicas_of(4), inputs_of(4)
    wanted, _ = reference(replicas, inputs, dataclasses.replace(config, overlap="none"), sgd)
    weights = train(replicas, inputs, config, sgd)
    assert weights == [[1.0] * len(weights[0])] * 4
    for model, plain in zip(replicas, wanted, strict=True):
        assert_states_close(state_of(model), state_of(plain))


def test_a_step_that_raised_leaves_the_model_at_x_over_w() -> None:
    def once(context: Context) -> bool:
        torch.manual_seed(context.launch.rank)
        model = nn.Linear(2, 2)
        config = GossipConfig(topology=irregular(3), overlap="backward")
        hooks = attach(context, model, dict(model.named_parameters()), config, "backward")
        assert hooks is not None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            hooks.forward_begins()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        before = model.weight.detach().clone()
        hooks.step_begins(optimizer, closure=False)  # and never ends
        scaled = not torch.equal(model.weight, before)
        hooks.forward_begins()
        torch.testing.assert_close(model.weight.detach(), before)
        synchronize(model)
        return scaled

    assert any(run_ranks(3, once))


def test_a_step_with_a_closure_is_refused() -> None:
    def step(context: Context) -> str:
        model = nn.Linear(2, 2)
        config = GossipConfig(topology=irregular(2), overlap="none")
        optimizer = DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model, gossip=config, context=context
        )
        with pytest.raises(InvalidArgument, match=r"push-sum: expected .* without a closure"):
            optimizer.step(lambda: model(torch.ones(1, 2)).sum())
        return "refused"

    assert run_ranks(2, step) == ["refused"] * 2


def test_state_survives_a_restart() -> None:
    """The second half of a training, by new objects, equals that of an unbroken one."""
    size = 3
    config = GossipConfig(topology=irregular(size), overlap="backward")
    inputs = inputs_of(size)

    def run(context: Context, model: nn.Module, restart: bool) -> dict[str, torch.Tensor]:
        rank = context.launch.rank
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        parameters = trainable_parameters(model)
        hooks = attach(context, model, parameters, config, "backward")
        for step, x in enumerate(inputs[rank]):
            if restart and step == 3:
                assert hooks is not None
                state = copy.deepcopy(hooks.state_dict())
                del hooks
                hooks = attach(context, model, parameters, config, "backward")
                assert hooks is not None
                with pytest.raises(
                    InvalidArgument, match=r"expected what gossip_state_dict\(\) gave"
                ):
                    hooks.load_state_dict({})
                hooks.load_state_dict(state)
            assert hooks is not None
            hooks.forward_begins()
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
        return state_of(model)

    def run_all(restart: bool) -> list[dict[str, torch.Tensor]]:
        models = replicas_of(size)
        return run_ranks(size, lambda context: run(context, models[context.launch.rank], restart))

    for given, wanted in zip(run_all(restart=True), run_all(restart=False), strict=True):
        assert_states_close(given, wanted)
