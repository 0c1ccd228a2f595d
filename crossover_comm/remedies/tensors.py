"""What a remedy keeps per parameter: by the parameter's id in training, by its name outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch

from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip

__all__ = ["by_id", "by_name", "copied"]

ValueT = TypeVar("ValueT")


def by_name(gossip: Gossip, values: Mapping[int, ValueT]) -> dict[str, ValueT]:
    """Values by id of a gossiped parameter, by its name."""
    names = {id(p): name for name, p in gossip.named_parameters.items()}
    return {names[key]: value for key, value in values.items()}


def by_id(gossip: Gossip, values: Mapping[str, ValueT]) -> dict[int, ValueT]:
    """What `by_name` gave, back.

    Raises:
        InvalidArgument: A name is none of a gossiped parameter.
    """
    strangers = values.keys() - gossip.named_parameters.keys()
    if strangers:
        raise InvalidArgument(
            f"state: expected parameters of this model, got also {sorted(strangers)}"
        )
    return {id(gossip.named_parameters[name]): value for name, value in values.items()}


def copied(gossip: Gossip, tensors: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """As `by_id`, each tensor a copy on its parameter's device.

    Raises:
        InvalidArgument: A name or a shape is not the model's.
    """
    parameters = {id(p): p for p in gossip.parameters}
    made = {}
    for key, tensor in by_id(gossip, tensors).items():
        p = parameters[key]
        if p.shape != tensor.shape:
            (name,) = by_name(gossip, {key: p})
            raise InvalidArgument(
                f"state of parameter '{name}': expected shape {tuple(p.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        made[key] = torch.empty_like(p, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
    return made
