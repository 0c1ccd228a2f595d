"""LARS and its schedule, as Crossover-SGD was trained with, for any torch training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from crossover_comm.errors import InvalidArgument

__all__ = ["LARS", "WarmUpPolynomial", "warm_up_polynomial"]

EPSILON = 1e-9
"""In the denominator of the local learning rate."""


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with heavy-ball momentum, the rate inside the momentum.

    For a tensor p of more than one dimension with gradient g, norms local to the worker:
    ``lambda = lr eta ||p|| / (||g|| + wd ||p|| + 1e-9)``, and ``lambda = lr`` if a norm is 0;
    for a tensor of one dimension or none ``lambda = lr`` and ``wd = 0``. Then
    ``v <- m v + lambda (g + wd p)`` and ``p <- p - v``. Nothing waits for a GPU.

    Args:
        params: parameters or groups, as every torch optimizer takes.
        lr: learning rate, at least 0.
        momentum: m, in [0, 1).
        weight_decay: wd, at least 0.
        trust: eta, above 0.

    Raises:
        InvalidArgument: a hyper-parameter outside its range.

    Source: You, Gitman, Ginsburg, arXiv 1708.03888; the variant of Crossover-SGD, arXiv 2012.15198.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.96,
        weight_decay: float = 5e-5,
        trust: float = 0.0025,
    ) -> None:
        for name, value, holds, wanted in (
            ("lr", lr, lr >= 0, "at least 0"),
            ("momentum", momentum, 0 <= momentum < 1, "0 <= momentum < 1"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("trust", trust, trust > 0, "above 0"),
        ):
            if not holds:
                raise InvalidArgument(f"LARS: {name}: expected {wanted}, got {value}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` returned, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices: dict[torch.device, list[Tensor]] = {}
            vectors: dict[torch.device, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    kind = matrices if p.ndim > 1 else vectors
                    kind.setdefault(p.device, []).append(p)
            for tensors in matrices.values():
                self._apply(tensors, _scaled_gradients(tensors, group), group["momentum"])
            for tensors in vectors.values():
                scaled = torch._foreach_mul([_gradient(p) for p in tensors], group["lr"])
                self._apply(tensors, scaled, group["momentum"])
        return loss

    def _apply(self, tensors: list[Tensor], scaled: Iterable[Tensor], momentum: float) -> None:
        for p in tensors:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in tensors]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, list(scaled))
        torch._foreach_sub_(tensors, buffers)


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _scaled_gradients(tensors: list[Tensor], group: dict[str, Any]) -> Iterable[Tensor]:
    """lambda (g + wd p) of each tensor; lambda stays on the device."""
    gradients = [_gradient(p) for p in tensors]
    lr, decay = group["lr"], group["weight_decay"]
    of_p = torch.stack([n.float() for n in torch._foreach_norm(tensors)])
    of_g = torch.stack([n.float() for n in torch._foreach_norm(gradients)])
    rates = lr * group["trust"] * of_p / (of_g + decay * of_p + EPSILON)
    rates = torch.where((of_p == 0) | (of_g == 0), lr, rates)
    decayed = torch._foreach_add(gradients, tensors, alpha=decay)
    return [g.mul_(rate) for g, rate in zip(decayed, rates.unbind(), strict=True)]


def warm_up_polynomial(
    step: int,
    *,
    total: int,
    warm_up: int,
    at_floor: int = 0,
    power: float = 2.2,
    floor: float = 0.0025,
) -> float:
    """Factor of the learning rate in update `step`, 0-based.

    (step + 1) / warm_up during the warm-up, then (1 - floor) (1 - u)^power + floor with u from 0 to
    1, and `floor` in the last `at_floor` of `total` updates. Source: Crossover-SGD's training logs.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    u = min(1.0, (step - warm_up) / max(1, total - at_floor - warm_up))
    return float((1.0 - floor) * (1.0 - u) ** power + floor)


class WarmUpPolynomial(LRScheduler):
    """`warm_up_polynomial` on the learning rate *and* the weight decay of every group.

    Step it once per update. The defaults are the paper's; there 36 of 90 epochs warm up and two
    stay at the floor.

    Args:
        optimizer: its groups' ``lr`` and ``weight_decay`` are the peaks.
        total: number of updates.
        warm_up: updates of the linear rise.
        at_floor: updates at the end that stay at the floor.
        power: of the fall.
        floor: factor at the end.

    Raises:
        InvalidArgument: warm-up and floor together are longer than the training.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        total: int,
        warm_up: int,
        at_floor: int = 0,
        power: float = 2.2,
        floor: float = 0.0025,
    ) -> None:
        if not 0 <= warm_up + at_floor <= total:
            raise InvalidArgument(
                f"WarmUpPolynomial: {warm_up} updates of warm-up and {at_floor} at the floor do "
                f"not fit into {total}"
            )
        self.shape = {
            "total": total,
            "warm_up": warm_up,
            "at_floor": at_floor,
            "power": power,
            "floor": floor,
        }
        for group in optimizer.param_groups:
            group.setdefault("initial_weight_decay", group["weight_decay"])
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The groups' learning rates; their weight decays are set beside."""
        factor = warm_up_polynomial(self.last_epoch, **self.shape)  # type: ignore[arg-type]
        for group in self.optimizer.param_groups:
            group["weight_decay"] = group["initial_weight_decay"] * factor
        return [base * factor for base in self.base_lrs]
