"""Which optimizer steps make up one step of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import torch

__all__ = ["AwaitedSteps", "StepNesting"]


class StepNesting:
    """Finds the outermost of nested steps: an optimizer that wraps another steps it inside.

    A step that raised never leaves; the next entry of the same optimizer forgets it and whatever
    it had entered.
    """

    def __init__(self) -> None:
        self._entered: list[int] = []

    def enter(self, key: int) -> bool:
        """True if the step that begins is the outermost."""
        if key in self._entered:
            del self._entered[self._entered.index(key) :]
        self._entered.append(key)
        return len(self._entered) == 1

    def leave(self, key: int) -> bool:
        """True if the step that ended was the outermost."""
        if key not in self._entered:
            return False
        del self._entered[self._entered.index(key) :]
        return not self._entered


class AwaitedSteps:
    """Finds the step after which no other optimizer of the model is to step.

    A parameter with a gradient awaits the step of whoever holds it. If a round has come without
    that step, since no optimizer holds the parameter or its optimizer steps more rarely, it is
    awaited no more until a step has held it again.

    Args:
        parameters: Those of the model that are gossiped.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._parameters = {id(p): p for p in parameters}
        self._stepped: Set[int] = frozenset()
        self._awaited: Set[int] = frozenset()
        self._idle: Set[int] = frozenset()

    def stepped(self, held: Set[int]) -> bool:
        """Takes note of a step; True if no parameter awaits another one.

        Args:
            held: The ids of the parameters that its optimizer holds.
        """
        self._stepped = self._stepped | held if self._stepped else held
        if self._idle:
            self._idle = self._idle - held
        if len(self._stepped) == len(self._parameters):
            self._awaited = frozenset()
            return True
        others = self._parameters.keys() - self._stepped - self._idle
        self._awaited = {i for i in others if self._parameters[i].grad is not None}
        return not self._awaited

    def round_begins(self) -> None:
        """The steps so far belong to a round that is over; those to come belong to another."""
        if self._stepped:
            self._idle = self._idle | self._awaited
            self._stepped = self._awaited = frozenset()

    def state_dict(self) -> dict[str, list[int]]:
        """Where it stands; parameters are told by their positions."""
        places = {key: i for i, key in enumerate(self._parameters)}
        sets = {"stepped": self._stepped, "awaited": self._awaited, "idle": self._idle}
        return {name: sorted(places[key] for key in keys) for name, keys in sets.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[int]]) -> None:
        """Goes on from what `state_dict` gave."""
        keys = list(self._parameters)
        self._stepped = {keys[i] for i in state["stepped"]}
        self._awaited = {keys[i] for i in state["awaited"]}
        self._idle = {keys[i] for i in state["idle"]}
