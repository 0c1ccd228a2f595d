"""Mixing of stacked replicas by the draws of a schedule, in the engine's difference form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crossover_comm import _C
from crossover_comm.simulate.draws import Exchange, Phase, draw, models_sent
from crossover_comm.simulate.wires import quantized, wire_of
from crossover_comm.wires import MODEL_SHARE, Wire

__all__ = ["Mixer"]

_MAX_GATHERED_PEERS = 4
"""Rows with more peers are cheaper as a matrix product."""

_COUNTED_ROUNDS = 24
"""Rounds over which the bytes of a schedule are averaged."""


class Mixer:
    """Mixes stacked replicas, row = rank, as the engine would.

    Push-sum runs where the schedule is column-stochastic: the rows then hold the de-biased models,
    and each rank has a weight per segment.

    Args:
        schedule: whose size is the number of rows.
        segments: columns [begin, end) of each segment, in model order.
        wire: element type on the wire.
    """

    def __init__(
        self, schedule: _C.Schedule, segments: Sequence[tuple[int, int]], wire: Wire = "fp32"
    ) -> None:
        self._schedule = schedule
        self.segments = list(segments)
        self._wire = wire_of(schedule, wire)
        self.push_sum = schedule.stochasticity == "column"
        self.weights = np.ones((len(self.segments), schedule.size))

    def mix(self, x: Tensor, round: int) -> None:
        """Mixes all segments of x (size, columns) in place, by the draws of one round."""
        for segment, (begin, end) in enumerate(self.segments):
            phases = draw(self._schedule, round, segment, end - begin)
            if self.push_sum:
                phases = [self._de_biased(phase, segment) for phase in phases]
            self._run(x[:, begin:end], phases)

    def mean_models_sent(self) -> float:
        """Per rank and round, in fp32 models."""
        numels = [end - begin for begin, end in self.segments]
        total = sum(
            numel * models_sent(self._schedule, round, segment, numel)
            for round in range(_COUNTED_ROUNDS)
            for segment, numel in enumerate(numels)
        )
        return total / sum(numels) / _COUNTED_ROUNDS * MODEL_SHARE[self._wire]

    def _run(self, x: Tensor, phases: Sequence[Phase]) -> None:
        if len(phases) == 1:
            _run_phase(x, phases[0], self._wire)
        elif phases:
            start = quantized(x, self._wire)
            copy = start.clone()
            for phase in phases:
                _run_phase(copy, phase, self._wire)
            x.add_(copy.sub_(start))

    def _de_biased(self, phase: Phase, segment: int) -> Phase:
        """The factors p_ij w_j / w_i' in place of the shares p_ij, and w <- P w.

        Source: Assran et al., SGP, arXiv 1811.10792.
        """
        own = self.weights[segment].copy()
        given = np.zeros_like(own)
        received = np.zeros_like(own)
        for exchange in phase:
            np.add.at(given, exchange.peers, exchange.weights)
            received[exchange.ranks] += (exchange.weights * own[exchange.peers]).sum(axis=1)
        after = own * (1.0 - given) + received
        self.weights[segment] = after
        return [
            Exchange(
                e.begin, e.end, e.ranks, e.peers, e.weights * own[e.peers] / after[e.ranks, None]
            )
            for e in phase
        ]


def _run_phase(x: Tensor, phase: Phase, wire: Wire) -> None:
    sent = quantized(x, wire)
    changes = [_change(sent[:, e.begin : e.end], e) for e in phase]
    if wire != "fp32":
        for exchange, change in zip(phase, changes, strict=True):
            _keep_rounding(change, exchange, x, sent)
    for exchange, change in zip(phase, changes, strict=True):
        columns = x[:, exchange.begin : exchange.end]
        if len(exchange.ranks) == len(x):
            columns.add_(change)
        else:
            columns.index_add_(0, torch.from_numpy(exchange.ranks).to(x.device), change)


def _keep_rounding(change: Tensor, exchange: Exchange, x: Tensor, sent: Tensor) -> None:
    """Adds weight * (x - Q(x)) for each receive of a rank from itself."""
    own = np.where(exchange.peers == exchange.ranks[:, None], exchange.weights, 0.0).sum(axis=1)
    if own.any():
        ranks = torch.from_numpy(exchange.ranks).to(x.device)
        columns = slice(exchange.begin, exchange.end)
        rounding = x[:, columns].index_select(0, ranks) - sent[:, columns].index_select(0, ranks)
        change.addcmul_(rounding, torch.from_numpy(own).to(x.device, x.dtype)[:, None])


def _change(sent: Tensor, exchange: Exchange) -> Tensor:
    """What the exchange adds to the elements of its ranks, (ranks, columns)."""
    ranks = torch.from_numpy(exchange.ranks).to(sent.device)
    peers = torch.from_numpy(exchange.peers).to(sent.device)
    weights = torch.from_numpy(exchange.weights).to(sent.device, sent.dtype)
    if peers.shape[1] > _MAX_GATHERED_PEERS:
        rows = torch.zeros(len(ranks), len(sent), device=sent.device, dtype=sent.dtype)
        rows.scatter_add_(1, peers, weights)
        rows.scatter_add_(1, ranks[:, None], -weights.sum(dim=1, keepdim=True))
        return rows @ sent
    own = sent if len(ranks) == len(sent) else sent.index_select(0, ranks)
    total = sent.index_select(0, peers[:, 0]).sub_(own).mul_(weights[:, 0, None])
    for d in range(1, peers.shape[1]):
        total.addcmul_(sent.index_select(0, peers[:, d]).sub_(own), weights[:, d, None])
    return total
