"""One draw of a schedule, for all ranks at once, as arrays: what the engine's programs say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossover_comm import _C
from crossover_comm.formulas import Row

__all__ = ["Exchange", "Phase", "draw", "models_sent"]

Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What some ranks receive for the elements [begin, end) of a segment within one phase.

    Rank ``ranks[k]`` adds sum_d weights[k, d] (m[peers[k, d]] - m[ranks[k]]), m = Q(x) at the start
    of the phase; for a peer that is the rank itself, weight (x - Q(x)). Rows with fewer peers are
    filled up with weight 0.
    """

    begin: int
    end: int
    ranks: Integers
    """(k,)"""
    peers: Integers
    """(k, d)"""
    weights: Reals
    """(k, d)"""


Phase = list[Exchange]


def draw(schedule: _C.Schedule, round: int, segment: int, numel: int) -> list[Phase]:
    """The exchange programs of all ranks, gathered into phases. Ranks are ascending.

    Args:
        round: number of the round.
        segment: index of the segment in model order.
        numel: elements of the segment.
    """
    if isinstance(schedule, _C.PeerSchedule):
        rows = {rank: row for rank, row in enumerate(schedule.rows(round, segment)) if row}
        return [[_exchange(0, numel, rows)]] if rows else []
    programs = [schedule.program(round, segment, numel, rank) for rank in range(schedule.size)]
    num_phases = max((len(program) for program in programs), default=0)
    return [
        _phase([program[p][1] if p < len(program) else [] for program in programs])
        for p in range(num_phases)
    ]


def _phase(receives: Sequence[Sequence[tuple[int, int, int, float]]]) -> Phase:
    slices: dict[tuple[int, int], dict[int, Row]] = {}
    for rank, entries in enumerate(receives):
        for peer, begin, end, weight in entries:
            slices.setdefault((begin, end), {}).setdefault(rank, []).append((peer, weight))
    return [_exchange(begin, end, rows) for (begin, end), rows in slices.items() if end > begin]


def _exchange(begin: int, end: int, rows: dict[int, Row]) -> Exchange:
    width = max(map(len, rows.values()))
    ranks = np.fromiter(rows, dtype=np.int64, count=len(rows))
    filled = [row + [(rank, 0.0)] * (width - len(row)) for rank, row in rows.items()]
    entries = np.array(filled)
    return Exchange(begin, end, ranks, entries[:, :, 0].astype(np.int64), entries[:, :, 1])


def models_sent(schedule: _C.Schedule, round: int, segment: int, numel: int) -> float:
    """Elements that a rank sends in one draw over those of the segment, the mean over ranks."""
    if isinstance(schedule, _C.PeerSchedule):
        return sum(map(len, schedule.rows(round, segment))) / schedule.size
    sent = 0
    for rank in range(schedule.size):
        for sends, _ in schedule.program(round, segment, numel, rank):
            sent += sum(end - begin for _, begin, end in sends)
    return sent / numel / schedule.size
