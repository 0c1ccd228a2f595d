"""``wire="auto"`` over stacked replicas: the levels that ranks would measure and agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crossover_comm import _C
from crossover_comm.simulate.draws import Exchange, draw
from crossover_comm.simulate.mixing import Mixer
from crossover_comm.simulate.wires import quantized
from crossover_comm.wires import (
    BLOCK_NUMEL,
    LevelWindows,
    Wire,
    levels_within,
    squared_distance,
)

__all__ = ["AnyMixer", "AutoMixer"]

_MEASURED_BLOCKS = 32
"""Of so many blocks of a message one is measured; csrc/core/device.h."""

Reals = npt.NDArray[np.float64]


class AutoMixer:
    """Mixes as a :class:`Mixer`, in each round by the level that the ranks agree on.

    Args:
        schedule: Of one round of the topology, no push-sum.
        segments: Columns [begin, end) of each segment, in model order.
        budget: Most bytes of a step, in fp32 rounds of the topology.

    Raises:
        InvalidArgument: The budget does not pay for a round.
    """

    push_sum = False

    def __init__(
        self, schedule: _C.Schedule, segments: Sequence[tuple[int, int]], budget: float
    ) -> None:
        self.segments = list(segments)
        self.weights = np.ones((len(self.segments), schedule.size))
        self._schedule = schedule
        self._levels = levels_within(budget)
        self._mixers = [
            Mixer(_repeated(schedule, level.rounds), segments, level.wire) for level in self._levels
        ]
        self._models = [mixer.mean_models_sent() for mixer in self._mixers]
        self._windows = LevelWindows(schedule.size, len(self._levels) - 1)
        self._measured = np.zeros((2, schedule.size))
        self._ran = [0] * len(self._levels)

    def mix(self, x: Tensor, round: int) -> None:
        """Mixes all segments of x (size, columns) in place, by one step's rounds."""
        windows = self._windows
        if windows.place(round) == 0:
            wire = self._levels[windows.level].wire
            squares, own = self._measured.tolist()
            distances = [squared_distance(a, b, wire) for a, b in zip(squares, own, strict=True)]
            windows.level = windows.next
            windows.decide(self._levels, max(distances))
            self._measured[:] = 0.0
        level = self._levels[windows.level]
        self._measure(x, round * level.rounds, level.wire)
        self._mixers[windows.level].mix(x, round)
        self._ran[windows.level] += 1

    def mean_models_sent(self) -> float:
        """Per rank and step so far, in fp32 models."""
        sent = sum(n * models for n, models in zip(self._ran, self._models, strict=True))
        return sent / max(1, sum(self._ran))

    def _measure(self, x: Tensor, round: int, wire: Wire) -> None:
        for segment, (begin, end) in enumerate(self.segments):
            phases = draw(self._schedule, round, segment, end - begin)
            for exchange in phases[0] if phases else []:
                columns = x[:, begin + exchange.begin : begin + exchange.end]
                self._add(exchange, columns, wire)

    def _add(self, exchange: Exchange, columns: Tensor, wire: Wire) -> None:
        blocks = torch.arange(columns.shape[1], device=columns.device) // BLOCK_NUMEL
        sent = quantized(columns[:, blocks % _MEASURED_BLOCKS == 0], wire).double()
        own = sent[torch.from_numpy(exchange.ranks)]
        for peers in exchange.peers.T:
            is_message = peers != exchange.ranks
            apart = sent[torch.from_numpy(peers)] - own
            sums = torch.stack([apart.square().sum(1), own.square().sum(1)]).cpu().numpy()
            self._measured[:, exchange.ranks] += sums * is_message


def _repeated(schedule: _C.Schedule, rounds: int) -> _C.Schedule:
    return schedule if rounds == 1 else _C.repeated_schedule(schedule, rounds)


AnyMixer: TypeAlias = Mixer | AutoMixer
