"""A collective that some ranks do not call: an error that says so, never a hang."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import torch
from failing import Training, init_together, message_of, said_by
from spawn import run_ranks
from torch import nn

import crossover_comm as cc

SIZE = 3
CALLS: dict[str, Callable[[nn.Module], object]] = {
    "barrier": lambda model: cc.barrier(timeout=1),
    "allreduce": lambda model: cc.allreduce(torch.ones(2), timeout=1),
    "broadcast_parameters": lambda model: cc.broadcast_parameters(model, timeout=1),
    "broadcast_optimizer_state": lambda model: cc.broadcast_optimizer_state(
        torch.optim.SGD(model.parameters(), lr=0.1), timeout=1
    ),
    "consensus_distance": lambda model: cc.consensus_distance(model, timeout=1),
    "averaged": lambda model: cc.averaged(model, timeout=1).__enter__(),
}


def call_alone_in_turn() -> None:
    """Each rank in its turn: rank 1 at once, the others when it has given up."""
    store = init_together()
    model = nn.Linear(3, 3)
    said: dict[str, str] = {}
    for name, call in CALLS.items():
        if cc.rank() != 1:
            store.wait([f"given up/{name}"])
        said[name] = message_of(call, model)
        if cc.rank() == 1:
            store.set(f"given up/{name}", "")
    said["mixed"] = (
        message_of(cc.barrier) if cc.rank() == 1 else message_of(cc.allreduce, model.weight)
    )
    assert cc.allreduce(torch.ones(1), average=False).item() == SIZE
    Training().run(3)
    print("said", json.dumps(said), flush=True)


@pytest.fixture(scope="module")
def said() -> list[dict[str, str]]:
    """What each rank said to each call; all of them trained together in the end."""
    return [said_by(result) for result in run_ranks(call_alone_in_turn, SIZE)]


@pytest.mark.parametrize("name", CALLS)
def test_a_collective_of_one_rank_says_who_did_not_call_it(
    name: str, said: list[dict[str, str]]
) -> None:
    assert re.fullmatch(
        rf"ProgressTimeout: {name} \(collective \d+\): ranks \[0, 2\] did not call it within 1 s "
        "of rank 1",
        said[1][name],
    )
    for late in (said[0], said[2]):
        assert re.match(
            rf"ProgressTimeout: {name} \(collective \d+\): ranks \[[02]\] did not call it "
            "within 1 s of rank 1",
            late[name],
        )


def test_different_collectives_at_once_are_named(said: list[dict[str, str]]) -> None:
    for messages in said:
        assert re.match(
            r"InvalidArgument: collective \d+: ranks \[0, 2\] called allreduce; rank 1 called "
            "barrier; every rank must make the same calls",
            messages["mixed"],
        )


def call_alone_while_the_others_train() -> None:
    init_together(timeout=3)
    training = Training()
    training.run(4)
    if cc.rank() == 1:
        cc.consensus_distance(training.model)
    training.run_for_ever()


def test_a_collective_called_amid_training_ends_the_job_with_its_message() -> None:
    results = run_ranks(call_alone_while_the_others_train, SIZE, check=False)
    cause = r"consensus_distance \(collective \d+\): ranks \[0, 2\] did not call it within 3 s"
    assert re.search(f"ProgressTimeout: {cause} of rank 1", results[1].stderr), results[1].stderr
    for result in (results[0], results[2]):
        assert result.exit_code == 1
        assert re.search(
            f"TransportError: .*seen by rank 1: rank 1: ProgressTimeout: {cause}", result.stderr
        ), result.stderr
