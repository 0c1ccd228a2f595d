"""What a wire's type makes of replicas."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from crossover_comm import _C
from crossover_comm.wires import BLOCK_NUMEL, Wire

__all__ = ["quantized", "wire_of"]

_CASTS: Final[dict[Wire, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def wire_of(schedule: _C.Schedule, wire: Wire) -> Wire:
    """What a schedule's rounds are sent in: bf16 in place of int8 where the ranks end with the same
    bits, so that nobody keeps what an average's rounding takes."""
    return "bf16" if wire == "int8" and schedule.name == "all-reduce" else wire


def quantized(x: Tensor, wire: Wire) -> Tensor:
    """Q(x): what is sent of x, in the type of x; x itself under ``"fp32"``.

    Args:
        x: (ranks, elements of a segment).
        wire: Element type on the wire.
    """
    if wire == "fp32":
        return x
    if wire == "int8":
        return _int8_blocks(x)
    return x.to(_CASTS[wire]).to(x.dtype)


def _int8_blocks(x: Tensor) -> Tensor:
    """As the engine's kernels, bit for bit, but that values that blocks cannot hold are kept."""
    rows, numel = x.shape
    blocks = pad(x.float(), (0, -numel % BLOCK_NUMEL)).view(rows, -1, BLOCK_NUMEL)
    largest = blocks.abs().amax(dim=2, keepdim=True)
    scale = (((largest / 127.0).view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)
    scale = torch.where(largest < 2.0**-100, 0.0, scale)
    steps = torch.where(scale > 0, (blocks * (1.0 / scale)).round(), 0.0)
    return (steps * scale).view(rows, -1)[:, :numel].to(x.dtype)
