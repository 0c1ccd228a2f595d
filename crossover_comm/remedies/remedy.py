"""The points of a training step at which a remedy acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from crossover_comm.gossip import Gossip

__all__ = ["Remedy", "held_by"]


class Remedy:
    """Acts beside a model's rounds. A method that is left out does nothing.

    Right: writing parameters in `step_begins`, `before_step`, `after_step` and `opening`, those of
    the segment in `mixed`; gradients and the optimizer's state in `before_step`.
    Wrong: writing parameters anywhere else, or keeping tensors that `mixed` was given.

    Args:
        gossip: The model's; its plan is in the engine already.
    """

    def __init__(self, gossip: Gossip) -> None:
        self.gossip = gossip

    def step_begins(self, optimizer: Optimizer, *, closure: bool, exchanges: bool) -> None:
        """An outermost step begins; what the round rule asks for at it comes next.

        Args:
            optimizer: It holds gossiped parameters.
            closure: Whether the step will evaluate the model itself.
            exchanges: Whether a round is about to be run or closed.
        """

    def before_step(self, optimizer: Optimizer) -> None:
        """The round rule's part of the step's begin is done; parameters are about to be stepped."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Parameters have been stepped; what the round rule asks for comes next."""

    def opening(self) -> None:
        """Every segment is about to be posted."""

    def opened(self) -> None:
        """Every segment has been posted."""

    def closing(self) -> None:
        """What is left of a round is about to be awaited; nothing may be left."""

    def mixed(self, index: int, tensors: Sequence[torch.Tensor]) -> None:
        """Segment `index` has been mixed into `tensors`: its parameters, or what stands for them
        in a compiled graph."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs; tensors are shared, not copied. No round is open.

        Its keys and shapes are the same before the first step as later, for a checkpoint is read
        into it.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, copying its tensors. No round is open.

        Raises:
            InvalidArgument: It is of another model or another remedy.
        """

    def resumes(self, optimizer: Optimizer | None) -> None:
        """A state has been loaded; training goes on, with `optimizer` if it is known."""


def held_by(optimizer: Optimizer) -> set[int]:
    """The ids of an optimizer's parameters."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
