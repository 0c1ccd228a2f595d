"""Types on the wire: what they cost and round, and which one suits a distance between replicas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from crossover_comm.errors import InvalidArgument

__all__ = [
    "BLOCK_NUMEL",
    "MODEL_SHARE",
    "ROUNDING",
    "WIRES",
    "WIRE_DTYPES",
    "LevelWindows",
    "Wire",
    "WireChoice",
    "WireLevel",
    "best_level",
    "levels_within",
    "squared_distance",
]

Wire: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]

WireChoice: TypeAlias = Wire | Literal["auto"]

WIRES: Final[tuple[Wire, ...]] = ("fp32", "bf16", "fp16", "int8")

WIRE_DTYPES: Final[dict[WireChoice, str]] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "int8": "int8-blocks",
    "auto": "float32",
}
"""A plan's widest type; the levels of ``"auto"`` have types of their own."""

BLOCK_NUMEL: Final = 128
"""Elements of a segment that share a scale on the int8 wire; csrc/core/dtype.h."""

MODEL_SHARE: Final[dict[Wire, float]] = {
    "fp32": 1.0,
    "bf16": 0.5,
    "fp16": 0.5,
    "int8": 0.25 + 1 / BLOCK_NUMEL,
}
"""Bytes of a model on the wire, in fp32 models."""

ROUNDING: Final[dict[Wire, float]] = {"fp32": 0.0, "bf16": 1.66e-3, "int8": 6.5e-3}
"""Root mean square of x - Q(x) over that of x, for normally distributed elements."""

_CONTRACTION: Final = 0.5
"""Of the squared distance by a round with one peer and weight 1/2."""


@dataclass(frozen=True, slots=True)
class WireLevel:
    """What one step may do under ``wire="auto"``: so many rounds over this wire."""

    wire: Wire
    rounds: int


def levels_within(budget: float) -> tuple[WireLevel, ...]:
    """The levels among which ``wire="auto"`` chooses, finest first: for fp32, bf16 and int8 as many
    rounds as `budget` pays for, where a coarser wire gives more of them.

    Args:
        budget: Most bytes of a step, in fp32 rounds of the topology.

    Raises:
        InvalidArgument: It does not pay for one round in int8.
    """
    levels: list[WireLevel] = []
    for wire in ROUNDING:
        rounds = int(budget / MODEL_SHARE[wire])
        if rounds > (levels[-1].rounds if levels else 0):
            levels.append(WireLevel(wire, rounds))
    if not levels:
        raise InvalidArgument(
            f"wire_budget: expected at least {MODEL_SHARE['int8']:.4f}, what one int8 round sends "
            f"of an fp32 round, got {budget!r}"
        )
    return tuple(levels)


def squared_distance(squares: float, own_squares: float, wire: Wire) -> float:
    """D^2 of a rank over what it has measured, relative to its elements' squares.

        D^2 = max(0, sum_j |m_j - m|^2 / (2 sum_j |m|^2) - eps^2),   m = Q(x)

    for independent replicas that are D |x| from their mean, and Q's rounding eps; -inf if nothing
    was measured, less than every distance.

    Args:
        squares: Sum of (m_j - m)^2.
        own_squares: Sum of m^2; 0: nothing was measured, or all of it is zero.
        wire: What Q is.
    """
    if own_squares == 0.0:
        return -math.inf
    return max(0.0, squares / own_squares / 2.0 - ROUNDING[wire] ** 2)


def best_level(levels: Sequence[WireLevel], distance: float) -> int:
    """Index of the level that leaves replicas closest: the smallest

        2^-R D^2 + R eps^2 / 2

    with R rounds of rounding eps; the finest of equal ones. Each round with one peer halves D^2 and
    adds half of eps^2, the noise of two independent roundings at weight 1/2. Later rounds do not
    halve that: they do not see differences below the step of their own rounding.

    Args:
        levels: Finest first.
        distance: D^2, see `squared_distance`.
    """

    def left(index: int) -> float:
        level = levels[index]
        noise = level.rounds * ROUNDING[level.wire] ** 2 / 2.0
        return _CONTRACTION**level.rounds * distance + noise

    return min(range(len(levels)), key=left)


class LevelWindows:
    """Which level each round runs. Rounds go in windows, alike on every rank: what one window has
    measured is spread in the next, hop by hop, and decides the level of the one after.

    In hop h = 0, 1, ..., the h-th round of a window, rank r takes the larger of what it knows and
    what rank r - 2^h knows, so that after `hops` of them all know the largest, whatever the
    topology and the number of ranks. The first two windows run the coarsest level, the one of most
    rounds: training starts from equal replicas, whose roundings are equal and cancel out.

    Args:
        size: Ranks, at least 2.
        coarsest: Index of that level.

    Attributes:
        hops: ceil(log2 size).
        length: Rounds of a window, one more, so that the level is known when room is announced.
        level: Index of the level of the current window.
        next: That of the next window, once it is known.
    """

    def __init__(self, size: int, coarsest: int) -> None:
        self.hops = (size - 1).bit_length()
        self.length = self.hops + 1
        self.level = coarsest
        self.next = coarsest

    def decide(self, levels: Sequence[WireLevel], largest: float) -> None:
        """Chooses the next level by the largest D^2 of all ranks; it stays if none has measured."""
        self.next = self.level if largest == -math.inf else best_level(levels, largest)

    def place(self, round: int) -> int:
        """How many rounds of its window come before a round."""
        return round % self.length

    def first_undecided(self, round: int) -> int:
        """The first round, from `round` on, that begins a window."""
        return -(-round // self.length) * self.length
