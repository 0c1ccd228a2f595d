"""Where tensors lie, what autograd counts of writes to them, and what torch 2.4 does otherwise."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import attrgetter

import torch

__all__ = ["addresses_of", "compiled_graphs_count_first", "increment_versions", "versions_of"]

_version_of = attrgetter("_version")


def addresses_of(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Of the first element of each."""
    return list(map(torch.Tensor.data_ptr, tensors))


def versions_of(tensors: Sequence[torch.Tensor]) -> list[int]:
    """How often autograd knows each to have been written."""
    return list(map(_version_of, tensors))


def increment_versions(tensors: Sequence[torch.Tensor]) -> None:
    """Tells autograd of a write that it did not see."""
    if _increment_version_takes_many():
        torch.autograd.graph.increment_version(tensors)
        return
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


@functools.cache
def compiled_graphs_count_first() -> bool:
    """Whether a compiled graph counts its writes before it runs: those of torch 2.4 do not."""
    return not torch.__version__.startswith("2.4.")


@functools.cache
def _increment_version_takes_many() -> bool:
    """torch 2.4 takes one tensor; later ones take any number."""
    try:
        torch.autograd.graph.increment_version([torch.empty(0)])
    except (RuntimeError, TypeError):
        return False
    return True
