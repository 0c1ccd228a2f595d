"""torch's global optimizer hooks: who steps, when, and which parameters are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from crossover_comm.partial_step import without

__all__ = ["StepHooks"]


class _Listener(Protocol):
    def step_begins(self, optimizer: Optimizer, *, closure: bool) -> set[int]: ...

    def step_ends(self, optimizer: Optimizer) -> None: ...


class StepHooks:
    """Tells of every step of every torch optimizer, while it is registered.

    Parameters that a listener has stepped already are kept from the step, not from other hooks,
    which see the optimizer as it is.

    Args:
        listeners: Those to be told, asked for at each step.
    """

    def __init__(self, listeners: Callable[[], Iterable[_Listener]]) -> None:
        self._listeners = listeners
        self._handles: list[RemovableHandle] = []

    def register(self) -> None:
        """Begins."""
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Ends."""
        for handle in self._handles:
            handle.remove()

    def _before_step(
        self, optimizer: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        stepped: set[int] = set()
        for listener in self._listeners():
            stepped |= listener.step_begins(optimizer, closure=closure is not None)
        return ((without(optimizer, stepped), *args[1:]), kwargs) if stepped else None

    def _after_step(
        self, optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        for listener in self._listeners():
            listener.step_ends(optimizer)
