"""``wire="auto"``: ranks measure how far apart they are and agree on the levels of rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from crossover_comm import _C
from crossover_comm.context import Context
from crossover_comm.wires import LevelWindows, WireLevel, squared_distance

__all__ = ["AutoWire"]

_SLICE_S = 0.2  # a blocked wait looks for Ctrl-C this often


@dataclass(frozen=True, slots=True)
class _Hop:
    """Calls under way, and the memory that is lent to them."""

    calls: tuple[_C.Call, ...]
    sent: torch.Tensor
    received: torch.Tensor


class AutoWire:
    """Chooses the levels of one plan's schedule, as `LevelWindows` says.

    A hop is part of a round: it begins when the round's first segment is posted and is over when
    the last one is mixed, so no message is under way between rounds. Its messages are eight bytes
    to one rank and from one rank.

    Args:
        context: The ranks that share the plan.
        levels: Those of the schedule, finest first.
        schedule: Whose levels are chosen.
    """

    def __init__(
        self, context: Context, levels: Sequence[WireLevel], schedule: _C.LevelledSchedule
    ) -> None:
        self._context = context
        self._levels = levels
        self._schedule = schedule
        self._windows = LevelWindows(context.launch.size, len(levels) - 1)
        schedule.choose(self._windows.level, 0)
        self._measured = [0.0, 0.0]  # sums over the window: squares, own squares
        self._largest = 0.0
        self._left: set[int] = set()  # segments of the round that are not mixed yet
        self._round = 0
        self._hop: _Hop | None = None
        self._dropped: list[_Hop] = []  # they may write to their memory yet

    def begin(self, round: int, plan: int, num_segments: int) -> None:
        """Before the first segment of a round is posted; nothing during the round.

        Raises:
            CrossoverError: The engine's first failure.
        """
        if self._left:
            return
        self._left = set(range(num_segments))
        self._round = round
        windows = self._windows
        if windows.place(round) == 0:
            squares, own_squares = self._measured
            wire = self._levels[windows.level].wire
            self._largest = squared_distance(squares, own_squares, wire)
            self._measured = [0.0, 0.0]
            windows.level = windows.next
        if windows.place(round) < windows.hops:
            self._hop = self._posted(windows.place(round), plan)

    def mixed(self, segments: Iterable[int], plan: int) -> None:
        """After these segments were mixed; with the last of a round the round is over here too.

        Raises:
            CrossoverError: The engine's first failure.
        """
        if not self._left:
            return
        self._left.difference_update(segments)
        if self._left:
            return
        for squares, own_squares in self._context.engine.differences(plan):
            self._measured[0] += squares
            self._measured[1] += own_squares
        if self._hop is not None:
            self._finish(self._hop)
            self._hop = None

    def state_dict(self) -> dict[str, Any]:
        """What the levels of rounds to come depend on. No round is open."""
        return {
            "level": self._windows.level,
            "next": self._windows.next,
            "measured": list(self._measured),
            "largest": self._largest,
        }

    def load_state_dict(self, state: Mapping[str, Any], round: int) -> None:
        """Goes on from what `state_dict` gave before `round`; the plan is added afterwards."""
        self._windows.level = state["level"]
        self._windows.next = state["next"]
        self._measured = list(state["measured"])
        self._largest = state["largest"]
        self._left.clear()
        if self._hop is not None:
            self._dropped.append(self._hop)
            self._hop = None
        self._schedule.choose(state["level"], 0)
        self._schedule.choose(state["next"], self._windows.first_undecided(round))

    def _posted(self, hop: int, plan: int) -> _Hop:
        """Sends what this rank knows 2^hop ranks ahead, and receives from as far behind."""
        rank, size = self._context.launch.rank, self._context.launch.size
        ahead, behind = (self._context.members[(rank + way) % size] for way in (2**hop, -(2**hop)))
        sent = torch.full((1,), self._largest, dtype=torch.float64)
        received = torch.zeros(1, dtype=torch.float64)
        place = _C.CallPlace(rank, size, 0, "float64", "none")
        programs = (
            _C.point_to_point_program(place, plan, [(ahead, sent.data_ptr(), sent.nbytes)], []),
            _C.point_to_point_program(
                place, plan, [], [(behind, received.data_ptr(), received.nbytes)]
            ),
        )
        timeout_s = self._context.settings.stall_timeout_s
        calls = tuple(self._context.engine.start_call(program, timeout_s) for program in programs)
        return _Hop(calls, sent, received)

    def _finish(self, hop: _Hop) -> None:
        for call in hop.calls:
            while not self._context.engine.wait_call(call, _SLICE_S):
                pass
        self._largest = max(self._largest, float(hop.received))
        windows = self._windows
        if windows.place(self._round) == windows.hops - 1:
            windows.decide(self._levels, self._largest)
            self._schedule.choose(windows.next, self._round + 2)
