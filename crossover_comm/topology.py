"""Topologies: typed descriptions of the schedules that the extension evaluates.

A topology is a value: it knows its name and how to make a schedule for a job of some size. What the
schedule draws is written down in `crossover_comm.formulas`. With one rank every draw is idle.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from crossover_comm import _C
from crossover_comm.errors import InvalidArgument

__all__ = [
    "AllReduce",
    "Base2",
    "Complete",
    "Crossover",
    "CrossoverSequential",
    "Exponential",
    "ExponentialXor",
    "GroupCrossover",
    "MixedRadix",
    "Ring",
    "Shift",
    "Table",
    "Topology",
    "mixing_matrix",
    "topology_from",
]


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

    Args:
        segmentwise: a map for each segment; False is the paper's ablation "noseg", one map per
            round for all of them.
        fair: every rank is a source exactly once; False is the paper's ablation "nofairness",
            sources drawn with replacement (`formulas.nofairness_row`): row-stochastic, the mean
            drifts. Both False: "nofaseg".
    """

    name: ClassVar[str] = "crossover"
    segmentwise: bool = True
    fair: bool = True

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        _check_seed(self.name, seed, 2**64 - 1)
        return _C.crossover_schedule(size, seed, self.segmentwise, self.fair)

    def describe(self) -> dict[str, object]:
        return {"topology": self.name, "segmentwise": self.segmentwise, "fair": self.fair}


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
class Shift(Topology):
    """Every rank r hears r + s mod size, weight 1/2, a fresh s per (seed, round, segment).

    Formula: `formulas.shift_row`. Doubly stochastic, and shrinks the distance to the mean as much
    as a uniform derangement does; drawing costs O(1). ``seed`` in 0..2^64-1.
    """

    name: ClassVar[str] = "shift"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        _check_seed(self.name, seed, 2**64 - 1)
        return _C.shift_schedule(size, seed)


@dataclass(frozen=True, slots=True)
class Exponential(Topology):
    """The one-peer exponential graph, weight 1/2.

    Formula: `formulas.exponential_row`. Doubly stochastic. Exact after log2(size) rounds for a
    power of two.
    """

    name: ClassVar[str] = "exponential"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        return _C.exponential_schedule(size)


@dataclass(frozen=True, slots=True)
class ExponentialXor(Topology):
    """The one-peer exponential graph of symmetric pairs: r and r xor 2^k, weight 1/2.

    Formula: `formulas.exponential_xor_row`. Doubly stochastic. Exact after log2(size) rounds for a
    power of two; for other sizes some ranks are idle in some rounds.
    """

    name: ClassVar[str] = "exponential-xor"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        return _C.exponential_xor_schedule(size)


@dataclass(frozen=True, slots=True)
class Base2(Topology):
    """Pairs that reach the exact average in about 2 log2(size) rounds for any size.

    Formula: `formulas.base2_row`; rounds: `formulas.base2_num_rounds`. Doubly stochastic. Segment s
    starts s rounds later in the period, so its first exact average may be one period late.
    """

    name: ClassVar[str] = "base2"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        return _C.base2_schedule(size)


@dataclass(frozen=True, slots=True)
class MixedRadix(Topology):
    """The ranks as numbers of several digits; each round averages along one digit, exactly.

    Formula: `formulas.mixed_radix_row`. Doubly stochastic; exact after as many rounds as digits,
    for any size. A digit of radix p costs 2 (p - 1)/p models on the wire.

    Args:
        radices: of the digits, lowest first; their product is the number of ranks. Empty: its prime
            factors, ascending.
    """

    name: ClassVar[str] = "mixed-radix"
    radices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "radices", tuple(map(operator.index, self.radices)))

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.Schedule:
        return _C.mixed_radix_schedule(size, self.radices)

    def describe(self) -> dict[str, object]:
        return {"topology": self.name, "radices": list(self.radices)}


@dataclass(frozen=True, slots=True)
class GroupCrossover(Topology):
    """Random groups per (seed, round, segment), each of which takes its exact average.

    Formula: `formulas.group_crossover_row`. Doubly stochastic; groups of m cost 2 (m - 1)/m models
    on the wire. A dial from pairs (``group_size=2``) to all-reduce (``group_size`` the number of
    ranks or more). ``seed`` in 0..2^64-1.

    Args:
        group_size: the most ranks in a group, at least 1; sizes differ by at most one.
    """

    name: ClassVar[str] = "group-crossover"
    group_size: int

    def __post_init__(self) -> None:
        if operator.index(self.group_size) < 1:
            raise InvalidArgument(f"group_size: expected at least 1, got {self.group_size}")

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.Schedule:
        _check_seed(self.name, seed, 2**64 - 1)
        return _C.group_crossover_schedule(size, self.group_size, seed)

    def describe(self) -> dict[str, object]:
        return {"topology": self.name, "group_size": self.group_size}


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
    """Every rank hears every other: an exact average in one phase, for size - 1 models sent.

    Formula: `formulas.complete_row`. Doubly stochastic.
    """

    name: ClassVar[str] = "complete"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.PeerSchedule:
        return _C.complete_schedule(size)


@dataclass(frozen=True, slots=True)
class AllReduce(Topology):
    """An exact average by reduce-scatter and all-gather, for 2 (size - 1)/size models sent.

    Formula: `formulas.complete_row`. Doubly stochastic; with fp32 on the wire all ranks end with
    the same bits.
    """

    name: ClassVar[str] = "all-reduce"

    def schedule(self, size: int, seed: int, num_segments: int) -> _C.Schedule:
        return _C.all_reduce_schedule(size)


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
    "crossover": Crossover(),
    "noseg": Crossover(segmentwise=False),
    "nofairness": Crossover(fair=False),
    "nofaseg": Crossover(segmentwise=False, fair=False),
    "crossover-sequential": CrossoverSequential(),
    "shift": Shift(),
    "exponential": Exponential(),
    "exponential-xor": ExponentialXor(),
    "base2": Base2(),
    "mixed-radix": MixedRadix(),
    "ring": Ring(),
    "complete": Complete(),
    "all-reduce": AllReduce(),
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


def _check_seed(name: str, seed: int, largest: int) -> None:
    if not 0 <= seed <= largest:
        raise InvalidArgument(f"{name}: seed: expected 0..{largest}, got {seed}")
