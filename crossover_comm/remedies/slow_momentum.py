"""SlowMo: momentum between exact averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from crossover_comm.gossip import Gossip
from crossover_comm.remedies.demands import learning_rate
from crossover_comm.remedies.remedy import Remedy
from crossover_comm.remedies.tensors import copied, from_numbers, numbers, with_zeros

__all__ = ["SlowMomentum"]


class SlowMomentum(Remedy):
    """After every periodic exact average, parameters move by a momentum of the whole period.

        u <- beta u + (x_0 - x) / lr,   x <- x_0 - alpha lr u,   x_0 <- x

    x is the average just mixed; x_0 is x at the end of the last period, at first where training
    began; lr is the parameter's in the last step that has begun (where that is 0, u stays and x is
    kept). beta = 0 with alpha = 1 is the average alone. The optimizer's own momentum is left alone.
    Memory: two models, x_0 and u, at least in float32. Bytes: none beside the averages.
    Source: Wang et al., SlowMo, arXiv 1910.00643, algorithm 1.

    Args:
        gossip: The model's.
        beta: Factor of the slow momentum, in [0, 1).
        alpha: Slow learning rate, > 0.
        period: Rounds from one exact average to the next, which ends a period.
    """

    def __init__(self, gossip: Gossip, beta: float, alpha: float, period: int) -> None:
        super().__init__(gossip)
        self._beta = beta
        self._alpha = alpha
        self._period = period
        self._start: dict[int, torch.Tensor] = {}
        self._momentum: dict[int, torch.Tensor] = {}
        self._lr: dict[int, float] = {}

    def step_begins(self, optimizer: Optimizer, *, closure: bool, exchanges: bool) -> None:
        if not self._start:
            for p in self.gossip.parameters:
                wide = torch.promote_types(p.dtype, torch.float32)
                self._start[id(p)] = p.detach().to(wide, copy=True)
                self._momentum[id(p)] = torch.zeros_like(self._start[id(p)])
        for group in optimizer.param_groups:
            lr = learning_rate(group)
            self._lr.update((id(p), lr) for p in group["params"] if id(p) in self._start)

    @torch.no_grad()
    def mixed(self, index: int, tensors: Sequence[torch.Tensor]) -> None:
        if self.gossip.round(index) % self._period != 0 or not self._start:
            return
        for p, x in zip(self.gossip.segments[index].parameters, tensors, strict=True):
            start, momentum, lr = self._start[id(p)], self._momentum[id(p)], self._lr.get(id(p))
            if not lr:
                start.copy_(x)
                continue
            momentum.mul_(self._beta).add_(start.sub(x), alpha=1.0 / lr)
            x.copy_(start.add_(momentum, alpha=-self._alpha * lr))

    def state_dict(self) -> dict[str, Any]:
        return {
            "has_begun": bool(self._start),
            "start": with_zeros(self.gossip, self._start, torch.float32),
            "momentum": with_zeros(self.gossip, self._momentum, torch.float32),
            "lr": numbers(self.gossip, self._lr),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        only = None if state["has_begun"] else ()
        self._start = copied(self.gossip, state["start"], only=only)
        self._momentum = copied(self.gossip, state["momentum"], only=only)
        self._lr = from_numbers(self.gossip, state["lr"])
