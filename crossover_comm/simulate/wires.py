"""What a wire's type makes of replicas, and what it costs."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from crossover_comm.config import Wire

__all__ = ["MODEL_SHARE", "quantized"]

MODEL_SHARE: Final[dict[Wire, float]] = {"fp32": 1.0, "bf16": 0.5, "fp16": 0.5}
"""Bytes of a model on the wire, in fp32 models."""

_CASTS: Final[dict[Wire, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def quantized(x: Tensor, wire: Wire) -> Tensor:
    """Q(x): what is sent of x, in the type of x; x itself under ``"fp32"``."""
    return x if wire == "fp32" else x.to(_CASTS[wire]).to(x.dtype)
