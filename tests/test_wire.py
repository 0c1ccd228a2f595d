"""What a narrow type on the wire does to parameters, over ranks in one process."""

from __future__ import annotations

import pytest
import torch
from models import mlp
from ranks import run_ranks, state_of
from torch import nn

from crossover_comm.config import WIRES, GossipConfig, Wire
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import CrossoverError
from crossover_comm.graphs import from_networkx
from crossover_comm.hooks import synchronize
from crossover_comm.topology import GroupCrossover, MixedRadix, Topology

NARROW = [wire for wire in WIRES if wire != "fp32"]


def replica(rank: int) -> nn.Module:
    """One of unlike models with segments of several blocks and of less than one."""
    torch.manual_seed(rank)
    return mlp(20, 30, 11, 3)


def trained(size: int, config: GossipConfig, *, num_steps: int, rate: float) -> list[nn.Module]:
    """The replicas by rank, after steps on data that differ between ranks."""
    replicas = [replica(rank) for rank in range(size)]

    def train(context: Context) -> None:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizer = torch.optim.SGD(ddp.parameters(), lr=rate)
        for step in range(num_steps):
            x = torch.randn(4, 20, generator=torch.Generator().manual_seed(100 * step + rank))
            optimizer.zero_grad()
            ddp(x).square().mean().backward()
            optimizer.step()
        synchronize(ddp)

    run_ranks(size, train)
    return replicas


def stacked(replicas: list[nn.Module]) -> torch.Tensor:
    """(ranks, elements), in float64."""
    flat = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in replicas]
    return torch.stack(flat).double()


@pytest.mark.parametrize("wire", NARROW)
@pytest.mark.parametrize(
    "topology", ["crossover", "ring", GroupCrossover(3), MixedRadix()], ids=str
)
def test_the_mean_is_kept_and_replicas_come_together(topology: str | Topology, wire: Wire) -> None:
    config = GossipConfig(topology=topology, wire=wire, overlap="none", rounds_per_step=2)
    before = stacked([replica(rank) for rank in range(6)])
    after = stacked(trained(6, config, num_steps=4, rate=0.0))
    torch.testing.assert_close(after.mean(dim=0), before.mean(dim=0), rtol=0, atol=1e-6)
    assert float(after.std(dim=0).mean()) < 0.5 * float(before.std(dim=0).mean())


@pytest.mark.parametrize("hierarchy", ["sharded", "root"])
@pytest.mark.parametrize("wire", NARROW)
def test_members_of_a_group_stay_equal_bit_for_bit(wire: Wire, hierarchy: str) -> None:
    config = GossipConfig(groups=2, wire=wire, hierarchy=hierarchy)  # type: ignore[arg-type]
    states = [state_of(model) for model in trained(4, config, num_steps=5, rate=0.1)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert torch.equal(states[2][name], states[3][name]), name
        assert not torch.equal(value, states[2][name]), name


@pytest.mark.parametrize("wire", NARROW)
def test_an_exact_average_comes_to_the_mean_but_for_the_rounding_of_bf16(wire: Wire) -> None:
    config = GossipConfig(topology="all-reduce", wire=wire, overlap="none")
    before = stacked([replica(rank) for rank in range(3)])
    after = stacked(trained(3, config, num_steps=1, rate=0.0))
    mean = before.mean(dim=0)
    assert float((after - mean).abs().max()) < 2.0**-7 * float(before.abs().max())


def test_push_sum_finds_the_mean_over_int8() -> None:
    networkx = pytest.importorskip("networkx")
    graph = networkx.DiGraph([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)])
    topology = from_networkx(graph, push_sum=True)
    config = GossipConfig(topology=topology, wire="int8", overlap="none")
    before = stacked([replica(rank) for rank in range(4)])
    after = stacked(trained(4, config, num_steps=40, rate=0.0))
    mean = before.mean(dim=0)
    assert float((after - mean).abs().max()) < 0.02 * float(before.abs().max())


@pytest.mark.parametrize("topology", ["crossover", "all-reduce"])
def test_a_value_that_float16_cannot_hold_is_an_error_naming_the_parameter(topology: str) -> None:
    config = GossipConfig(topology=topology, wire="fp16", overlap="none")

    def work(context: Context) -> str:
        model = mlp(3, 2)
        with torch.no_grad():
            model.get_parameter("0.bias")[1] = 65520.0 * (context.launch.rank == 1)
        ddp = DistributedDataParallel(model, gossip=config, context=context, init_sync=False)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)

        def train() -> None:
            for _ in range(50):
                ddp(torch.ones(1, 3)).sum().backward()
                optimizer.step()

        with pytest.raises(CrossoverError) as caught:
            train()
        return str(caught.value)

    for message in run_ranks(2, work):
        assert "parameter '0.bias' holds 1 non-finite value" in message
        assert "too large for float16 on the wire" in message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_members_with_parameters_of_two_bytes_stay_equal_bit_for_bit(dtype: torch.dtype) -> None:
    def work(context: Context) -> torch.Tensor:
        rank = context.launch.rank
        model = replicas[rank]
        config = GossipConfig(groups=2, overlap="backward")
        ddp = DistributedDataParallel(model, gossip=config, context=context, init_sync=False)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
        for step in range(4):
            x = torch.randn(4, 20, generator=torch.Generator().manual_seed(10 * rank + step))
            ddp(x.to(dtype)).square().mean().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    replicas = [replica(rank).to(dtype) for rank in range(4)]
    first, second, third, fourth = run_ranks(4, work)
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("topology", ["crossover", GroupCrossover(3)], ids=str)
def test_parameters_of_two_bytes_keep_the_mean_in_expectation(
    topology: str | Topology, dtype: torch.dtype
) -> None:
    """Rounded to nearest, a half between 1 and the next number would always become 1."""
    step = torch.finfo(dtype).eps
    config = GossipConfig(topology=topology, overlap="none")

    def work(context: Context) -> torch.Tensor:
        model = nn.Linear(100, 100, bias=False)
        nn.init.constant_(model.weight, 1.0 + step * (context.launch.rank == 1))
        model = model.to(dtype)
        ddp = DistributedDataParallel(model, gossip=config, context=context, init_sync=False)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)
        ddp(torch.ones(1, 100, dtype=dtype)).sum().backward()
        optimizer.step()
        return model.weight.detach().double()

    weights, again = (torch.stack(run_ranks(3, work)) for _ in range(2))
    assert abs(float(weights.mean()) - (1.0 + step / 3)) < 5 * step / 2 / 100
    assert torch.equal(weights, again)
