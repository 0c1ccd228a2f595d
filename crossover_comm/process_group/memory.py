"""Memory that tensors lend to collectives, and what its elements are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from crossover_comm.errors import DeviceError, InvalidArgument

__all__ = ["Loan", "common_dtype", "element_name", "reduction"]

_OPS = {
    "sum": dist.ReduceOp.SUM,
    "average": dist.ReduceOp.AVG,
    "product": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "and": dist.ReduceOp.BAND,
    "or": dist.ReduceOp.BOR,
    "xor": dist.ReduceOp.BXOR,
}
_BOOL_OPS = {
    "sum": "max",
    "product": "min",
    "min": "min",
    "max": "max",
    "and": "and",
    "or": "or",
    "xor": "xor",
}


class Loan:
    """A dense CPU tensor whose memory a collective uses until it is over.

    A tensor that is not contiguous lends a copy; :meth:`give_back` then writes what was received
    to the tensor itself.

    Args:
        call: What is called, for messages.
        tensor: Any shape and dtype.
        is_read: The memory holds the tensor's values when it is lent.
        is_written: The collective writes it.

    Raises:
        DeviceError: The tensor is not on the CPU.
        InvalidArgument: It is sparse or not real memory.
    """

    def __init__(
        self, call: str, tensor: torch.Tensor, *, is_read: bool = True, is_written: bool = False
    ) -> None:
        _require_dense_cpu(call, tensor)
        tensor = tensor.detach()
        self._original = tensor
        self._is_written = is_written
        if tensor.is_contiguous():
            self.tensor = tensor
        elif is_read:
            self.tensor = tensor.contiguous()
        else:
            self.tensor = torch.empty(tensor.shape, dtype=tensor.dtype)

    @property
    def range(self) -> tuple[int, int]:
        """Address and number of bytes."""
        return self.tensor.data_ptr(), self.tensor.nbytes

    def give_back(self) -> None:
        """Once the collective is complete."""
        if self._is_written and self.tensor is not self._original:
            self._original.copy_(self.tensor)


def element_name(dtype: torch.dtype) -> str:
    """torch's name without the prefix."""
    return str(dtype).removeprefix("torch.")


def common_dtype(call: str, tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """The dtype of all tensors of a call.

    Raises:
        InvalidArgument: They have several, or there are none.
    """
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) != 1:
        names = ", ".join(sorted(element_name(dtype) for dtype in dtypes)) or "no tensor"
        raise InvalidArgument(f"{call}: expected tensors of one dtype, got {names}")
    return next(iter(dtypes))


def reduction(call: str, op: Any, dtype: torch.dtype) -> tuple[str, str]:
    """The engine's names of the element type and of the reduction.

    Complex numbers are summed as pairs of real ones; booleans are bytes of 0 and 1, so that a sum
    is "or" and a product "and", as in torch.

    Raises:
        InvalidArgument: The operation is unknown or has no meaning for the dtype.
    """
    name = next((name for name, known in _OPS.items() if op == known), None)
    if name is None:
        raise InvalidArgument(
            f"{call}: backend 'crossover' has no such ReduceOp; it has SUM, AVG, PRODUCT, MIN, "
            "MAX, BAND, BOR and BXOR"
        )
    if dtype == torch.bool:
        if name not in _BOOL_OPS:
            raise InvalidArgument(f"{call}: {name.upper()} has no meaning for bool")
        return "uint8", _BOOL_OPS[name]
    if dtype.is_complex:
        if name not in ("sum", "average"):
            raise InvalidArgument(f"{call}: {name.upper()} has no meaning for {dtype}")
        return element_name(dtype.to_real()), name
    return element_name(dtype), name


def _require_dense_cpu(call: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise DeviceError(
            f"{call}: backend 'crossover' moves tensors in host memory, got one on "
            f"{tensor.device}; use a group of another backend for it, such as "
            "torch.distributed.new_group(backend='nccl')"
        )
    if tensor.layout != torch.strided:
        raise InvalidArgument(
            f"{call}: expected a dense tensor, got one with layout {tensor.layout}"
        )
