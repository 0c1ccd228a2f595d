"""Quasi-global momentum: momentum from what the exchange has made of the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from crossover_comm.gossip import Gossip
from crossover_comm.remedies.demands import learning_rate, require_sgd
from crossover_comm.remedies.remedy import Remedy
from crossover_comm.remedies.tensors import copied, from_numbers, numbers, with_zeros

__all__ = ["QuasiGlobalMomentum"]


class QuasiGlobalMomentum(Remedy):
    """Before each step SGD's momentum buffer becomes an average of the global movement.

        m <- mu m + (1 - mu) (x_prev - x) / lr_prev,   then SGD with m as its buffer

    x is what the parameters are when a step begins, after all exchanges; x_prev and lr_prev are
    those of the step before; mu is the group's momentum. So SGD moves along mu m + g (or Nesterov's
    form of it). Where lr_prev is 0, m stays. Memory: two models. Bytes: none.
    Source: Lin et al., Quasi-Global Momentum, arXiv 2102.04761, algorithm 1.
    """

    def __init__(self, gossip: Gossip) -> None:
        super().__init__(gossip)
        self._gossiped = {id(p) for p in gossip.parameters}
        self._momentum: dict[int, torch.Tensor] = {}
        self._previous: dict[int, torch.Tensor] = {}
        self._lr: dict[int, float] = {}

    def step_begins(self, optimizer: Optimizer, *, closure: bool, exchanges: bool) -> None:
        require_sgd(self.gossip, "quasi-global", optimizer, closure=closure)
        if any(not group["momentum"] for group in optimizer.param_groups):
            self.gossip.fail(
                "momentum='quasi-global': expected torch.optim.SGD(momentum=...) > 0, which "
                "becomes the factor of quasi-global momentum, got 0"
            )

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            parameters = [p for p in group["params"] if id(p) in self._gossiped]
            self._remember([p for p in parameters if self._lr.get(id(p))], group["momentum"])
            lr = learning_rate(group)
            for p in parameters:
                key = id(p)
                if key not in self._previous:
                    self._previous[key] = torch.empty_like(p, requires_grad=False)
                    self._momentum[key] = torch.zeros_like(p, requires_grad=False)
                self._previous[key].copy_(p)
                self._lr[key] = lr
                buffer = optimizer.state[p].get("momentum_buffer")
                if buffer is not None:
                    buffer.copy_(self._momentum[key])

    def state_dict(self) -> dict[str, Any]:
        return {
            "momentum": with_zeros(self.gossip, self._momentum),
            "previous": with_zeros(self.gossip, self._previous),
            "lr": numbers(self.gossip, self._lr),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lr = from_numbers(self.gossip, state["lr"])
        self._momentum = copied(self.gossip, state["momentum"], only=self._lr)
        self._previous = copied(self.gossip, state["previous"], only=self._lr)

    def _remember(self, parameters: list[torch.Tensor], mu: float) -> None:
        if not parameters:
            return
        moved = [self._previous[id(p)] for p in parameters]
        momenta = [self._momentum[id(p)] for p in parameters]
        torch._foreach_sub_(moved, parameters)
        torch._foreach_mul_(moved, [(1.0 - mu) / self._lr[id(p)] for p in parameters])
        torch._foreach_mul_(momenta, mu)
        torch._foreach_add_(momenta, moved)
