"""Push-sum: parameters are x / w, but an optimizer steps x."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from crossover_comm.remedies.remedy import Remedy, held_by

__all__ = ["PushSum"]


class PushSum(Remedy):
    """Scales parameters z to x = w z for the time of a step; w is the segment's, in the engine.

        x <- step(w z),   z <- x / w

    With SGD: z <- z - (lr / w) g(z), so that sum_i w_i z_i moves by -lr sum_i g_i.
    Source: Assran et al., Stochastic Gradient Push, arXiv 1811.10792, algorithm 1.
    """

    _scaled: tuple[tuple[list[torch.Tensor], float], ...] = ()

    def step_begins(self, optimizer: Optimizer, *, closure: bool, exchanges: bool) -> None:
        self._unscale()  # a step that raised never ended
        if closure:
            self.gossip.fail(
                "push-sum: expected optimizer.step() without a closure, got one: it would "
                "evaluate the model at x instead of x / w; call backward() before the step"
            )

    def before_step(self, optimizer: Optimizer) -> None:
        held = held_by(optimizer)
        scaled = []
        for segment, weight in zip(self.gossip.segments, self.gossip.weights(), strict=True):
            tensors = [p.detach() for p in segment.parameters if id(p) in held]
            if tensors and weight != 1.0:
                scaled.append((tensors, weight))
        for tensors, weight in scaled:
            torch._foreach_mul_(tensors, weight)
        self._scaled = tuple(scaled)

    def after_step(self, optimizer: Optimizer) -> None:
        self._unscale()

    def opening(self) -> None:
        self._unscale()

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.gossip.weights()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gossip.set_weights(state["weights"])

    def _unscale(self) -> None:
        for tensors, weight in self._scaled:
            torch._foreach_div_(tensors, weight)
        self._scaled = ()
