"""Topologies: typed descriptions of the schedules that the extension evaluates.

A topology is a value: it knows its name and how to make a schedule for a job of some size. What the
schedule draws is written down in `crossover_comm.formulas`. With one rank every draw is idle.
"""

from __future__ import annotations

import itertools
import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from crossover_comm import _C
from crossover_comm.errors import InvalidArgument
from crossover_comm.formulas import Row

__all__ = [
    "Complete",
    "Crossover",
    "CrossoverSequential",
    "Exponential",
    "Ring",
    "Table",
    "Topology",
    "from_networkx",
    "mixing_matrix",
    "topology_from",
]


_TOLERANCE = 1e-9


class Topology(ABC):
    """Who exchanges with whom, before the size of the job is known."""

    __slots__ = ()
    name: ClassVar[str]

    @abstractmethod
    def schedule(self, size: int, seed: int, num_segments: int) -> _C.Schedule:
        """Make the schedule of a job.

        Args:
            size: number of ranks, at least 1.
            seed: the job's seed, the same on every rank; unused by topologies without chance.
            num_segments: number of segments of the plan.

        Raises:
            InvalidArgument: the topology does not exist for these arguments.
        """

    def describe(self) -> dict[str, object]:
        """Everything that tells this topology from another, as JSON can hold it."""
        return {"topology": self.name}


@dataclass(frozen=True, slots=True)
class Crossover(Topology):
    """A uniform derangement per (seed, round, segment), weight 1/2.

    Formula: `formulas.crossover_row`. Doubly stochastic: W = (I + P)/2. ``seed`` in 0..2^64-1.
    """

    name: ClassVar[str] = "crossover"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        _check_seed(self.name, seed, 2**64 - 1)
        return _C.crossover_schedule(size, seed)


@dataclass(frozen=True, slots=True)
class CrossoverSequential(Topology):
    """The derangements of the paper's authors, bit for bit.

    Formula: `formulas.crossover_sequential_row`. Doubly stochastic: W = (I + P)/2. ``seed`` in
    0..2^32-1; the authors' is 6. Drawing costs O(size^2) per segment, and a jump to round t replays
    t rounds.
    """

    name: ClassVar[str] = "crossover-sequential"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        _check_seed(self.name, seed, 2**32 - 1)
        return _C.crossover_sequential_schedule(size, seed, num_segments)


@dataclass(frozen=True, slots=True)
class Exponential(Topology):
    """The one-peer exponential graph, weight 1/2.

    Formula: `formulas.exponential_row`. Doubly stochastic.
    """

    name: ClassVar[str] = "exponential"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        return _C.exponential_schedule(size)


@dataclass(frozen=True, slots=True)
class Ring(Topology):
    """Both neighbours on a ring.

    Formula: `formulas.ring_row`. Doubly stochastic.
    """

    name: ClassVar[str] = "ring"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        return _C.ring_schedule(size)


@dataclass(frozen=True, slots=True)
class Complete(Topology):
    """Every rank hears every other: an exact average.

    Formula: `formulas.complete_row`. Doubly stochastic.
    """

    name: ClassVar[str] = "complete"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        return _C.complete_schedule(size)


@dataclass(frozen=True, slots=True)
class Table(Topology):
    """A user's own rows, cycled through by round; formula: `formulas.table_row`.

    Args:
        tables: one entry per round of the period; each holds one row per rank, and a row holds
            (peer, weight) for every peer the rank receives from, in mixing order.
        stochasticity: the declared property of every table, "doubly", "row" or "column". With
            "column" a weight is the share of its own that the peer gives to the rank, the diagonal
            is what a column leaves to 1, more than 0, and ranks exchange by push-sum: their
            parameters' mean weighted by w is kept, also where rows do not sum to 1.
        rotate_by_segment: whether segment s starts s rounds later in the period.

    Raises:
        InvalidArgument: a table has a defect or not the declared property; the message names it.
    """

    name: ClassVar[str] = "table"
    tables: Sequence[Sequence[Sequence[tuple[int, float]]]]
    stochasticity: str = "doubly"
    rotate_by_segment: bool = False

    def __post_init__(self) -> None:
        frozen = tuple(
            tuple(tuple((operator.index(peer), float(weight)) for peer, weight in row) for row in t)
            for t in self.tables
        )
        object.__setattr__(self, "tables", frozen)
        self._schedule()

    @property
    def size(self) -> int:
        """Number of ranks that the tables are made for."""
        return len(self.tables[0])

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        if size != self.size:
            raise InvalidArgument(f"table: made for {self.size} ranks, the job has {size}")
        return self._schedule()

    def _schedule(self) -> _C.PeerSchedule:
        rows = [[list(row) for row in table] for table in self.tables]
        return _C.table_schedule(rows, self.stochasticity, self.rotate_by_segment)

    def describe(self) -> dict[str, object]:
        return {
            "topology": self.name,
            "tables": [[[list(entry) for entry in row] for row in t] for t in self.tables],
            "stochasticity": self.stochasticity,
            "rotate_by_segment": self.rotate_by_segment,
        }


_NAMED: dict[str, Topology] = {
    topology.name: topology
    for topology in (Crossover(), CrossoverSequential(), Exponential(), Ring(), Complete())
}


def topology_from(topology: str | Topology) -> Topology:
    """Resolve a name to its topology; a topology is returned as it is.

    Raises:
        InvalidArgument: neither a topology nor one of the known names.
    """
    if isinstance(topology, Topology):
        return topology
    if isinstance(topology, str) and topology in _NAMED:
        return _NAMED[topology]
    known = ", ".join(map(repr, _NAMED))
    raise InvalidArgument(f"topology: expected a Topology or one of {known}; got {topology!r}")


def mixing_matrix(
    schedule: _C.Schedule, round: int, segment: int, *, numel: int = 1, element: int = 0
) -> npt.NDArray[np.float64]:
    """W of one draw, diagonal included: after mixing, rank i holds sum_j W[i, j] x_j.

    Args:
        numel: elements of the segment, at least 1. Programs of several phases cut it into slices.
        element: the one whose W is asked for, in 0..numel-1. A `PeerSchedule` has the same W for
            all of them.

    Returns:
        float64 array of shape (size, size); row = receiver, column = source. For a push-sum
        schedule it is P, which acts on w z and w.
    """
    if not 0 <= element < numel:
        raise InvalidArgument(f"element: expected 0..{numel - 1}, got {element}")
    programs = [schedule.program(round, segment, numel, r) for r in range(schedule.size)]
    matrix = np.eye(schedule.size)
    for phase in range(max(map(len, programs))):
        before = matrix.copy()
        for rank, program in enumerate(programs):
            receives = program[phase][1] if phase < len(program) else []
            for peer, begin, end, weight in receives:
                if begin <= element < end:
                    matrix[rank] += weight * (before[peer] - before[rank])
    if schedule.stochasticity == "column":
        np.fill_diagonal(matrix, 0.0)
        np.fill_diagonal(matrix, 1.0 - matrix.sum(axis=0))
    return matrix


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


def _check_seed(name: str, seed: int, largest: int) -> None:
    if not 0 <= seed <= largest:
        raise InvalidArgument(f"{name}: seed: expected 0..{largest}, got {seed}")
