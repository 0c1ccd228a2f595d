"""Compute that takes time but no core, so that many ranks on few cores measure communication."""

from __future__ import annotations

import random
import time
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["DELAYS", "Delay", "SleepingLayer", "factor"]

Delay = Literal["none", "straggler", "jitter"]
DELAYS: tuple[Delay, ...] = ("none", "straggler", "jitter")
SLOWER = 1.5
JITTER_SHARE = 0.1
FORWARD_SHARE = 1 / 3


def factor(delay: Delay, rank: int, step: int) -> float:
    """How much longer this rank's step takes. A pure function, so that all methods meet it alike.

    ``"straggler"``: rank 0 is 50 % slower always. ``"jitter"``: one step in ten of every rank is
    50 % longer, drawn independently.
    """
    if delay == "straggler":
        return SLOWER if rank == 0 else 1.0
    if delay == "jitter":
        is_slow = random.Random(f"{rank} {step}").random() < JITTER_SHARE
        return SLOWER if is_slow else 1.0
    return 1.0


class SleepingLayer(nn.Module):
    """Passes its input on; sleeps a third of `duration_s` in forward, the rest in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.duration_s = 0.0

    def forward(self, x: Tensor) -> Tensor:
        slept: Tensor = _Sleep.apply(x, self.duration_s)  # type: ignore[no-untyped-call]
        return slept


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, duration_s: float) -> Tensor:
        ctx.duration_s = duration_s
        time.sleep(FORWARD_SHARE * duration_s)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep((1 - FORWARD_SHARE) * ctx.duration_s)
        return gradients[0], None
