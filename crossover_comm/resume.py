"""Where the gossip of one model stands, so that another run of the job goes on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch.optim import Optimizer

from crossover_comm.agreement import canonical_json, describe_difference
from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip
from crossover_comm.gradients import GradientAverager
from crossover_comm.remedies import Remedy
from crossover_comm.rounds import RoundRule
from crossover_comm.rule_state import load_rule_state, rule_state
from crossover_comm.stepping import AwaitedSteps

__all__ = ["TrainingState", "lone_state", "require_lone_state"]

_FORMAT: Final = 1
_OTHER_SIZE: Final = (
    "to go on with another number of ranks start from the averaged model, saved inside "
    "`with averaged(model)`, and load no gossip state"
)


class TrainingState:
    """Exports and imports everything beside parameters and the optimizer's state that the next
    steps depend on.

    What it exports is numbers, strings, tensors, and dicts and lists of these; which keys there are
    depends on the model and the configuration alone, so that a checkpoint can be read into it.

    Args:
        gossip: The model's.
        gradients: What averages its gradients; None without groups.
        rule: Its rounds'.
        awaited: Its optimizers'.
        remedies: In their order.
    """

    def __init__(
        self,
        gossip: Gossip,
        gradients: GradientAverager | None,
        rule: RoundRule,
        awaited: AwaitedSteps,
        remedies: Sequence[Remedy],
    ) -> None:
        self._gossip = gossip
        self._rank = gossip.context.members[gossip.context.launch.rank]  # in the whole job
        self._gradients = gradients
        self._rule = rule
        self._awaited = awaited
        self._remedies = {type(remedy).__name__: remedy for remedy in remedies}

    def state_dict(self) -> dict[str, Any]:
        """The state. No round is open; tensors are shared with training, not copied."""
        state: dict[str, Any] = {
            "format": _FORMAT,
            "rank": self._rank,
            "fingerprint": canonical_json(self._gossip.fingerprint),
            "gossip": self._gossip.state_dict(),
            "rule": rule_state(self._rule),
            "steps": self._awaited.state_dict(),
            "remedies": {name: r.state_dict() for name, r in self._remedies.items()},
        }
        if self._gradients is not None:
            state["gradients"] = self._gradients.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any], optimizer: Optimizer | None) -> None:
        """Takes up what `state_dict` gave. A collective call; an open round is dropped.

        Args:
            state: The state of this rank.
            optimizer: The one that steps the model, its own state loaded already.

        Raises:
            InvalidArgument: The state is of another rank, model or configuration, or the ranks were
                given states of unlike rounds.
        """
        context = self._gossip.context
        _require_format(state)
        rounds = {name: state[name]["round"] for name in ("gossip", "gradients") if name in state}
        given = {"state of": json.loads(state["fingerprint"]), "rounds": rounds}
        context.agree("load_gossip_state_dict", canonical_json(given))
        _require_same(state["fingerprint"], self._gossip.fingerprint)
        if state["rank"] != self._rank:
            raise InvalidArgument(
                f"gossip state: expected that of rank {self._rank}, got that of rank "
                f"{state['rank']}"
            )
        self._gossip.load_state_dict(state["gossip"])
        if self._gradients is not None:
            self._gradients.load_state_dict(state["gradients"])
        load_rule_state(self._rule, state["rule"])
        self._awaited.load_state_dict(state["steps"])
        for name, remedy in self._remedies.items():
            remedy.load_state_dict(state["remedies"][name])
            remedy.resumes(optimizer)


def lone_state() -> dict[str, Any]:
    """The state of a job of one rank."""
    return {"format": _FORMAT, "rank": 0, "fingerprint": canonical_json({"size": 1})}


def require_lone_state(state: Mapping[str, Any]) -> None:
    """Raises InvalidArgument unless this is the state of a job of one rank."""
    _require_format(state)
    _require_same(state["fingerprint"], {"size": 1})


def _require_format(state: Mapping[str, Any]) -> None:
    found = state.get("format")
    if found != _FORMAT:
        raise InvalidArgument(
            f"gossip state: expected what gossip_state_dict() gave, in format {_FORMAT}, got "
            + (f"format {found}" if found is not None else f"a dict with the keys {sorted(state)}")
        )


def _require_same(text: str, wanted: Mapping[str, Any]) -> None:
    given, own = json.loads(text), json.loads(canonical_json(wanted))
    if given == own:
        return
    if given["size"] != own["size"]:
        raise InvalidArgument(
            f"gossip state: expected that of a job of size {own['size']}, got that of size "
            f"{given['size']}; {_OTHER_SIZE}"
        )
    lines = describe_difference(given, own, reference_name="the state", other_name="this job")
    raise InvalidArgument(
        "gossip state: expected that of the same model and configuration:\n  " + "\n  ".join(lines)
    )
