"""Topologies: their properties, names, descriptions and errors."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from crossover_comm import _C, formulas
from crossover_comm.config import GossipConfig
from crossover_comm.errors import InvalidArgument
from crossover_comm.formulas import Row
from crossover_comm.topology import (
    Base2,
    Crossover,
    CrossoverSequential,
    Exponential,
    ExponentialXor,
    GroupCrossover,
    MixedRadix,
    Ring,
    Shift,
    Table,
    Topology,
    mixing_matrix,
    topology_from,
)

SIZES = [1, 2, 3, 4, 5, 8, 12, 33]
NAMES = [
    "crossover",
    "noseg",
    "nofairness",
    "nofaseg",
    "crossover-sequential",
    "shift",
    "exponential",
    "exponential-xor",
    "base2",
    "mixed-radix",
    "ring",
    "complete",
    "all-reduce",
]
ROW_STOCHASTIC = ["nofairness", "nofaseg"]
ABLATIONS = ["noseg", "nofairness", "nofaseg"]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
SWAP: list[Row] = [[(1, 0.5)], [(0, 0.5)]]
LAZY_SWAP: list[Row] = [[(1, 0.25)], [(0, 0.25)]]


def expect_exact(schedule: _C.Schedule, rounds: range, segment: int) -> None:
    """The rounds, and not fewer, give everybody the mean."""
    product = np.eye(schedule.size)
    average = np.full(product.shape, 1 / schedule.size)
    for round in rounds:
        assert np.abs(product - average).max() > 1e-3
        product = mixing_matrix(schedule, round, segment) @ product
    np.testing.assert_allclose(product, average, atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_every_named_topology_is_stochastic_as_declared(name: str, size: int) -> None:
    schedule = topology_from(name).schedule(size, 3, 4)
    declared = "row" if name in ROW_STOCHASTIC else "doubly"
    assert (schedule.size, schedule.stochasticity) == (size, declared)
    for round in range(6):
        matrix = mixing_matrix(schedule, round, 2)
        assert matrix.dtype == np.float64
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum(axis=1), np.ones(size), atol=1e-12)
        if declared == "doubly":
            np.testing.assert_allclose(matrix.sum(axis=0), np.ones(size), atol=1e-12)


@pytest.mark.parametrize("name", ["crossover", "crossover-sequential"])
def test_crossover_mixes_by_half_the_identity_and_half_a_derangement(name: str) -> None:
    matrix = mixing_matrix(topology_from(name).schedule(7, 3, 1), 5, 0)
    permutation = 2 * matrix - np.eye(7)
    assert (np.diag(permutation) == 0).all()
    np.testing.assert_array_equal(permutation @ permutation.T, np.eye(7))


@pytest.mark.parametrize("topology", [Exponential(), ExponentialXor()], ids=lambda t: t.name)
@pytest.mark.parametrize("segment", [0, 3])
def test_exponential_averages_exactly_after_log2_rounds_of_a_power_of_two(
    topology: Topology, segment: int
) -> None:
    for size in (2, 4, 8, 16, 32, 64):
        schedule = topology.schedule(size, 0, 4)
        expect_exact(schedule, range(size.bit_length() - 1), segment)


def test_base2_averages_exactly_after_its_number_of_rounds_at_every_size() -> None:
    for size in range(2, 65):
        expect_exact(Base2().schedule(size, 0, 1), range(formulas.base2_num_rounds(size)), 0)


def test_base2_averages_exactly_in_every_later_period_whatever_the_segment() -> None:
    for size in (3, 5, 12, 13):
        num_rounds = formulas.base2_num_rounds(size)
        for segment in range(num_rounds + 1):
            begin = -segment % num_rounds
            rounds = range(begin, begin + num_rounds)
            expect_exact(Base2().schedule(size, 0, 9), rounds, segment)


def test_base2_needs_the_documented_rounds() -> None:
    documented = {1: 0, 2: 1, 3: 3, 4: 2, 5: 5, 6: 4, 7: 5, 8: 3, 12: 5, 24: 6, 48: 7, 64: 6}
    assert {size: formulas.base2_num_rounds(size) for size in documented} == documented
    for size in range(2, 4097):
        assert formulas.base2_num_rounds(size) <= 2 * (size.bit_length() - 1) + 1


@pytest.mark.parametrize("segment", [0, 2])
def test_mixed_radix_averages_exactly_after_a_round_for_each_digit(segment: int) -> None:
    for size in range(2, 65):
        rounds = range(len(formulas.prime_factors(size)))
        expect_exact(MixedRadix().schedule(size, 0, 3), rounds, segment)


@pytest.mark.parametrize("size", SIZES)
def test_groups_cover_the_dial_from_pairs_to_all_reduce(size: int) -> None:
    whole = GroupCrossover(size).schedule(size, 0, 1)
    np.testing.assert_allclose(mixing_matrix(whole, 0, 0), np.full((size, size), 1 / size))
    pairs = mixing_matrix(GroupCrossover(2).schedule(size, 0, 1), 0, 0)
    assert sorted(np.count_nonzero(pairs, axis=1)) == [1] * (size % 2) + [2] * (size - size % 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_resolves_to_its_topology(name: str) -> None:
    topology = topology_from(name)
    assert topology.schedule(4, 0, 1).name == topology.name
    assert topology.name == ("crossover" if name in ABLATIONS else name)


def test_a_topology_resolves_to_itself() -> None:
    table = Table(tables=[SWAP])
    assert topology_from(table) is table


@pytest.mark.parametrize("wrong", ["torus", 3, None])
def test_an_unknown_topology_is_refused_with_the_known_names(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected a Topology or one of") as error:
        topology_from(wrong)  # type: ignore[arg-type]
    assert all(repr(name) in str(error.value) for name in NAMES)
    assert repr(wrong) in str(error.value)


@pytest.mark.parametrize(
    "topology",
    [*map(topology_from, NAMES), Table(tables=[SWAP]), GroupCrossover(3), MixedRadix((2, 3))],
)
def test_a_description_survives_json(topology: Topology) -> None:
    description = topology.describe()
    assert description["topology"] == topology.name
    assert json.loads(json.dumps(description)) == description


def test_topologies_that_differ_have_descriptions_that_differ() -> None:
    topologies = [
        *map(topology_from, NAMES),
        GroupCrossover(2),
        GroupCrossover(3),
        MixedRadix((2, 3)),
        MixedRadix((3, 2)),
        Table(tables=[SWAP]),
        Table(tables=[LAZY_SWAP]),
        Table(tables=[SWAP], stochasticity="row"),
        Table(tables=[SWAP], rotate_by_segment=True),
    ]
    described = {json.dumps(topology.describe()) for topology in topologies}
    assert len(described) == len(topologies)


def test_a_table_does_not_follow_later_changes_of_the_lists_it_came_from() -> None:
    rows: list[Row] = [[(1, 0.5)], [(0, 0.5)]]
    table = Table(tables=[rows])
    rows[0].clear()
    assert table == Table(tables=[SWAP])
    assert hash(table) == hash(Table(tables=[SWAP]))


def test_a_table_with_a_defect_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument, match=r"table 0, row 1: peer 0: expected a finite weight"):
        Table(tables=[[[(1, 0.5)], [(0, -0.5)]]])
    with pytest.raises(InvalidArgument, match="expected at least one"):
        Table(tables=[])
    with pytest.raises(InvalidArgument, match="expected 'doubly', 'row' or 'column', got 'both'"):
        Table(tables=[SWAP], stochasticity="both")


def test_a_table_for_another_number_of_ranks_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="made for 2 ranks, the job has 3"):
        Table(tables=[SWAP]).schedule(3, 0, 1)


@pytest.mark.parametrize(
    ("topology", "seed", "largest"),
    [
        (Crossover(), -1, 2**64 - 1),
        (CrossoverSequential(), 2**32, 2**32 - 1),
        (Shift(), 2**64, 2**64 - 1),
        (GroupCrossover(2), -1, 2**64 - 1),
    ],
)
def test_a_seed_out_of_range_is_refused(topology: Topology, seed: int, largest: int) -> None:
    with pytest.raises(InvalidArgument, match=f"seed: expected 0..{largest}, got {seed}"):
        topology.schedule(4, seed, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_job_without_ranks_is_refused(name: str) -> None:
    topology = topology_from(name)
    with pytest.raises(InvalidArgument, match=f"{topology.name}: size: expected at least 1, got 0"):
        topology.schedule(0, 0, 1)


def test_a_size_of_groups_or_digits_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="group_size: expected at least 1, got 0"):
        GroupCrossover(0)
    with pytest.raises(InvalidArgument, match=r"expected a product of 12, .* got 9"):
        MixedRadix((3, 3)).schedule(12, 0, 1)
    with pytest.raises(InvalidArgument, match="radices: expected each at least 2, got 1"):
        MixedRadix((1, 12)).schedule(12, 0, 1)


def test_an_element_outside_the_segment_has_no_matrix() -> None:
    with pytest.raises(InvalidArgument, match=r"element: expected 0..4, got 5"):
        mixing_matrix(Ring().schedule(4, 0, 1), 0, 0, numel=5, element=5)


def composed(config: GossipConfig, size: int, rounds: range) -> Matrix:
    schedule = config.schedule(size, 3)
    product = np.eye(size)
    for round in rounds:
        product = mixing_matrix(schedule, round, 2, numel=200, element=77) @ product
    return product


@pytest.mark.parametrize("topology", ["crossover", "exponential-xor", "mixed-radix"])
def test_several_rounds_per_step_are_the_topologys_rounds_in_sequence(topology: str) -> None:
    for size in (2, 3, 5, 6, 12):
        one = GossipConfig(topology=topology, seed=4)
        three = dataclasses.replace(one, rounds_per_step=3)
        np.testing.assert_allclose(
            composed(three, size, range(5, 7)), composed(one, size, range(15, 21)), atol=1e-12
        )


def test_exact_averages_take_the_place_of_the_rounds_they_are_asked_for() -> None:
    config = GossipConfig(exact_every=4, exact_first=2, rounds_per_step=2)
    gossip = dataclasses.replace(config, exact_every=None, exact_first=0)
    average = np.full((5, 5), 0.2)
    for round in range(13):
        is_exact = round in (0, 1, 3, 7, 11)
        expected = average if is_exact else composed(gossip, 5, range(round, round + 1))
        found = composed(config, 5, range(round, round + 1))
        np.testing.assert_allclose(found, expected, atol=1e-12)
