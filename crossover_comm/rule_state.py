"""Where a rule of crossover_comm.rounds stands, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["load_rule_state", "rule_state"]


def rule_state(rule: object) -> dict[str, Any]:
    """Where a rule stands: its flags, counts and stages, and the rule inside it, by name."""
    state: dict[str, Any] = {}
    for name, value in vars(rule).items():
        if isinstance(value, Enum):
            state[name] = value.name
        elif isinstance(value, int):  # bool included
            state[name] = value
        elif hasattr(value, "step_begin"):
            state[name] = rule_state(value)
    return state


def load_rule_state(rule: object, state: Mapping[str, Any]) -> None:
    """Makes a rule stand where `rule_state` of one of its kind was taken."""
    for name, value in state.items():
        current = getattr(rule, name)
        if isinstance(current, Enum):
            setattr(rule, name, type(current)[value])
        elif isinstance(value, Mapping):
            load_rule_state(current, value)
        else:
            setattr(rule, name, value)
