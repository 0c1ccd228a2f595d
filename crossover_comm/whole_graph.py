"""Notices that a whole model is one compiled graph, where a backward is to hide an exchange."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from crossover_comm.segments import Segment

__all__ = ["WholeGraph", "tensors_in"]


class WholeGraph:
    """Warns once if all gradients come out of one compiled graph, thus at its very end.

    Args:
        segments: Of the model; with one there is nothing to hide.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._has_looked = len(segments) < 2

    def look_at(self, outputs: Any) -> None:
        """Takes what a forward of the whole model returned; only the first that is recorded counts.

        Warns:
            UserWarning: Every segment has parameters among the inputs of one compiled graph.
        """
        if self._has_looked or not torch.is_grad_enabled():
            return
        for tensor in tensors_in(outputs):
            self._has_looked = self._has_looked or tensor.grad_fn is not None
            if self._is_whole(tensor.grad_fn):
                warnings.warn(
                    "the whole model is one compiled graph, whose gradients all come at the end of "
                    "its backward: no exchange hides behind it; to keep the overlap compile the "
                    "model's blocks one by one (block.compile())",
                    stacklevel=3,
                )
                return

    def _is_whole(self, node: Any) -> bool:
        if type(node).__name__ != "CompiledFunctionBackward":
            return False
        inputs = {id(getattr(before, "variable", None)) for before, _ in node.next_functions}
        return all(any(id(p) in inputs for p in s.parameters) for s in self._segments)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a forward's outputs, whatever holds them."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf):
            yield from tensors_in([getattr(leaf, f.name) for f in dataclasses.fields(leaf)])
