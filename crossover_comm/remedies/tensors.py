"""What a remedy keeps per parameter: by the parameter's id in training, by its name outside."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import TypeVar

import torch

from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip

__all__ = ["by_name", "copied", "from_numbers", "numbers", "with_zeros"]

ValueT = TypeVar("ValueT")


def by_name(gossip: Gossip, values: Mapping[int, ValueT]) -> dict[str, ValueT]:
    """Values by id of a gossiped parameter, by its name."""
    names = {id(p): name for name, p in gossip.named_parameters.items()}
    return {names[key]: value for key, value in values.items()}


def with_zeros(
    gossip: Gossip, tensors: Mapping[int, torch.Tensor], at_least: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """A tensor for each gossiped parameter, by its name: zeros where `tensors` has none.

    Args:
        gossip: The model's.
        tensors: By a parameter's id.
        at_least: Zeros are of this type or of the parameter's, whichever is wider; None: of the
            parameter's.
    """
    made = {}
    for name, p in gossip.named_parameters.items():
        dtype = p.dtype if at_least is None else torch.promote_types(p.dtype, at_least)
        known = tensors.get(id(p))
        zeros = torch.zeros_like(p, dtype=dtype, requires_grad=False) if known is None else known
        made[name] = zeros
    return made


def numbers(gossip: Gossip, values: Mapping[int, float]) -> torch.Tensor:
    """A number for each gossiped parameter, float64 in their order: NaN where there is none."""
    found = [values.get(id(p), math.nan) for p in gossip.parameters]
    return torch.tensor(found, dtype=torch.float64)


def from_numbers(gossip: Gossip, values: torch.Tensor) -> dict[int, float]:
    """What `numbers` was given.

    Raises:
        InvalidArgument: There is not one number per parameter.
    """
    if values.shape != (len(gossip.parameters),):
        raise InvalidArgument(
            f"state: expected a number for each of {len(gossip.parameters)} parameters, got shape "
            f"{tuple(values.shape)}"
        )
    found = zip(gossip.parameters, values.tolist(), strict=True)
    return {id(p): value for p, value in found if not math.isnan(value)}


def copied(
    gossip: Gossip, tensors: Mapping[str, torch.Tensor], only: Container[int] | None = None
) -> dict[int, torch.Tensor]:
    """What `with_zeros` gave, by id, each tensor a copy on its parameter's device.

    Args:
        gossip: The model's.
        tensors: By a parameter's name.
        only: Ids of the parameters whose tensors count; None: all.

    Raises:
        InvalidArgument: The names or a shape are not the model's.
    """
    if tensors.keys() != gossip.named_parameters.keys():
        raise InvalidArgument(
            "state: expected tensors of this model's parameters, got also or lack "
            f"{sorted(tensors.keys() ^ gossip.named_parameters.keys())}"
        )
    made = {}
    for name, p in gossip.named_parameters.items():
        tensor = tensors[name]
        if p.shape != tensor.shape:
            raise InvalidArgument(
                f"state of parameter '{name}': expected shape {tuple(p.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if only is None or id(p) in only:
            made[id(p)] = torch.empty_like(p, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
    return made
