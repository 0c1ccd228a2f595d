"""A parameter is gossiped by one holder: who may gossip it, and who gives it up."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import nn

from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip

__all__ = ["claim"]


class _Holder(Protocol):
    gossip: Gossip
    is_wrapper: bool

    def end(self) -> None: ...


def claim(
    parameters: Mapping[str, nn.Parameter], holders: Iterable[_Holder], *, takes_over: bool
) -> None:
    """Returns once nobody gossips these parameters.

    Args:
        parameters: By name.
        holders: All who gossip; asked for anew each time.
        takes_over: A wrapper that gossips exactly these gives them up.

    Raises:
        InvalidArgument: Somebody gossips one of them, and goes on.
    """
    if _already_gossiped(parameters, holders) is not None:
        gc.collect()  # whoever gossips it may be garbage that holds itself
    wanted = {id(p) for p in parameters.values()}
    for holder in holders if takes_over else ():
        if holder.is_wrapper and _ids(holder.gossip.parameters) == wanted:
            holder.end()
    name = _already_gossiped(parameters, holders)
    if name is not None:
        raise InvalidArgument(
            f"parameter '{name}': expected one that is not gossiped yet, got one that another "
            "DistributedDataParallel or DistributedOptimizer gossips; drop that first (del)"
        )


def _already_gossiped(
    parameters: Mapping[str, nn.Parameter], holders: Iterable[_Holder]
) -> str | None:
    """The name of the first that is gossiped."""
    taken = {key for holder in holders for key in _ids(holder.gossip.parameters)}
    return next((name for name, p in parameters.items() if id(p) in taken), None)


def _ids(parameters: Iterable[torch.Tensor]) -> set[int]:
    return {id(p) for p in parameters}
