"""The round rule: when a round opens and when it closes. Pure; torch is not needed.

What happens in training is told to a rule as events; it answers with what is to be done. Every rank
must count the same rounds, also where one of them skips a step (a GradScaler that found an
overflow), so a round belongs to a *synced backward*, one whose forward ran outside ``no_sync``, and
not to a step that is known to have happened.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

__all__ = [
    "Action",
    "Actions",
    "BackwardRule",
    "EarlyStepRule",
    "EveryNthRound",
    "GradientRule",
    "NoRounds",
    "RoundRule",
    "StepRule",
    "rule_for",
]


class Action(Enum):
    """What a rule asks for."""

    OPEN = auto()
    """Post every segment."""
    CLOSE = auto()
    """Await and mix every segment that is still open."""


Actions = tuple[Action, ...]

NOTHING: Actions = ()
OPEN: Actions = (Action.OPEN,)
CLOSE: Actions = (Action.CLOSE,)
WHOLE_ROUND: Actions = (Action.OPEN, Action.CLOSE)


class RoundRule(Protocol):
    """Events of one model's training, each answered by actions to be done at once, in order."""

    def forward(self, *, grad_enabled: bool, synced: bool, recomputing: bool) -> Actions:
        """A forward of the whole model begins.

        Args:
            grad_enabled: Whether autograd records it; forwards without are ignored.
            synced: Whether it runs outside ``no_sync``.
            recomputing: Whether it runs inside a backward (activation checkpointing). Such a
                forward never mixes: the graph at work was recorded with today's parameters.
        """

    def backward(self, *, synced: bool) -> None:
        """A backward has reached a parameter; further calls within one backward change nothing.

        Args:
            synced: Whether it runs outside ``no_sync``; counts where no forward was seen.
        """

    def step_begin(self, *, closure: bool) -> Actions:
        """The outermost optimizer step begins; ``closure``: it will evaluate the model itself."""

    def step_end(self, *, complete: bool) -> Actions:
        """The outermost optimizer step has ended.

        Args:
            complete: Whether no other optimizer of the model is still to step.
        """

    def synchronize(self) -> Actions:
        """The user asks for a state in which nothing is open and no round is owed."""


class _Posted(Enum):
    NO = auto()
    LOCAL = auto()  # only forwards inside no_sync so far
    SYNCED = auto()  # a forward outside no_sync
    ARMED = auto()  # and a backward after it


class BackwardRule:
    """Mode ``"backward"``: open when a forward begins, close before the step.

    A round opens at the first recorded forward after the last one closed, also inside ``no_sync``.
    It is armed by a backward whose forward ran outside. It closes at the earliest of a step, the
    next recorded forward once armed, and ``synchronize``. So several forwards before a backward are
    one round, a second backward of the same graph is none, and several synced backwards before a
    step are one round each, as DDP all-reduces each.

    ``synchronize`` before the backward mixes the round early; it counts all the same until a step
    or an armed backward ends it, so that a rank that evaluates with gradients on and synchronises
    alone counts its rounds as the others do.

    A step with a closure evaluates the model while it writes to it; the round is then run as a
    whole before the step, and forwards inside the step open nothing.
    """

    def __init__(self) -> None:
        self._posted = _Posted.NO
        self._mixed_early = False
        self._in_closure = False

    def forward(self, *, grad_enabled: bool, synced: bool, recomputing: bool) -> Actions:
        if not grad_enabled or self._in_closure:
            return NOTHING
        actions = NOTHING
        if self._posted is _Posted.ARMED and not recomputing:
            actions = self._end()
        if self._posted is _Posted.NO:
            self._posted = _Posted.SYNCED if synced else _Posted.LOCAL
            return actions + OPEN
        if self._posted is _Posted.LOCAL and synced and not recomputing:
            self._posted = _Posted.SYNCED
        return actions

    def backward(self, *, synced: bool) -> None:
        del synced
        if self._posted is _Posted.SYNCED:
            self._posted = _Posted.ARMED

    def step_begin(self, *, closure: bool) -> Actions:
        self._in_closure = closure
        if closure and self._posted is _Posted.NO:
            return WHOLE_ROUND
        return self._end()

    def step_end(self, *, complete: bool) -> Actions:
        self._in_closure = False
        return NOTHING

    def synchronize(self) -> Actions:
        if self._posted is _Posted.ARMED:
            return self._end()
        if self._posted is _Posted.NO or self._mixed_early:
            return NOTHING
        self._mixed_early = True
        return CLOSE

    def _end(self) -> Actions:
        closed = self._posted is _Posted.NO or self._mixed_early
        self._posted = _Posted.NO
        self._mixed_early = False
        return NOTHING if closed else CLOSE


class _Backwards(Enum):
    NONE = auto()
    LOCAL = auto()  # all of them inside no_sync
    SYNCED = auto()


class StepRule:
    """Modes ``"forward"`` and ``"none"``: a round runs after the step.

    A round is owed after a synced backward. It runs at the end of the next step that is complete,
    that of the last of the model's optimizers; where none comes (GradScaler skipped it), at the
    next recorded forward or ``synchronize``. A step whose
    forwards were seen but whose gradients did not come from a backward (``autograd.grad``) runs
    one too. A step always closes an open round before it writes.

    Args:
        close_at_once: Mode ``"none"``: a round closes where it opens. Otherwise each segment is
            awaited by the forward that needs it, and the rule closes what is left.
    """

    def __init__(self, *, close_at_once: bool) -> None:
        self._round = WHOLE_ROUND if close_at_once else OPEN
        self._open = False
        self._in_closure = False
        self._backwards = _Backwards.NONE
        self._seen_forward = False
        self._synced_forward = False

    @property
    def is_owed(self) -> bool:
        """Whether the backward at hand is synced, so that a round belongs to it."""
        return self._backwards is _Backwards.SYNCED

    def forward(self, *, grad_enabled: bool, synced: bool, recomputing: bool) -> Actions:
        if not grad_enabled or recomputing:
            return NOTHING
        skipped = self._backwards is _Backwards.SYNCED and not self._in_closure
        actions = self._close() + self._run() if skipped else NOTHING
        self._seen_forward = True
        self._synced_forward = self._synced_forward or synced
        return actions

    def backward(self, *, synced: bool) -> None:
        if self._synced_forward or (synced and not self._seen_forward):
            self._backwards = _Backwards.SYNCED
        elif self._backwards is _Backwards.NONE:
            self._backwards = _Backwards.LOCAL

    def step_begin(self, *, closure: bool) -> Actions:
        self._in_closure = closure
        return self._close()

    def step_end(self, *, complete: bool) -> Actions:
        self._in_closure = False
        return self._run_if_owed() if complete else NOTHING

    def synchronize(self) -> Actions:
        actions = self._close()
        if self._backwards is _Backwards.SYNCED and not self._in_closure:
            actions += self._run() + self._close()
        return actions

    def _run_if_owed(self) -> Actions:
        without_backward = self._backwards is _Backwards.NONE and self._synced_forward
        owed = self._backwards is _Backwards.SYNCED or without_backward
        return self._run() if owed else NOTHING

    def _run(self) -> Actions:
        self._forget()
        self._open = self._round == OPEN
        return self._round

    def _close(self) -> Actions:
        actions = CLOSE if self._open else NOTHING
        self._open = False
        return actions

    def _forget(self) -> None:
        self._backwards = _Backwards.NONE
        self._seen_forward = False
        self._synced_forward = False


class EarlyStepRule(StepRule):
    """As mode ``"none"``, but the round of a step runs at its begin: the step uses its outcome."""

    def __init__(self) -> None:
        super().__init__(close_at_once=True)

    def step_begin(self, *, closure: bool) -> Actions:
        self._in_closure = closure
        return self._run_if_owed()

    def step_end(self, *, complete: bool) -> Actions:
        self._in_closure = False
        return NOTHING


class EveryNthRound:
    """Lets every n-th round of a rule happen: the n-th, the 2n-th, and so on; counts them all."""

    def __init__(self, rule: RoundRule, n: int) -> None:
        self._rule = rule
        self._n = n
        self._num_rounds = 0

    def forward(self, *, grad_enabled: bool, synced: bool, recomputing: bool) -> Actions:
        return self._filter(
            self._rule.forward(grad_enabled=grad_enabled, synced=synced, recomputing=recomputing)
        )

    @property
    def num_rounds(self) -> int:
        return self._num_rounds

    @property
    def every(self) -> RoundRule:
        """The rule whose rounds these are."""
        return self._rule

    def backward(self, *, synced: bool) -> None:
        self._rule.backward(synced=synced)

    def step_begin(self, *, closure: bool) -> Actions:
        return self._filter(self._rule.step_begin(closure=closure))

    def step_end(self, *, complete: bool) -> Actions:
        return self._filter(self._rule.step_end(complete=complete))

    def synchronize(self) -> Actions:
        return self._filter(self._rule.synchronize())

    def _filter(self, actions: Actions) -> Actions:
        passed = []
        for action in actions:
            self._num_rounds += action is Action.OPEN
            if self._num_rounds % self._n == 0:
                passed.append(action)
        return tuple(passed)


class NoRounds:
    """Nothing is gossiped: all ranks are one group."""

    num_rounds = 0

    def forward(self, *, grad_enabled: bool, synced: bool, recomputing: bool) -> Actions:
        return NOTHING

    def backward(self, *, synced: bool) -> None:
        return None

    def step_begin(self, *, closure: bool) -> Actions:
        return NOTHING

    def step_end(self, *, complete: bool) -> Actions:
        return NOTHING

    def synchronize(self) -> Actions:
        return NOTHING


def rule_for(
    overlap: str, *, gossips: bool, early: bool, interval: int
) -> EveryNthRound | NoRounds:
    """The rule of a mode.

    Args:
        overlap: The mode.
        gossips: Whether there is anybody to gossip with.
        early: Whether the step uses the outcome of its own round.
        interval: Every so many rounds one happens.
    """
    if not gossips:
        return NoRounds()
    rule: RoundRule
    if early:
        rule = EarlyStepRule()
    elif overlap == "backward":
        rule = BackwardRule()
    else:
        rule = StepRule(close_at_once=overlap == "none")
    return EveryNthRound(rule, interval)


class GradientRule:
    """Which backwards have their gradients averaged: as with torch's DDP, the next one after a
    recorded forward outside ``no_sync``.

    So several forwards before a backward are one average, a second backward of the same graph is
    none, and several synced backwards before a step are one each. A step after which nothing was
    averaged though it was expected (no gradient hook ran, ``autograd.grad``) averages first.
    """

    def __init__(self) -> None:
        self._expected = False
        self._seen_forward = False
        self._averaged = False

    @property
    def is_expected(self) -> bool:
        """Whether the next backward is averaged."""
        return self._expected

    def forward(self, *, grad_enabled: bool, synced: bool, recomputing: bool) -> None:
        """As :meth:`RoundRule.forward`."""
        if not grad_enabled or (recomputing and self._seen_forward):
            return
        self._seen_forward = not recomputing
        self._expected = self._expected or synced

    def backward(self, *, synced: bool) -> bool:
        """Whether the gradients of the backward that has begun are averaged.

        Args:
            synced: Whether it runs outside ``no_sync``; counts where no forward was seen.
        """
        if not self._seen_forward:
            self._expected = synced
        return self._expected

    def averaged(self) -> None:
        """The gradients of a backward have been averaged."""
        self._expected = False
        self._averaged = True

    def step_begin(self) -> bool:
        """Whether gradients are to be averaged before the outermost step that begins."""
        owed = self._expected and not self._averaged
        self._averaged = False
        self._seen_forward = False
        return owed
