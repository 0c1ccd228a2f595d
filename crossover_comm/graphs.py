"""Topologies from graphs of the user's own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from crossover_comm.errors import InvalidArgument
from crossover_comm.formulas import Row
from crossover_comm.topology import Table

__all__ = ["from_networkx"]

_TOLERANCE = 1e-9


class Graph(Protocol):
    """The part of a networkx graph that `from_networkx` reads."""

    @property
    def nodes(self) -> Any: ...
    @property
    def edges(self) -> Any: ...
    def is_directed(self) -> bool: ...
    def is_multigraph(self) -> bool: ...


def from_networkx(graph: Graph, *, push_sum: bool = False) -> Table:
    """Make a static topology from a networkx graph whose nodes are the ranks 0..n-1.

    An edge u-v lets both ends hear each other, a directed edge u -> v lets v hear u. If every edge
    has the attribute ``weight``, that is the weight. Otherwise, with d the degree:
    undirected, Metropolis-Hastings: w_ij = 1 / (1 + max(d_i, d_j)), which is doubly stochastic;
    directed: w_ij = 1 / (1 + in-degree of i), declared doubly stochastic if its columns sum to 1,
    else row-stochastic, under which the mean over ranks drifts.
    Source: Xiao, Boyd, Lall, "A scheme for robust distributed sensor fusion based on average
    consensus", IPSN 2005.

    Args:
        graph: Graph or DiGraph, without self-loops.
        push_sum: whether weights are shares of what a rank gives away: without the attribute
            p_ij = 1 / (1 + out-degree of j), or degree. The topology is then column-stochastic and
            keeps the mean on any digraph (`Table`). Source: Nedic, Olshevsky, arXiv 1406.2075.

    Raises:
        InvalidArgument: nodes other than 0..n-1, self-loops, parallel edges, weights on some edges
            only, or weights that a row cannot have.
    """
    sources = _in_edges(graph)
    degrees = [len(row) for row in sources]
    weighted = _is_weighted(graph)
    if push_sum:
        return Table(tables=[_shares(sources, weighted)], stochasticity="column")
    rows: list[Row] = []
    for rank, row in enumerate(sources):
        rows.append([])
        for peer, weight in sorted(row.items()):
            degree = degrees[rank] if graph.is_directed() else max(degrees[rank], degrees[peer])
            rows[-1].append((peer, float(weight) if weighted else 1.0 / (1.0 + degree)))
    return Table(tables=[rows], stochasticity=_stochasticity(rows))


def _shares(sources: Sequence[dict[int, Any]], weighted: bool) -> list[Row]:
    receivers = Counter(peer for row in sources for peer in row)
    return [
        [
            (peer, float(weight) if weighted else 1.0 / (1.0 + receivers[peer]))
            for peer, weight in sorted(row.items())
        ]
        for row in sources
    ]


def _in_edges(graph: Graph) -> list[dict[int, Any]]:
    """Per rank, the ranks it hears and the attribute ``weight`` of the edge, None if absent."""
    size = len(graph.nodes)
    if size == 0 or set(graph.nodes) != set(range(size)):
        raise InvalidArgument(
            f"graph: expected nodes 0..n-1, one per rank, got {size} nodes with other names; "
            "networkx.convert_node_labels_to_integers renames them"
        )
    if graph.is_multigraph():
        raise InvalidArgument("graph: expected at most one edge between ranks, got a multigraph")
    sources: list[dict[int, Any]] = [{} for _ in range(size)]
    for u, v, weight in graph.edges(data="weight"):
        if u == v:
            raise InvalidArgument(
                f"edge ({u}, {v}): is a self-loop; a rank's own weight is what the others leave"
            )
        sources[v][u] = weight
        if not graph.is_directed():
            sources[u][v] = weight
    return sources


def _is_weighted(graph: Graph) -> bool:
    missing = [(u, v) for u, v, weight in graph.edges(data="weight") if weight is None]
    if missing and len(missing) < len(graph.edges):
        raise InvalidArgument(
            f"edge {missing[0]}: has no weight, but others have; give every edge one, or none"
        )
    return not missing


def _stochasticity(rows: Sequence[Row]) -> str:
    columns = [1.0 - sum(weight for _, weight in row) for row in rows]
    for peer, weight in itertools.chain.from_iterable(rows):
        columns[peer] += weight
    return "doubly" if all(abs(total - 1.0) <= _TOLERANCE for total in columns) else "row"
