"""What a training loop does, told to a round rule at next to no cost where it repeats."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from crossover_comm.rounds import Actions, EveryNthRound, NoRounds

__all__ = ["LoopEvents", "in_backward"]


def in_backward() -> bool:
    """Whether this thread is running a backward: a forward that begins then is a recomputation."""
    return torch._C._current_graph_task_id() != -1


class LoopEvents:
    """Passes events on to a rule, and answers with its actions.

    A model has hundreds of gradients, so their hook runs no Python: `gradient_hook` leaves a mark,
    and the rule is told of the backward before whatever event comes next.

    Args:
        rule: Told of everything in the order in which it happened.

    Attributes:
        gradient_hook: To be called when a gradient has been accumulated, from any thread.
    """

    def __init__(self, rule: EveryNthRound | NoRounds) -> None:
        self._rule = rule
        self._synced = True
        self._in_forward = False
        self._reached: deque[torch.Tensor] = deque(maxlen=1)
        self.gradient_hook: Callable[[torch.Tensor], None] = self._reached.append

    @property
    def synced(self) -> bool:
        """Whether forwards now, and their backwards, count for a round."""
        return self._synced

    @synced.setter
    def synced(self, synced: bool) -> None:
        self.catch_up()
        self._synced = synced

    @property
    def in_known_forward(self) -> bool:
        """Whether the last event was a recorded forward, told as things are now."""
        return self._in_forward and not self._reached

    @property
    def num_rounds(self) -> int:
        """Rounds opened so far, those that `interval` leaves out too."""
        return self._rule.num_rounds

    def forward(self, *, grad_enabled: bool, recomputing: bool) -> Actions:
        """As :meth:`RoundRule.forward`."""
        self.catch_up()
        self._in_forward = grad_enabled and not recomputing
        return self._rule.forward(
            grad_enabled=grad_enabled, synced=self._synced, recomputing=recomputing
        )

    def backward(self) -> None:
        """A backward has reached a parameter: `gradient_hook` for those that need the rule then."""
        self._in_forward = False
        self._rule.backward(synced=self._synced)

    def step_begin(self, *, closure: bool) -> Actions:
        """As :meth:`RoundRule.step_begin`."""
        self.catch_up()
        return self._rule.step_begin(closure=closure)

    def step_end(self, *, complete: bool) -> Actions:
        """As :meth:`RoundRule.step_end`."""
        self.catch_up()
        return self._rule.step_end(complete=complete)

    def synchronize(self) -> Actions:
        """As :meth:`RoundRule.synchronize`."""
        self.catch_up()
        return self._rule.synchronize()

    def catch_up(self) -> None:
        """Tells of a backward that nothing has followed yet."""
        self._in_forward = False
        if self._reached:
            self._reached.clear()
            self._rule.backward(synced=self._synced)
