"""Topologies: the extension's draws against the formulas, numpy and networkx."""

from __future__ import annotations

import json
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest

from crossover_comm import _C, formulas
from crossover_comm.errors import InvalidArgument
from crossover_comm.formulas import Row
from crossover_comm.topology import (
    Complete,
    Crossover,
    CrossoverSequential,
    Exponential,
    Ring,
    Table,
    Topology,
    from_networkx,
    mixing_matrix,
    topology_from,
)

SIZES = [1, 2, 3, 4, 5, 8, 12, 33]
NAMES = ["crossover", "crossover-sequential", "exponential", "ring", "complete"]
SWAP: list[Row] = [[(1, 0.5)], [(0, 0.5)]]
LAZY_SWAP: list[Row] = [[(1, 0.25)], [(0, 0.25)]]


def expect_rows(schedule: _C.PeerSchedule, formula: Callable[[int, int, int], Row]) -> None:
    for round in [0, 1, 2, 7]:
        for segment in [0, 1, 4]:
            expected = [formula(rank, round, segment) for rank in range(schedule.size)]
            assert schedule.rows(round, segment) == expected, (round, segment)


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_every_named_topology_is_doubly_stochastic_as_declared(name: str, size: int) -> None:
    schedule = topology_from(name).schedule(size, 3, 4)
    assert (schedule.name, schedule.size, schedule.stochasticity) == (name, size, "doubly")
    for round in range(6):
        matrix = mixing_matrix(schedule, round, 2)
        assert matrix.dtype == np.float64
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum(axis=0), np.ones(size), atol=1e-12)
        np.testing.assert_allclose(matrix.sum(axis=1), np.ones(size), atol=1e-12)


@pytest.mark.parametrize("name", ["crossover", "crossover-sequential"])
def test_crossover_mixes_by_half_the_identity_and_half_a_derangement(name: str) -> None:
    matrix = mixing_matrix(topology_from(name).schedule(7, 3, 1), 5, 0)
    permutation = 2 * matrix - np.eye(7)
    assert (np.diag(permutation) == 0).all()
    np.testing.assert_array_equal(permutation @ permutation.T, np.eye(7))


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_exponential_averages_exactly_after_log2_of_the_size_rounds(size: int) -> None:
    schedule = Exponential().schedule(size, 0, 1)
    product = np.eye(size)
    for round in range(size.bit_length() - 1):
        product = mixing_matrix(schedule, round, 0) @ product
    np.testing.assert_allclose(product, np.full((size, size), 1 / size), atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_resolves_to_its_topology(name: str) -> None:
    assert topology_from(name).name == name


def test_a_topology_resolves_to_itself() -> None:
    table = Table(tables=[SWAP])
    assert topology_from(table) is table


@pytest.mark.parametrize("wrong", ["torus", 3, None])
def test_an_unknown_topology_is_refused_with_the_known_names(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected a Topology or one of") as error:
        topology_from(wrong)  # type: ignore[arg-type]
    assert all(repr(name) in str(error.value) for name in NAMES)
    assert repr(wrong) in str(error.value)


@pytest.mark.parametrize("topology", [*map(topology_from, NAMES), Table(tables=[SWAP])])
def test_a_description_survives_json(topology: Topology) -> None:
    description = topology.describe()
    assert description["topology"] == topology.name
    assert json.loads(json.dumps(description)) == description


def test_tables_that_differ_have_descriptions_that_differ() -> None:
    tables = [
        Table(tables=[SWAP]),
        Table(tables=[LAZY_SWAP]),
        Table(tables=[SWAP], stochasticity="row"),
        Table(tables=[SWAP], rotate_by_segment=True),
    ]
    assert len({json.dumps(table.describe()) for table in tables}) == 4


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
    [(Crossover(), -1, 2**64 - 1), (CrossoverSequential(), 2**32, 2**32 - 1)],
)
def test_a_seed_out_of_range_is_refused(topology: Topology, seed: int, largest: int) -> None:
    with pytest.raises(InvalidArgument, match=f"seed: expected 0..{largest}, got {seed}"):
        topology.schedule(4, seed, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_job_without_ranks_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}: size: expected at least 1, got 0"):
        topology_from(name).schedule(0, 0, 1)


def matrix_of(table: Table) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return mixing_matrix(table.schedule(table.size, 0, 1), 0, 0)


def test_an_undirected_graph_gets_metropolis_hastings_weights() -> None:
    graph = nx.gnp_random_graph(9, 0.4, seed=1)
    table = from_networkx(graph)
    assert table.stochasticity == "doubly"
    expected = np.zeros((9, 9))
    for i, j in graph.edges:
        expected[i, j] = expected[j, i] = 1 / (1 + max(graph.degree[i], graph.degree[j]))
    np.fill_diagonal(expected, 1 - expected.sum(axis=1))
    np.testing.assert_allclose(matrix_of(table), expected, atol=1e-15)


def test_a_cycle_graph_is_the_ring() -> None:
    table = from_networkx(nx.cycle_graph(6))
    assert list(map(list, table.tables[0])) == Ring().schedule(6, 0, 1).rows(0, 0)


def test_a_regular_directed_graph_is_doubly_stochastic() -> None:
    graph = nx.DiGraph([(0, 1), (1, 2), (2, 0)])
    table = from_networkx(graph)
    assert table.stochasticity == "doubly"
    assert matrix_of(table).tolist() == [[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]


def test_an_irregular_directed_graph_is_row_stochastic() -> None:
    graph = nx.DiGraph([(0, 2), (1, 2), (2, 0)])
    graph.add_nodes_from(range(3))
    table = from_networkx(graph)
    assert table.stochasticity == "row"
    third = 1 / 3
    expected = [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [third, third, third]]
    np.testing.assert_allclose(matrix_of(table), expected, atol=1e-15)


def test_weights_on_all_edges_are_taken_as_they_are() -> None:
    undirected = nx.Graph()
    undirected.add_weighted_edges_from([(0, 1, 0.25), (1, 2, 0.5)])
    expected = [[0.75, 0.25, 0.0], [0.25, 0.25, 0.5], [0.0, 0.5, 0.5]]
    assert matrix_of(from_networkx(undirected)).tolist() == expected
    directed = nx.DiGraph()
    directed.add_weighted_edges_from([(0, 1, 0.25), (1, 0, 0.5)])
    table = from_networkx(directed)
    assert table.stochasticity == "row"
    assert matrix_of(table).tolist() == [[0.5, 0.5], [0.25, 0.75]]


def test_a_graph_that_is_no_topology_is_refused_with_the_reason() -> None:
    partly_weighted = nx.path_graph(3)
    partly_weighted.edges[0, 1]["weight"] = 0.5
    heavy = nx.Graph()
    heavy.add_edge(0, 1, weight=1.5)
    reasons = {
        "expected nodes 0..n-1": nx.Graph([("a", "b")]),
        "got 0 nodes": nx.Graph(),
        r"edge \(1, 1\): is a self-loop": nx.Graph([(0, 1), (1, 1)]),
        "got a multigraph": nx.MultiGraph([(0, 1), (0, 1)]),
        r"edge \(1, 2\): has no weight": partly_weighted,
        "expected weights that sum to at most 1, got 1.5": heavy,
    }
    for reason, graph in reasons.items():
        with pytest.raises(InvalidArgument, match=reason):
            from_networkx(graph)


def test_a_graph_of_one_node_is_idle() -> None:
    graph = nx.Graph()
    graph.add_node(0)
    assert matrix_of(from_networkx(graph)).tolist() == [[1.0]]
