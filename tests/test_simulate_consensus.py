"""The simulator's consensus against theory and against dense algebra."""

from __future__ import annotations

import math

import pytest
import torch
from consensus import SCHEMES, is_off, rows

from crossover_comm.config import WIRES, GossipConfig, Wire
from crossover_comm.formulas import Row
from crossover_comm.simulate import theory
from crossover_comm.simulate.consensus import Setting, measure, steady_distance
from crossover_comm.simulate.mixing import Mixer
from crossover_comm.topology import (
    Crossover,
    GroupCrossover,
    MixedRadix,
    Ring,
    Table,
    Topology,
    mixing_matrix,
)

TOLERANCE = 0.1


def distance(topology: str | Topology, size: int, **setting: object) -> float:
    return measure(topology, size, Setting(**setting)).distance  # type: ignore[arg-type]


@pytest.mark.parametrize("topology", [Crossover(), Ring(), GroupCrossover(3), MixedRadix()])
@pytest.mark.parametrize("size", [2, 5, 8])
def test_mixing_is_the_product_with_w(topology: Topology, size: int) -> None:
    schedule = topology.schedule(size, 3, 2)
    x = torch.randn(size, 7, dtype=torch.float64)
    expected = x.clone()
    Mixer(schedule, [(0, 4), (4, 7)]).mix(x, 5)
    for segment, (begin, end) in enumerate([(0, 4), (4, 7)]):
        for element in range(end - begin):
            matrix = torch.from_numpy(
                mixing_matrix(schedule, 5, segment, numel=end - begin, element=element)
            )
            column = begin + element
            torch.testing.assert_close(x[:, column], matrix @ expected[:, column])


@pytest.mark.parametrize("wire", [wire for wire in WIRES if wire != "fp32"])
@pytest.mark.parametrize("topology", [Crossover(), GroupCrossover(4), MixedRadix()])
def test_a_narrow_wire_keeps_the_mean(topology: Topology, wire: Wire) -> None:
    config = GossipConfig(topology=topology, rounds_per_step=2)
    x = torch.randn(7, 64, dtype=torch.float64)
    mean = x.mean(dim=0)
    Mixer(config.schedule(7, 1), [(0, 64)], wire).mix(x, 0)
    torch.testing.assert_close(x.mean(dim=0), mean)


def test_push_sum_finds_the_mean_where_columns_alone_sum_to_one() -> None:
    rows: list[Row] = [[(1, 0.5), (2, 0.5)], [(0, 0.5)], []]
    table = Table(tables=[rows, [[], [(2, 0.5)], [(0, 0.25)]]], stochasticity="column")
    x = torch.randn(3, 5, dtype=torch.float64)
    mean = x.mean(dim=0)
    mixer = Mixer(table.schedule(3, 0, 1), [(0, 5)])
    for round in range(120):
        mixer.mix(x, round)
    torch.testing.assert_close(x, mean.expand(3, 5))
    assert math.isclose(mixer.weights.sum(), 3.0)


@pytest.mark.parametrize("size", [8, 64, 512])
def test_crossover_contracts_as_in_theory(size: int) -> None:
    setting = Setting(num_steps=1)
    measured = measure("crossover", size, setting).contraction
    assert measured == pytest.approx(theory.pairwise_contraction(size), rel=0.02)


def test_a_ring_contracts_as_in_theory() -> None:
    measured = measure("ring", 16, Setting(num_steps=1)).contraction
    assert measured == pytest.approx(theory.ring_contraction(16), rel=0.02)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_distances_of_whole_models_are_those_of_theory(size: int) -> None:
    crossover = theory.independent_distance(size, theory.pairwise_contraction(size))
    assert crossover == pytest.approx((size - 1) * (size - 2) / size**2)
    assert distance("crossover", size) == pytest.approx(crossover, rel=TOLERANCE)
    expected = theory.exponential_distance(size)
    assert distance("exponential", size) == pytest.approx(expected, rel=TOLERANCE)


def test_mixing_before_the_step_doubles_the_distance() -> None:
    c = theory.pairwise_contraction(16)
    expected = theory.independent_distance(16, c, order="before")
    assert expected == pytest.approx(2 * 15**2 / 16**2)
    assert distance("crossover", 16, order="before") == pytest.approx(expected, rel=TOLERANCE)


def test_a_narrow_wire_buys_a_second_round() -> None:
    c = theory.pairwise_contraction(16)
    expected = theory.independent_distance(16, c, cost=0.5)
    measured = distance("crossover", 16, wire="bf16")
    assert measured == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("radices", [(4, 4), (2, 8), (2, 3, 4)])
def test_digits_leave_the_distance_of_theory(radices: tuple[int, ...]) -> None:
    schedule = MixedRadix(radices=radices).schedule(math.prod(radices), 0, 4)
    measured = steady_distance(schedule, Setting(num_steps=600), cost=1.0)
    assert measured == pytest.approx(theory.mixed_radix_distance(radices), rel=TOLERANCE)


@pytest.mark.parametrize("group_size", [2, 4])
def test_random_groups_contract_as_in_theory(group_size: int) -> None:
    measured = measure(GroupCrossover(group_size), 16, Setting(num_steps=1)).contraction
    assert measured == pytest.approx(theory.group_contraction(16, group_size), rel=0.03)


def test_constant_noise_drives_crossover_apart_as_in_theory() -> None:
    measured = distance("crossover", 64, fixed_noise=True)
    assert measured == pytest.approx(theory.fixed_noise_distance(64), rel=TOLERANCE)


def test_the_entries_of_whole_models_are_met_with_few_workers() -> None:
    whole = tuple(scheme for scheme in SCHEMES if scheme.whole)
    found = list(rows(whole, sizes=(8, 16)))
    assert len(found) == 2 * len(whole)
    assert [row for row in found if is_off(row)] == []


@pytest.mark.parametrize("size", [2, 4, 16])
def test_the_exponential_graph_is_exact_after_its_phases(size: int) -> None:
    assert measure("exponential", size, Setting(num_steps=1)).exact_after == size.bit_length() - 1


@pytest.mark.parametrize("topology", [Crossover(), GroupCrossover(8)])
def test_random_maps_are_never_exact(topology: Topology) -> None:
    assert measure(topology, 64, Setting(num_steps=1)).exact_after is None
