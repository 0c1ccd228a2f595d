"""Topologies from networkx graphs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from crossover_comm.errors import InvalidArgument
from crossover_comm.graphs import from_networkx
from crossover_comm.topology import Ring, Table, mixing_matrix


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
