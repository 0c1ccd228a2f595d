"""wire="auto": the level of each step, against the rule written out over dense replicas."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest
import torch
from models import mlp
from ranks import run_ranks, state_of
from torch import nn

from crossover_comm.config import OVERLAPS, GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import synchronize
from crossover_comm.segments import cut, trainable_parameters
from crossover_comm.simulate.auto_mixing import AutoMixer
from crossover_comm.simulate.wires import quantized
from crossover_comm.topology import GroupCrossover, MixedRadix, Table, Topology, mixing_matrix
from crossover_comm.wires import (
    BLOCK_NUMEL,
    MODEL_SHARE,
    ROUNDING,
    LevelWindows,
    WireLevel,
    best_level,
    levels_within,
    squared_distance,
)

WIDTHS = (20, 230, 30, 3)
NUM_STEPS = 30
RATE = 0.05
MEASURED_BLOCKS = 32
State = dict[str, torch.Tensor]


def replica(rank: int) -> nn.Module:
    torch.manual_seed(rank)
    return mlp(*WIDTHS)


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(4, WIDTHS[0], generator=torch.Generator().manual_seed(100 * step + rank))


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(x)).square().mean()


def sgd(model: nn.Module, rate: float = RATE) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def trained(size: int, config: GossipConfig, rate: float = RATE) -> list[Any]:
    """By rank: the state after all steps, and the payload bytes that were sent."""
    replicas = [replica(rank) for rank in range(size)]

    def train(context: Context) -> tuple[State, float]:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=config, context=context, init_sync=False
        )
        optimizer = sgd(ddp, rate)
        for step in range(NUM_STEPS):
            optimizer.zero_grad()
            loss(ddp, batch(step, rank)).backward()
            optimizer.step()
        synchronize(ddp)
        return state_of(ddp), context.engine.counters()["payload_sent_bytes"]

    return run_ranks(size, train)


class DenseLevels:
    """The rule: window w runs the level that suits the largest distance of window w - 2."""

    def __init__(self, replicas: list[nn.Module], config: GossipConfig) -> None:
        self.segments = [cut(r, trainable_parameters(r), config.segments) for r in replicas]
        self.size = len(replicas)
        self.levels = config.levels
        self.schedule = config.schedule(self.size, len(self.segments[0]))
        self.window = math.ceil(math.log2(self.size)) + 1
        self.ran: list[WireLevel] = []
        self.sums: list[torch.Tensor] = []  # per round: (ranks, 2)

    def level(self) -> WireLevel:
        window = len(self.ran) // self.window
        if window < 2:
            return self.levels[-1]
        first = (window - 2) * self.window
        squares, own = torch.stack(self.sums[first : first + self.window]).sum(dim=0).T
        noise = ROUNDING[self.ran[first].wire] ** 2
        return self.levels[best_level(self.levels, max(0.0, (squares / own / 2 - noise).max()))]

    @torch.no_grad()
    def mix(self) -> None:
        level = self.level()
        sums = torch.zeros(self.size, 2, dtype=torch.float64)
        for index, per_rank in enumerate(zip(*self.segments, strict=True)):
            tensors = [list(segment.parameters) for segment in per_rank]
            x = torch.stack([torch.cat([t.flatten() for t in own]) for own in tensors])
            start = quantized(x, level.wire)
            copy = start.clone()
            for r in range(level.rounds):
                round = len(self.ran) * level.rounds + r
                matrix = torch.from_numpy(mixing_matrix(self.schedule, round, index))
                peers = matrix.fill_diagonal_(0.0).argmax(dim=1)
                sent = quantized(copy, level.wire)
                if r == 0:
                    sums += self.measured(sent[peers], sent)
                if level.rounds == 1:
                    copy = x
                copy = copy + 0.5 * (sent[peers] - sent)
            mixed = copy if level.rounds == 1 else (x - start) + copy
            for own, row in zip(tensors, mixed, strict=True):
                for t, part in zip(own, row.split([t.numel() for t in own]), strict=True):
                    t.copy_(part.view_as(t))
        self.ran.append(level)
        self.sums.append(sums)

    def measured(self, other: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        blocks = torch.arange(own.shape[1]) // BLOCK_NUMEL
        columns = blocks % MEASURED_BLOCKS == 0
        apart = (other.double() - own.double())[:, columns]
        return torch.stack([apart.square().sum(1), own.double()[:, columns].square().sum(1)], 1)

    def sent_bytes(self) -> int:
        """Per rank: the messages of all rounds, and eight bytes for each hop."""
        numels = [sum(p.numel() for p in s.parameters) for s in self.segments[0]]
        hops = sum(round % self.window < self.window - 1 for round in range(len(self.ran)))
        messages = (wire_bytes(level, numel) for level in self.ran for numel in numels)
        return sum(messages) + 8 * hops


def wire_bytes(level: WireLevel, numel: int) -> int:
    sizes = {"fp32": 4 * numel, "bf16": 2 * numel, "int8": numel + 4 * -(-numel // BLOCK_NUMEL)}
    return level.rounds * sizes[level.wire]


def dense(size: int, config: GossipConfig) -> tuple[list[State], DenseLevels]:
    replicas = [replica(rank) for rank in range(size)]
    optimizers = [sgd(model) for model in replicas]
    mixing = DenseLevels(replicas, config)
    for step in range(NUM_STEPS):
        for rank, (model, optimizer) in enumerate(zip(replicas, optimizers, strict=True)):
            optimizer.zero_grad()
            loss(model, batch(step, rank)).backward()
            optimizer.step()
        mixing.mix()
    return [state_of(model) for model in replicas], mixing


@pytest.mark.parametrize("budget", [0.52, 1.04])
@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_ranks_run_the_levels_and_get_the_values_of_the_written_rule(
    size: int, budget: float
) -> None:
    config = GossipConfig(wire="auto", wire_budget=budget, overlap="none", seed=size)
    wanted, mixing = dense(size, config)
    assert len(set(mixing.ran)) > 1
    for rank, (state, sent_bytes) in enumerate(trained(size, config)):
        assert sent_bytes == mixing.sent_bytes()
        for name, value in wanted[rank].items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_two_runs_are_the_same_bit_for_bit(overlap: Overlap) -> None:
    config = GossipConfig(wire="auto", wire_budget=1.04, overlap=overlap)
    (first, second) = (trained(3, config) for _ in range(2))
    for (state, sent_bytes), (again, again_bytes) in zip(first, second, strict=True):
        assert sent_bytes == again_bytes
        assert all(torch.equal(value, again[name]) for name, value in state.items())


@pytest.mark.parametrize("overlap", ["forward", "fused"])
def test_every_overlap_that_mixes_after_the_step_gets_the_values_of_mode_none(
    overlap: Overlap,
) -> None:
    given, wanted = (
        trained(3, GossipConfig(wire="auto", wire_budget=1.04, overlap=mode))
        for mode in (overlap, "none")
    )
    for (state, _), (reference, _) in zip(given, wanted, strict=True):
        assert all(torch.equal(value, reference[name]) for name, value in state.items())


@pytest.mark.parametrize(
    "topology", ["crossover", "ring", GroupCrossover(3), MixedRadix()], ids=str
)
@pytest.mark.parametrize("budget", [0.52, 1.04])
def test_the_mean_is_kept_while_levels_change(topology: str | Topology, budget: float) -> None:
    config = GossipConfig(topology=topology, wire="auto", wire_budget=budget, overlap="none")
    before = torch.stack([flat(replica(rank).state_dict()) for rank in range(6)])
    after = torch.stack([flat(state) for state, _ in trained(6, config, rate=0.0)])
    torch.testing.assert_close(after.mean(dim=0), before.mean(dim=0), rtol=0, atol=1e-6)
    assert float(after.std(dim=0).mean()) < 0.01 * float(before.std(dim=0).mean())


def flat(state: State) -> torch.Tensor:
    return torch.cat([value.flatten() for value in state.values()]).double()


def test_members_of_groups_stay_equal_bit_for_bit() -> None:
    states = [state for state, _ in trained(4, GossipConfig(groups=2, wire="auto"))]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
        assert torch.equal(states[2][name], states[3][name])
        assert not torch.equal(value, states[2][name])


@pytest.mark.parametrize(
    ("topology", "what"),
    [
        ("all-reduce", r"got 'all-reduce' \(doubly stochastic\)"),
        (Table(tables=[[[(1, 0.5)], [(0, 0.5)]]], stochasticity="column"), r"column stochastic"),
    ],
    ids=str,
)
def test_topologies_without_a_choice_are_refused(topology: str | Topology, what: str) -> None:
    config = GossipConfig(topology=topology, wire="auto")

    def wrap(context: Context) -> None:
        with pytest.raises(InvalidArgument, match=what):
            DistributedDataParallel(mlp(3, 2), gossip=config, context=context, init_sync=False)

    run_ranks(2, wrap)


# --- the rule


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (0.26, [("int8", 1)]),
        (0.5, [("bf16", 1)]),
        (0.52, [("bf16", 1), ("int8", 2)]),
        (1.04, [("fp32", 1), ("bf16", 2), ("int8", 4)]),
    ],
)
def test_levels_are_what_the_budget_pays_for(budget: float, wanted: list[tuple[str, int]]) -> None:
    levels = levels_within(budget)
    assert [(level.wire, level.rounds) for level in levels] == wanted
    assert all(level.rounds * MODEL_SHARE[level.wire] <= budget for level in levels)


def test_the_closer_the_replicas_the_finer_the_level() -> None:
    levels = levels_within(1.04)
    chosen = [best_level(levels, (0.5**k) ** 2) for k in range(20)]
    assert chosen == sorted(chosen, reverse=True)
    assert set(chosen) == {0, 1, 2}


def test_two_int8_rounds_beat_a_bf16_round_from_the_distance_on_where_they_leave_less() -> None:
    levels = levels_within(0.52)
    border = 4 * ROUNDING["int8"] ** 2 - 2 * ROUNDING["bf16"] ** 2
    assert best_level(levels, 1.01 * border) == 1
    assert best_level(levels, 0.99 * border) == 0


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_the_rounding_of_a_wire_is_that_of_normal_numbers(wire: Any) -> None:
    x = torch.randn(64, 128 * BLOCK_NUMEL, generator=torch.Generator().manual_seed(0))
    apart = (quantized(x, wire) - x).square().mean() / x.square().mean()
    assert float(apart.sqrt()) == pytest.approx(ROUNDING[wire], rel=0.02)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_the_distance_is_found_under_the_rounding(wire: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(1, 400 * BLOCK_NUMEL, generator=generator)
    x = common + 0.02 * torch.randn(2, common.shape[1], generator=generator)
    sent = quantized(x, wire).double()
    found = squared_distance(
        float((sent[0] - sent[1]).square().sum()), float(sent[0].square().sum()), wire
    )
    assert found**0.5 == pytest.approx(0.02, rel=0.02)


def test_the_level_stays_where_nothing_was_measured() -> None:
    levels = levels_within(1.04)
    windows = LevelWindows(4, coarsest=2)
    nothing = squared_distance(0.0, 0.0, "int8")
    windows.decide(levels, nothing)
    assert windows.next == 2
    windows.decide(levels, max(nothing, squared_distance(0.0, 1.0, "int8")))
    assert windows.next == 0


@pytest.mark.parametrize("topology", ["crossover", "ring", GroupCrossover(3)], ids=str)
def test_the_simulator_mixes_as_the_ranks_do(topology: str | Topology) -> None:
    config = GossipConfig(topology=topology, wire="auto", wire_budget=1.04, overlap="none", seed=2)
    x, segments = in_segments([replica(rank) for rank in range(4)])
    mixer = AutoMixer(config.schedule(4, len(segments)), segments, config.wire_budget)
    for round in range(NUM_STEPS):
        mixer.mix(x, round)
    models = [replica(rank) for rank in range(4)]
    for model, (state, _) in zip(models, trained(4, config, rate=0.0), strict=True):
        model.load_state_dict(state)
    torch.testing.assert_close(in_segments(models)[0], x, rtol=1e-5, atol=1e-6)


def in_segments(models: list[nn.Module]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """(ranks, elements) in the order of segments, and their columns."""
    cuts = [cut(model, trainable_parameters(model), "blocks") for model in models]
    rows = [[p.detach().flatten() for s in own for p in s.parameters] for own in cuts]
    ends = list(accumulate(sum(p.numel() for p in s.parameters) for s in cuts[0]))
    return torch.stack([torch.cat(row) for row in rows]), list(
        zip([0, *ends[:-1]], ends, strict=True)
    )
