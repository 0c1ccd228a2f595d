"""A rank stops, or lives but does not come: deadlines, warnings, and what waiting costs."""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from failing import (
    PLACE,
    Training,
    await_signal,
    block_signal,
    heard_from,
    holdings_of,
    init_together,
    progress_threads,
    report_holdings_at_exit,
)
from spawn import RankResult, start_ranks

import crossover_comm as cc

SIZE = 3
EVERYBODY = cc.GossipConfig(topology="complete", segments=200)
"""Every rank waits for rank 0 itself, in the same round."""


def train_for_ever(transport: str, timeout_s: str) -> None:
    report_holdings_at_exit()
    init_together(transport=transport, timeout=float(timeout_s))
    Training().run_for_ever()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_stopped_rank_is_lost_by_the_liveness_deadline(transport: str) -> None:
    with start_ranks(train_for_ever, SIZE, transport, "3") as ranks:
        for rank in range(SIZE):
            ranks.wait_for_line(rank, "training")
        ranks.send_signal(1, signal.SIGSTOP)
        survivors = [ranks.wait_for(rank) for rank in (0, 2)]
        ranks.send_signal(1, signal.SIGCONT)
        resumed = ranks.wait_for(1)
    message = re.compile(
        f"TransportError: {PLACE}{heard_from(SIZE)}"
        r"rank 1: no sign of life for \d+\.?\d* s \(timeout 3 s\)"
    )
    for result in survivors:
        assert message.search(result.stderr), result.stderr
        assert result.exit_code == 1
        assert result.left_processes == ()
        assert not holdings_of(result).keys() & {"thread python", "[pidfd]", "mapped memfd"}
    assert resumed.exit_code == 1
    assert re.search(f"TransportError: {PLACE}rank [02]", resumed.stderr), resumed.stderr


class WarningsPrinted(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print("warning:", record.getMessage(), flush=True)


class Meter:
    """Beside a blocked training thread: how long the progress thread runs, how often this one."""

    SECONDS = 3.0

    def __init__(self) -> None:
        (self._tid,) = progress_threads()
        self._thread = threading.Thread(target=self._measure)
        self.may_begin = threading.Event()
        self._thread.start()

    def _measure(self) -> None:
        self.may_begin.wait()
        began_s, cpu_began_s = time.monotonic(), self._cpu_s()
        num_turns = 0
        while time.monotonic() < began_s + self.SECONDS:
            sum(range(1000))
            num_turns += 1
        share = (self._cpu_s() - cpu_began_s) / (time.monotonic() - began_s)
        print("meter", json.dumps({"share": share, "num_turns": num_turns}), flush=True)

    def _cpu_s(self) -> float:
        # The kernel's id of a thread's processor clock, as pthread_getcpuclockid makes it.
        return time.clock_gettime((~self._tid << 3) | 6)


def wait_for_a_busy_rank() -> None:
    block_signal()
    init_together(stall_warning=2.0, stall_timeout=8.0)
    handler = WarningsPrinted()
    logging.getLogger("crossover_comm").addHandler(handler)
    training = Training(EVERYBODY)
    training.run(5)
    if cc.rank() == 0:
        await_signal()
    training.run(20)
    print("trained on", flush=True)
    logging.getLogger("crossover_comm").removeHandler(handler)
    if cc.rank() == 0:
        await_signal()
    else:
        meter = Meter()
        meter.may_begin.set()
    training.step()


@pytest.fixture(scope="module")
def waited() -> list[RankResult]:
    """Rank 0 is busy until both others have warned, then for good."""
    with start_ranks(wait_for_a_busy_rank, SIZE) as ranks:
        for rank in (1, 2):
            ranks.wait_for_line(rank, "warning:")
        ranks.send_signal(0, signal.SIGUSR1)
        for rank in range(SIZE):
            ranks.wait_for_line(rank, "trained on")
        others = [ranks.wait_for(rank) for rank in (1, 2)]
        ranks.send_signal(0, signal.SIGUSR1)
        return [ranks.wait_for(0), *others]


def test_a_long_wait_for_a_rank_that_lives_is_one_warning_and_training_goes_on(
    waited: list[RankResult],
) -> None:
    assert "warning:" not in waited[0].stdout
    for result in waited[1:]:
        (warning,) = [line for line in result.stdout.splitlines() if "warning:" in line]
        assert re.fullmatch(
            f"warning: {PLACE}has waited 2.* s for rank 0: alive, but not yet in this round; "
            "error after 8 s",
            warning,
        )
        assert "trained on" in result.stdout


def test_the_stall_deadline_names_the_rank_that_did_not_come(waited: list[RankResult]) -> None:
    cause = (
        r"rank [12] waited 8\.?\d* s for rank 0: alive, but not yet in this round \(stall_timeout\)"
    )
    for result in waited:
        assert re.search(f"{PLACE}{heard_from(SIZE)}{cause}", result.stderr), result.stderr
        assert result.exit_code == 1
    assert any("ProgressTimeout: plan 0" in result.stderr for result in waited[1:])


def meter_of(result: RankResult) -> dict[str, Any]:
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("meter ")]
    read: dict[str, Any] = json.loads(line.removeprefix("meter "))
    return read


def test_a_stalled_wait_costs_the_progress_thread_next_to_nothing(
    waited: list[RankResult],
) -> None:
    for result in waited[1:]:
        assert meter_of(result)["share"] < 0.01


def test_other_python_threads_run_while_a_wait_is_stalled(waited: list[RankResult]) -> None:
    for result in waited[1:]:
        assert meter_of(result)["num_turns"] > 1000


def wait_until_interrupted() -> None:
    block_signal()
    init_together(stall_warning=0.5)
    training = Training(EVERYBODY)
    if cc.rank() == 0:
        await_signal()
    training.step()


def elapsed_s(call: Callable[[], RankResult]) -> tuple[RankResult, float]:
    began_s = time.monotonic()
    return call(), time.monotonic() - began_s


def test_an_interrupt_ends_a_stalled_wait_at_once() -> None:
    with start_ranks(wait_until_interrupted, 2) as ranks:
        ranks.wait_for_line(1, "alive, but not yet in this round", stream="stderr")
        ranks.send_signal(1, signal.SIGINT)
        interrupted, took_s = elapsed_s(lambda: ranks.wait_for(1))
        ranks.send_signal(0, signal.SIGUSR1)
        other = ranks.wait_for(0)
    assert interrupted.exit_code == -signal.SIGINT
    assert interrupted.stderr.rstrip().endswith("KeyboardInterrupt")
    assert took_s < 10
    assert re.search(
        "TransportError: .*rank 1 stopped; first cause, seen by rank 1: rank 1: KeyboardInterrupt$",
        other.stderr,
        re.MULTILINE,
    )
