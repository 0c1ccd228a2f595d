"""An optimizer's state as JSON and a list of tensors, and back. Nothing is pickled."""

from __future__ import annotations

from typing import Any

import torch

from crossover_comm.errors import InvalidArgument

__all__ = ["decode_state", "describe_tensor", "encode_state", "named_dtype"]


def describe_tensor(tensor: torch.Tensor) -> dict[str, object]:
    """Its dtype and shape, ready for JSON."""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def named_dtype(name: str) -> torch.dtype:
    """The dtype that describe_tensor names.

    Raises:
        InvalidArgument: torch has no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidArgument(f"expected the name of a torch dtype, got {name!r}")
    return dtype


def encode_state(value: Any, tensors: list[torch.Tensor], path: str = "state_dict") -> Any:
    """`value` as JSON that keeps types apart: tuples from lists, integer keys from strings.

    Args:
        value: None, bool, int, float, str, a tensor, or lists, tuples and dicts of these.
        tensors: The tensors of `value` are appended to it; the JSON holds their indices.
        path: Where `value` was found, for messages.

    Raises:
        InvalidArgument: Something else; names its type and path.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, list | tuple):
        items = [encode_state(item, tensors, f"{path}[{i}]") for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict):
        return {
            "dict": [
                [
                    encode_state(key, tensors, f"key of {path}"),
                    encode_state(item, tensors, f"{path}[{key!r}]"),
                ]
                for key, item in value.items()
            ]
        }
    raise InvalidArgument(
        f"{path}: expected tensors, numbers, strings, None or lists, tuples and dicts of these, "
        f"got {type(value).__name__}"
    )


def decode_state(encoded: Any, tensors: list[torch.Tensor]) -> Any:
    """What encode_state was given, with the tensors of `tensors`."""
    if not isinstance(encoded, dict):
        return encoded
    ((kind, content),) = encoded.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {decode_state(k, tensors): decode_state(v, tensors) for k, v in content}
    items = [decode_state(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
