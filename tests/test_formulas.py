"""The extension's draws against the formulas and numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from crossover_comm import _C, formulas
from crossover_comm.formulas import Row
from crossover_comm.topology import (
    Base2,
    Complete,
    Crossover,
    CrossoverSequential,
    Exponential,
    ExponentialXor,
    GroupCrossover,
    MixedRadix,
    Ring,
    Shift,
    Table,
    mixing_matrix,
    topology_from,
)

SIZES = [1, 2, 3, 4, 5, 8, 12, 33]
SWAP: list[Row] = [[(1, 0.5)], [(0, 0.5)]]
LAZY_SWAP: list[Row] = [[(1, 0.25)], [(0, 0.25)]]


def expect_rows(schedule: _C.PeerSchedule, formula: Callable[[int, int, int], Row]) -> None:
    for round in [0, 1, 2, 7]:
        for segment in [0, 1, 4]:
            expected = [formula(rank, round, segment) for rank in range(schedule.size)]
            assert schedule.rows(round, segment) == expected, (round, segment)


def expect_matrices(schedule: _C.Schedule, formula: Callable[[int, int, int], Row]) -> None:
    """Every slice of a segment is mixed by the formula's rows."""
    size = schedule.size
    for round, segment in [(0, 0), (1, 0), (2, 4), (7, 1)]:
        expected = np.eye(size)
        for rank in range(size):
            for peer, weight in formula(rank, round, segment):
                expected[rank, peer] += weight
                expected[rank, rank] -= weight
        for element in (0, 5, 99):
            found = mixing_matrix(schedule, round, segment, numel=100, element=element)
            np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 6, 2**64 - 1])
def test_crossover_draws_its_formula(size: int, seed: int) -> None:
    expect_rows(
        Crossover().schedule(size, seed, 5),
        lambda rank, round, segment: formulas.crossover_row(rank, round, segment, size, seed),
    )


def test_crossover_draws_its_formula_in_late_rounds_and_segments() -> None:
    round, segment = 2**63 + 2**32 + 5, 2**32 - 1
    rows = Crossover().schedule(9, 1, 1).rows(round, segment)
    assert rows == [formulas.crossover_row(rank, round, segment, 9, 1) for rank in range(9)]


@pytest.mark.parametrize("size", SIZES)
def test_the_ablations_draw_their_formulas(size: int) -> None:
    expect_rows(
        Crossover(segmentwise=False).schedule(size, 4, 5),
        lambda rank, round, segment: formulas.crossover_row(rank, round, 0, size, 4),
    )
    expect_rows(
        Crossover(fair=False).schedule(size, 4, 5),
        lambda rank, round, segment: formulas.nofairness_row(rank, round, segment, size, 4),
    )
    expect_rows(
        Crossover(segmentwise=False, fair=False).schedule(size, 4, 5),
        lambda rank, round, segment: formulas.nofairness_row(rank, round, 0, size, 4),
    )


@pytest.mark.parametrize("size", SIZES)
def test_shift_draws_its_formula(size: int) -> None:
    expect_rows(
        Shift().schedule(size, 7, 5),
        lambda rank, round, segment: formulas.shift_row(rank, round, segment, size, 7),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("seed", [0, 6, 2**32 - 1])
def test_crossover_sequential_draws_its_formula(size: int, seed: int) -> None:
    expect_rows(
        CrossoverSequential().schedule(size, seed, 5),
        lambda rank, round, segment: formulas.crossover_sequential_row(
            rank, round, segment, size, seed, 5
        ),
    )


def numpy_map(generator: np.random.RandomState, size: int) -> list[int]:
    """The authors' sampler as their description has it, through numpy's own choice()."""
    free = np.ones(size)
    drawn: list[int] = []
    for i in range(size):
        weights = free.copy()
        weights[i] = 0
        if i == size - 2 and free[size - 1]:
            source = size - 1
        else:
            source = int(generator.choice(size, p=weights / weights.sum()))
        free[source] = 0
        drawn.append(source)
    return drawn


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 16, 31, 64, 200])
@pytest.mark.parametrize("seed", [0, 6, 123456789])
def test_crossover_sequential_draws_what_numpy_draws(size: int, seed: int) -> None:
    generator = np.random.RandomState(seed)
    schedule = CrossoverSequential().schedule(size, seed, 3)
    for round in range(4):
        for segment in range(3):
            sources = [row[0][0] for row in schedule.rows(round, segment)]
            assert sources == numpy_map(generator, size)


def test_crossover_sequential_agrees_with_numpy_after_five_thousand_maps() -> None:
    generator = np.random.RandomState(6)
    maps = [numpy_map(generator, 8) for _ in range(5000)]
    schedule = CrossoverSequential().schedule(8, 6, 10)
    for round in [499, 250, 0]:
        for segment in range(10):
            sources = [row[0][0] for row in schedule.rows(round, segment)]
            assert sources == maps[10 * round + segment]


@pytest.mark.parametrize("size", SIZES)
def test_exponential_draws_its_formula(size: int) -> None:
    expect_rows(
        Exponential().schedule(size, 0, 5),
        lambda rank, round, segment: formulas.exponential_row(rank, round, segment, size),
    )


@pytest.mark.parametrize("size", SIZES)
def test_exponential_xor_draws_its_formula(size: int) -> None:
    expect_rows(
        ExponentialXor().schedule(size, 0, 5),
        lambda rank, round, segment: formulas.exponential_xor_row(rank, round, segment, size),
    )


@pytest.mark.parametrize("size", [*SIZES, 6, 7, 13, 24, 48])
def test_base2_draws_its_formula(size: int) -> None:
    expect_rows(
        Base2().schedule(size, 0, 5),
        lambda rank, round, segment: formulas.base2_row(rank, round, segment, size),
    )


@pytest.mark.parametrize("size", [*SIZES, 30])
def test_mixed_radix_has_the_matrix_of_its_formula(size: int) -> None:
    radices = formulas.prime_factors(size)
    expect_matrices(
        MixedRadix().schedule(size, 0, 5),
        lambda rank, round, segment: formulas.mixed_radix_row(rank, round, segment, radices),
    )


def test_mixed_radix_takes_radices_of_ones_own() -> None:
    expect_matrices(
        MixedRadix((2, 6)).schedule(12, 0, 5),
        lambda rank, round, segment: formulas.mixed_radix_row(rank, round, segment, (2, 6)),
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 40])
def test_group_crossover_has_the_matrix_of_its_formula(size: int, group_size: int) -> None:
    expect_matrices(
        GroupCrossover(group_size).schedule(size, 9, 5),
        lambda rank, round, segment: formulas.group_crossover_row(
            rank, round, segment, size, group_size, 9
        ),
    )


@pytest.mark.parametrize("size", SIZES)
def test_all_reduce_has_the_matrix_of_complete(size: int) -> None:
    schedule = topology_from("all-reduce").schedule(size, 0, 5)
    expect_matrices(schedule, lambda rank, round, segment: formulas.complete_row(rank, size))


@pytest.mark.parametrize("size", SIZES)
def test_ring_draws_its_formula(size: int) -> None:
    schedule = Ring().schedule(size, 0, 5)
    expect_rows(schedule, lambda rank, round, segment: formulas.ring_row(rank, size))


@pytest.mark.parametrize("size", SIZES)
def test_complete_draws_its_formula(size: int) -> None:
    schedule = Complete().schedule(size, 0, 5)
    expect_rows(schedule, lambda rank, round, segment: formulas.complete_row(rank, size))


@pytest.mark.parametrize("rotate", [False, True])
def test_table_draws_its_formula(rotate: bool) -> None:
    tables: list[list[Row]] = [SWAP, LAZY_SWAP, [[], []]]
    table = Table(tables=tables, rotate_by_segment=rotate)
    expect_rows(
        table.schedule(2, 0, 5),
        lambda rank, round, segment: formulas.table_row(rank, round, segment, tables, rotate),
    )
