"""How a parameter lies in memory, and whether the engine can exchange it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import Final, TypeAlias

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from crossover_comm.errors import InvalidArgument

__all__ = [
    "DTYPE_NAMES",
    "Layout",
    "is_dense",
    "is_sharded",
    "layout_of",
    "local_of",
    "require_disjoint",
    "require_exchangeable",
    "spell_layout",
]

DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
"""The element types that the engine knows, under its names."""

Layout: TypeAlias = tuple[torch.dtype, torch.device, tuple[int, ...], tuple[int, ...]]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor: each rank of a mesh holds a part of it."""
    for name in ("torch.distributed.tensor", "torch.distributed._tensor"):  # torch 2.4: the latter
        module = sys.modules.get(name)
        if module is not None:
            return isinstance(tensor, module.DTensor)
    return False


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What of it lies on this rank: the local part of a DTensor, else the tensor itself."""
    local: torch.Tensor = tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return local


def layout_of(tensor: torch.Tensor) -> Layout:
    """How a tensor lies in memory, but for its address."""
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride()


def spell_layout(layout: Layout) -> str:
    """For messages."""
    dtype, device, shape, stride = layout
    return f"{str(dtype).removeprefix('torch.')} of shape {shape}, strides {stride} on {device}"


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each once, in whatever order.

    True for contiguous, transposed and ``channels_last`` tensors; false for slices and for
    ``expand``-ed ones.
    """
    if tensor.numel() == 0:
        return True
    expected = 1
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted(step for step in steps if step[1] != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def require_exchangeable(name: str, parameter: torch.Tensor) -> None:
    """Refuses what cannot be handed to the engine as an address and a number of elements.

    Raises:
        InvalidArgument: For a parameter that is not initialised, not a plain dense tensor on the
            CPU or a GPU, or not of a floating type that the engine knows.
    """
    wrong = _what_is_wrong(parameter)
    if wrong is not None:
        wanted, given = wrong
        raise InvalidArgument(f"parameter '{name}': expected {wanted}, got {given}")


def require_disjoint(parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuses parameters of which two share memory.

    Raises:
        InvalidArgument: Naming both. The same ``Parameter`` under two names is not two parameters.
    """
    used = sorted(
        (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name)
        for name, p in parameters.items()
        if p.numel() > 0
    )
    for (_, end, first), (begin, _, second) in itertools.pairwise(used):
        if begin < end:
            raise InvalidArgument(
                f"parameter '{second}': expected memory of its own, got memory that overlaps "
                f"parameter '{first}'; to tie weights, assign the same Parameter to both modules"
            )


def _what_is_wrong(parameter: torch.Tensor) -> tuple[str, str] | None:
    """(what was wanted, what was given), or None if nothing is wrong."""
    if is_lazy(parameter):
        return "an initialised tensor", "one of a lazy module; run a forward before wrapping"
    if is_traceable_wrapper_subclass(parameter):
        return "a plain tensor", f"a {type(parameter).__name__}"
    if parameter.layout is not torch.strided:
        return "a dense tensor", f"layout {str(parameter.layout).removeprefix('torch.')}"
    if parameter.dtype not in DTYPE_NAMES:
        wanted = f"one of {', '.join(DTYPE_NAMES.values())}"
        return wanted, str(parameter.dtype).removeprefix("torch.")
    if parameter.device.type not in ("cpu", "cuda"):
        return "a tensor on the CPU or a GPU", f"one on {parameter.device}"
    if parameter.is_inference():
        return "a tensor that autograd follows", "one made under torch.inference_mode()"
    if not is_dense(parameter):
        layout = f"shape {tuple(parameter.shape)} with strides {parameter.stride()}"
        return "elements that fill their memory without gaps or overlap", layout
    return None
