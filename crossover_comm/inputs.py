"""DDP's `device_ids`: a check of where the module is, and inputs moved there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from crossover_comm.device import device_of
from crossover_comm.errors import InvalidArgument

__all__ = ["input_device", "moved"]


def input_device(
    device_ids: Any, output_device: Any, parameters: Mapping[str, torch.Tensor]
) -> torch.device | None:
    """The device that inputs are moved to; None: they are left where they are.

    Args:
        device_ids: None, or the GPU of the module, as an int, a string or a torch.device, in a
            sequence of one.
        output_device: None, or the same GPU.
        parameters: Of the module, by name.

    Raises:
        InvalidArgument: Several devices, or one that the module is not on.
    """
    ids = [] if device_ids is None else list(device_ids)
    if len(ids) > 1:
        raise InvalidArgument(f"device_ids: expected None or one device, got {device_ids!r}")
    given = {"device_ids[0]": ids[0]} if ids else {}
    if output_device is not None:
        given["output_device"] = output_device
    device = None
    for argument, value in given.items():
        device = _gpu(argument, value)
        for name, parameter in parameters.items():
            if device_of(parameter) != device:
                raise InvalidArgument(
                    f"{argument}: expected the device of the module, whose parameter '{name}' is "
                    f"on {device_of(parameter)}, got {device}"
                )
    return device if ids else None


def moved(value: Any, device: torch.device) -> Any:
    """`value` with the tensors on `device`, in tuples, lists and dicts too."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, PackedSequence):
        packed: Any = value  # its stub knows no device
        return packed.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(item, device) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value


def _gpu(argument: str, value: Any) -> torch.device:
    """An index, a name or a device, as a device with its index."""
    try:
        device = torch.device("cuda", value) if isinstance(value, int) else torch.device(value)
    except (TypeError, RuntimeError) as error:
        raise InvalidArgument(f"{argument}: expected a device, got {value!r}") from error
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
