"""What a distributed step does between processes, against the same training by a dense matrix.

The processes of one size run all trainings of dense_cases.py in sequence, over each transport.
"""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from dense_cases import Case, Run, cases_of, dense_states, load_runs, run_cases, train
from ranks import assert_states_close, joined_ranks, run_joined
from spawn import run_ranks

import crossover_comm as cc
from crossover_comm import _C
from crossover_comm.segments import cut, trainable_parameters

SIZES = (2, 3, 4, 5, 8)
TRANSPORTS = ("shm", "tcp")
BF16_STEP = 2.0**-8
INT8_STEP = 1 / 127  # of the largest magnitude


@pytest.fixture(scope="module", params=SIZES)
def runs_over(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Run]]:
    """By transport, rank and case, what the processes came to."""
    size: int = request.param
    folder = tmp_path_factory.mktemp(f"size{size}")
    run_ranks(run_cases, size, str(folder), *TRANSPORTS)
    return {transport: load_runs(folder, transport, size) for transport in TRANSPORTS}


def tolerance(case: Case, wanted: dict[str, torch.Tensor]) -> float:
    """How far a parameter may be from the reference.

    With one peer of weight 1/2 each mix rounds once, like the reference, so that both send the same
    bits. Sums over several peers differ by fp32 rounding, which may turn into one step of the wire.
    """
    if case.config.wire == "fp32" or case.is_permutation:
        return 2e-6
    step = INT8_STEP if case.config.wire == "int8" else BF16_STEP
    return 2 * step * max(float(value.abs().max()) for value in wanted.values())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_processes_train_as_the_dense_reference(
    runs_over: dict[str, list[Run]], transport: str
) -> None:
    runs = runs_over[transport]
    size = len(runs)
    for case in cases_of(size):
        for rank, wanted in enumerate(dense_states(case, size)):
            state = runs[rank][case.name]["state"]
            try:
                assert_states_close(state, wanted, atol=tolerance(case, wanted))
            except AssertionError as error:
                raise AssertionError(f"{case.name}, rank {rank} of {size}: {error}") from None


def assert_same_bits(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, value in wanted.items():
        assert torch.equal(given[name], value), name


def test_transports_come_to_the_same_bits(runs_over: dict[str, list[Run]]) -> None:
    """Messages arrive in other orders and in other pieces."""
    for over_shm, over_tcp in zip(runs_over["shm"], runs_over["tcp"], strict=True):
        for name, run in over_shm.items():
            assert_same_bits(over_tcp[name]["state"], run["state"])


def test_threads_come_to_the_same_bits_as_processes_whatever_the_delays(
    runs_over: dict[str, list[Run]],
) -> None:
    runs = runs_over["shm"]
    size = len(runs)
    network = _C.LocalNetwork(size, seed=size, delay_probability=0.3)
    with joined_ranks(size, network=network) as contexts:
        for case in cases_of(size)[::4]:
            states = run_joined(contexts, functools.partial(train, case, case.replicas(size)))
            for rank, state in enumerate(states):
                assert_same_bits(state, runs[rank][case.name]["state"])


def test_the_references_of_unlike_trainings_are_far_apart() -> None:
    """Else the comparison would show nothing."""
    cases = [
        Case("", cc.GossipConfig(overlap="none")),
        Case("", cc.GossipConfig(overlap="backward")),
        Case("", cc.GossipConfig(overlap="none", seed=1)),
        Case("", cc.GossipConfig(overlap="none", topology="ring")),
        Case("", cc.GossipConfig(overlap="none", segments=100)),
        Case("", cc.GossipConfig(overlap="none"), "adamw"),
    ]
    weights = [torch.stack([state["0.weight"] for state in dense_states(c, 4)]) for c in cases]
    for ours, theirs in itertools.combinations(weights, 2):
        assert float((ours - theirs).abs().max()) > 1e-2


def wire_bytes(wire: str, numel: int) -> int:
    """Of one message."""
    if wire == "int8":
        return numel + 4 * math.ceil(numel / 128)
    return numel * (4 if wire == "fp32" else 2)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_permutation_moves_one_model_and_one_message_a_segment_each_round(
    runs_over: dict[str, list[Run]], transport: str
) -> None:
    runs = runs_over[transport]
    size = len(runs)
    for case in filter(lambda case: case.is_permutation, cases_of(size)):
        model = case.replicas(size)[0]
        segments = cut(model, trainable_parameters(model), case.config.segments)
        numels = [sum(p.numel() for p in segment.parameters) for segment in segments]
        model_bytes = sum(wire_bytes(case.config.wire, numel) for numel in numels)
        for rank in range(size):
            counted = runs[rank][case.name]["counters"]
            for way in ("sent", "received"):
                assert counted[f"messages_{way}"] == case.num_steps * len(segments), case.name
                assert counted[f"payload_{way}_bytes"] == case.num_steps * model_bytes, case.name
