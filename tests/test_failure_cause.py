"""One rank fails by itself: the others name it, and why."""

from __future__ import annotations

import re

import torch
from failing import PLACE, Training, heard_from, init_together
from spawn import run_ranks

import crossover_comm as cc

SIZE = 3
TOLD = f"TransportError: {PLACE}rank [0-2] stopped; first cause, seen by rank 1: "


def raise_in_mid_training() -> None:
    init_together()
    training = Training()
    training.run(4)
    if cc.rank() == 1:
        raise LookupError("batch 17 is gone")
    training.run_for_ever()


def test_an_uncaught_exception_is_the_first_cause_on_the_others() -> None:
    results = run_ranks(raise_in_mid_training, SIZE, check=False)
    assert [result.exit_code for result in results] == [1, 1, 1]
    assert results[1].stderr.rstrip().endswith("LookupError: batch 17 is gone")
    for result in (results[0], results[2]):
        assert re.search(f"{TOLD}rank 1: LookupError: batch 17 is gone", result.stderr), (
            result.stderr
        )


def spoil_a_parameter() -> None:
    init_together()
    training = Training()
    try:
        training.run(4)
        if cc.rank() == 1:
            with torch.no_grad():
                training.weights[2][3, 5] = float("nan")
        training.run_for_ever()
    finally:
        print("finite:", all(bool(p.isfinite().all()) for p in training.weights), flush=True)


def test_a_nan_is_named_where_it_is_and_never_spreads() -> None:
    results = run_ranks(spoil_a_parameter, SIZE, check=False)
    assert [result.exit_code for result in results] == [1, 1, 1]
    cause = (
        r"rank 1: segment 2 '2\.weight': parameter '2\.weight' holds 1 non-finite value "
        r"\(NaN or infinity\)"
    )
    assert re.search(f"NonFiniteError: {PLACE}{cause}", results[1].stderr), results[1].stderr
    for result in (results[0], results[2]):
        assert re.search(f"{TOLD}{cause}", result.stderr), result.stderr
        assert "finite: True" in result.stdout


def leave_early() -> None:
    init_together()
    training = Training()
    training.run(4)
    if cc.rank() != 1:
        training.run_for_ever()


def test_a_rank_that_leaves_too_early_is_named() -> None:
    results = run_ranks(leave_early, SIZE, check=False)
    assert [result.exit_code for result in results] == [1, 0, 1]
    for result in (results[0], results[2]):
        cause = "rank 1 has shut down, but rank [02] still exchanges with it"
        assert re.search(f"TransportError: {PLACE}{heard_from(SIZE)}{cause}", result.stderr), (
            result.stderr
        )
