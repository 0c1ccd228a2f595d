"""What remedies demand of an optimizer."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch.optim import Optimizer

from crossover_comm.gossip import Gossip

__all__ = ["learning_rate", "require_sgd"]


def learning_rate(group: dict[str, Any]) -> float:
    """A parameter group's learning rate now; it may be a tensor."""
    return float(group["lr"])


def require_sgd(gossip: Gossip, what: str, optimizer: Optimizer, *, closure: bool) -> None:
    """Fails unless the step is that of torch's SGD, with gradients that are there as they are.

    Raises:
        InvalidArgument: On this rank; the others learn it.
    """

    def refuse(wanted: str, given: str) -> NoReturn:
        gossip.fail(f"momentum='{what}': expected {wanted}, got {given}")

    if not isinstance(optimizer, torch.optim.SGD):
        refuse(
            "torch.optim.SGD, whose step is lr times a momentum of gradients",
            f"{type(optimizer).__name__}; 'exchanged' and slow_momentum work with any optimizer",
        )
    if closure:
        refuse("optimizer.step() without a closure", "one, whose gradients come too late")
    if getattr(optimizer, "grad_scale", None) is not None:
        refuse(
            "gradients without GradScaler's scale",
            "scaled ones for SGD(fused=True); call scaler.unscale_(optimizer) before the step",
        )
