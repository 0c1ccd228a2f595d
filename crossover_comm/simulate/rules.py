"""One step of many replicas, as dense algebra over their stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossover_comm.errors import InvalidArgument
from crossover_comm.simulate.auto_mixing import AnyMixer
from crossover_comm.simulate.method import Method, Recipe

__all__ = ["Stepper"]


@dataclass(slots=True)
class _Slow:
    """The outer iterate of slow momentum: x at the last exact average, and its momentum."""

    x: Tensor
    momentum: Tensor


class Stepper:
    """Optimizer and mixing of stacked replicas.

    Args:
        x: (workers, parameters), updated in place by `step`.
        tensors: columns [begin, end) and number of dimensions of each parameter.
    """

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        x: Tensor,
        mixer: AnyMixer | None,
        tensors: Sequence[tuple[int, int, int]],
    ) -> None:
        if recipe.lars and method.momentum_rule in ("quasi-global", "decentlam"):
            raise InvalidArgument(f"lars: not defined with momentum_rule={method.momentum_rule!r}")
        if mixer is not None and mixer.push_sum:
            _require_plain(method)
        self._method = method
        self._recipe = recipe
        self._x = x
        self._mixer = mixer
        self._tensors = tensors
        self._momentum = torch.zeros_like(x)
        self._slow = _Slow(x[0].clone(), torch.zeros_like(x[0])) if method.slow_momentum else None

    def step(self, step: int, gradients: Tensor) -> None:
        """Applies the gradients taken at x, and mixes; 0-based step."""
        learning_rate = self._recipe.factor(step) * self._recipe.learning_rate
        mixes = self._mixer is not None and (step + 1) % self._method.interval == 0
        gradients = self._decayed(gradients, learning_rate)
        if self._method.momentum_rule == "decentlam":
            self._decentlam(gradients, learning_rate, step, mixes)
        elif self._method.momentum_rule == "quasi-global":
            self._quasi_global(gradients, learning_rate, step, mixes)
        else:
            self._heavy_ball(gradients, learning_rate, step, mixes)
        self._average(step, learning_rate)

    def _decayed(self, gradients: Tensor, learning_rate: float) -> Tensor:
        """g + wd x; with LARS scaled per tensor, lambda / lr of `crossover_comm.optim.LARS`."""
        recipe = self._recipe
        if not recipe.lars:
            return gradients.add_(self._weighed(self._x), alpha=recipe.weight_decay)
        decay = recipe.weight_decay * learning_rate / recipe.learning_rate
        for begin, end, num_dimensions in self._tensors:
            g, p = gradients[:, begin:end], self._x[:, begin:end]
            if num_dimensions == 1:
                continue
            norm_p, norm_g = p.norm(dim=1, keepdim=True), g.norm(dim=1, keepdim=True)
            scale = recipe.lars * norm_p / (norm_g + decay * norm_p + 1e-9)
            scale = torch.where((norm_p == 0) | (norm_g == 0), 1.0, scale)
            g.add_(p, alpha=decay).mul_(scale)
        return gradients

    def _weighed(self, values: Tensor, power: int = 1) -> Tensor:
        """With push-sum w values or values / w: the step is taken at w z, z being the model."""
        mixer = self._mixer
        if mixer is None or not mixer.push_sum:
            return values
        weights = torch.from_numpy(mixer.weights**power).to(values.device, values.dtype)
        parts = [
            values[:, begin:end] * w[:, None]
            for (begin, end), w in zip(mixer.segments, weights, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def _mix(self, x: Tensor, step: int) -> None:
        if self._mixer is not None:
            mixing = step // self._method.interval
            for r in range(self._method.rounds_per_step):
                self._mixer.mix(x, mixing * self._method.rounds_per_step + r)

    def _heavy_ball(self, gradients: Tensor, learning_rate: float, step: int, mixes: bool) -> None:
        momentum = self._momentum.mul_(self._recipe.momentum)
        if self._recipe.lars:
            momentum.add_(gradients, alpha=learning_rate)
            scale = 1.0
        else:
            momentum.add_(gradients)
            scale = learning_rate
        if mixes and self._method.order == "before":
            self._mix(self._x, step)
        self._x.sub_(self._weighed(momentum, -1), alpha=scale)
        if mixes and self._method.order == "after":
            self._mix(self._x, step)
        if mixes and self._method.momentum_rule == "exchanged":
            self._mix(momentum, step)

    def _decentlam(self, gradients: Tensor, learning_rate: float, step: int, mixes: bool) -> None:
        moved = self._x.sub(gradients, alpha=learning_rate)
        if mixes:
            self._mix(moved, step)
        corrected = (self._x - moved).div_(learning_rate)
        self._momentum.mul_(self._recipe.momentum).add_(corrected)
        self._x.sub_(self._momentum, alpha=learning_rate)

    def _quasi_global(self, gradients: Tensor, rate: float, step: int, mixes: bool) -> None:
        before = self._x.clone()
        direction = gradients.add_(self._momentum, alpha=self._recipe.momentum)
        self._x.sub_(direction, alpha=rate)
        if mixes:
            self._mix(self._x, step)
        moved = before.sub_(self._x).div_(rate)
        self._momentum.lerp_(moved, 1.0 - self._recipe.momentum)

    def _average(self, step: int, learning_rate: float) -> None:
        method = self._method
        periodic = method.exact_every > 0 and (step + 1) % method.exact_every == 0
        if not periodic and step >= method.warm_up_steps:
            return
        mean = self._x.mean(dim=0)
        if periodic and self._slow is not None:
            slow = self._slow
            slow.momentum.mul_(method.slow_momentum).add_((slow.x - mean) / learning_rate)
            mean = slow.x.sub_(slow.momentum, alpha=learning_rate).clone()
        self._x.copy_(mean.expand_as(self._x))


def _require_plain(method: Method) -> None:
    if method.momentum_rule != "local" or method.exact_every or method.warm_up_steps:
        raise InvalidArgument(
            "push-sum: expected momentum_rule='local' and no exact averages, got "
            f"{method.momentum_rule!r}, exact_every={method.exact_every}, "
            f"warm_up_steps={method.warm_up_steps}"
        )
