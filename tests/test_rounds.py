"""The round rule: which events open and close rounds, and that every rank counts the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from crossover_comm.rounds import Action, Actions, BackwardRule, RoundRule, StepRule

OPEN, CLOSE = Action.OPEN, Action.CLOSE

RULES: dict[str, Callable[[], RoundRule]] = {
    "backward": BackwardRule,
    "forward": lambda: StepRule(close_at_once=False),
    "none": lambda: StepRule(close_at_once=True),
}


class Loop:
    """A training loop in words. Events return what the rule asked for."""

    def __init__(self, mode: str) -> None:
        self.rule = RULES[mode]()
        self.log: list[Action] = []

    def forward(
        self, *, grad: bool = True, synced: bool = True, recomputing: bool = False
    ) -> Actions:
        return self._keep(
            self.rule.forward(grad_enabled=grad, synced=synced, recomputing=recomputing)
        )

    def backward(self, *, synced: bool = True) -> None:
        self.rule.backward(synced=synced)

    def step_begin(self, *, closure: bool = False) -> Actions:
        return self._keep(self.rule.step_begin(closure=closure))

    def step_end(self, *, complete: bool = True) -> Actions:
        return self._keep(self.rule.step_end(complete=complete))

    def step(self) -> tuple[Actions, Actions]:
        return self.step_begin(), self.step_end()

    def synchronize(self) -> Actions:
        return self._keep(self.rule.synchronize())

    @property
    def num_opened(self) -> int:
        return self.log.count(OPEN)

    def _keep(self, actions: Actions) -> Actions:
        self.log += actions
        return actions


# --- mode "backward"


def test_backward_opens_at_the_forward_and_closes_before_the_step() -> None:
    loop = Loop("backward")
    assert loop.forward() == (OPEN,)
    loop.backward()
    assert loop.step() == ((CLOSE,), ())
    assert loop.forward() == (OPEN,)


def test_backward_ignores_forwards_without_gradient() -> None:
    loop = Loop("backward")
    assert loop.forward(grad=False) == ()
    loop.forward()
    loop.backward()
    assert loop.forward(grad=False) == ()
    assert loop.step_begin() == (CLOSE,)


def test_backward_counts_several_forwards_before_a_backward_as_one_round() -> None:
    loop = Loop("backward")
    assert [loop.forward(), loop.forward()] == [(OPEN,), ()]


def test_backward_opens_within_no_sync_and_keeps_open_until_a_synced_backward() -> None:
    loop = Loop("backward")
    assert loop.forward(synced=False) == (OPEN,)
    loop.backward()
    assert loop.forward(synced=False) == ()
    loop.backward()
    assert loop.forward() == ()
    loop.backward()
    assert loop.step_begin() == (CLOSE,)


def test_backward_runs_one_round_for_each_synced_backward() -> None:
    loop = Loop("backward")
    loop.forward()
    loop.backward()
    assert loop.forward() == (CLOSE, OPEN)
    loop.backward()
    assert loop.step_begin() == (CLOSE,)


def test_backward_counts_a_second_backward_of_one_graph_as_none() -> None:
    loop = Loop("backward")
    loop.forward()
    loop.backward()
    loop.backward()
    loop.step()
    loop.backward()
    assert loop.forward() == (OPEN,)


def test_backward_closes_the_round_of_a_skipped_step_at_the_next_forward() -> None:
    loop = Loop("backward")
    loop.forward()
    loop.backward()
    assert loop.forward() == (CLOSE, OPEN)


def test_backward_never_mixes_within_a_backward() -> None:
    loop = Loop("backward")
    loop.forward()
    loop.backward()
    assert loop.forward(recomputing=True) == ()
    assert loop.step_begin() == (CLOSE,)


def test_backward_opens_at_a_recomputation_if_nothing_else_was_recorded() -> None:
    loop = Loop("backward")
    loop.forward(grad=False)
    assert loop.forward(recomputing=True) == (OPEN,)
    loop.backward()
    assert loop.forward() == (CLOSE, OPEN)


def test_backward_is_not_armed_by_the_recomputation_of_an_unsynced_forward() -> None:
    loop = Loop("backward")
    loop.forward(synced=False)
    loop.forward(recomputing=True)
    loop.backward()
    assert loop.forward() == ()


def test_backward_closes_once_for_two_optimizers() -> None:
    loop = Loop("backward")
    loop.forward()
    loop.backward()
    assert [loop.step(), loop.step()] == [((CLOSE,), ()), ((), ())]


def test_backward_counts_a_round_mixed_early_by_synchronize_once() -> None:
    loop = Loop("backward")
    assert loop.forward() == (OPEN,)  # an evaluation that forgot no_grad
    assert loop.synchronize() == (CLOSE,)
    assert loop.synchronize() == ()
    assert loop.forward() == ()
    loop.backward()
    assert loop.step() == ((), ())
    assert loop.forward() == (OPEN,)


def test_backward_takes_a_round_mixed_early_for_that_of_a_step_with_a_closure() -> None:
    loop = Loop("backward")
    loop.forward()
    loop.synchronize()
    assert loop.step_begin(closure=True) == ()


def test_backward_runs_a_whole_round_before_a_step_with_a_closure() -> None:
    loop = Loop("backward")
    assert loop.step_begin(closure=True) == (OPEN, CLOSE)
    for _ in range(3):
        assert loop.forward() == ()
        loop.backward()
    assert loop.step_end() == ()
    assert loop.forward() == (OPEN,)


def test_backward_closes_the_open_round_before_a_step_with_a_closure() -> None:
    loop = Loop("backward")
    loop.forward()
    assert loop.step_begin(closure=True) == (CLOSE,)


# --- modes "forward" and "none"


def test_forward_opens_after_the_step_and_closes_before_the_next() -> None:
    loop = Loop("forward")
    assert loop.forward() == ()
    loop.backward()
    assert loop.step() == ((), (OPEN,))
    loop.forward()
    loop.backward()
    assert loop.step() == ((CLOSE,), (OPEN,))


def test_none_opens_and_closes_after_the_step() -> None:
    loop = Loop("none")
    loop.forward()
    loop.backward()
    assert loop.step() == ((), (OPEN, CLOSE))


@pytest.mark.parametrize(("mode", "round_"), [("forward", (OPEN,)), ("none", (OPEN, CLOSE))])
class TestStepRule:
    def test_a_step_after_unsynced_backwards_alone_runs_no_round(
        self, mode: str, round_: Actions
    ) -> None:
        loop = Loop(mode)
        loop.forward(synced=False)
        loop.backward(synced=False)
        assert loop.step() == ((), ())

    def test_accumulation_under_no_sync_runs_one_round(self, mode: str, round_: Actions) -> None:
        loop = Loop(mode)
        for synced in (False, False, True):
            assert loop.forward(synced=synced) == ()
            loop.backward(synced=synced)
        assert loop.step() == ((), round_)

    def test_accumulation_without_no_sync_runs_a_round_for_each_backward(
        self, mode: str, round_: Actions
    ) -> None:
        loop = Loop(mode)
        loop.forward()
        loop.backward()
        assert loop.forward() == round_
        loop.backward()
        loop.step()
        assert loop.num_opened == 2

    def test_the_round_of_a_skipped_step_runs_at_the_next_forward(
        self, mode: str, round_: Actions
    ) -> None:
        loop = Loop(mode)
        loop.forward()
        loop.backward()
        assert loop.forward(grad=False) == ()
        assert loop.forward() == round_

    def test_the_round_of_a_skipped_step_is_run_by_synchronize(
        self, mode: str, round_: Actions
    ) -> None:
        loop = Loop(mode)
        loop.forward()
        loop.backward()
        assert loop.synchronize() == (OPEN, CLOSE)
        assert loop.synchronize() == ()

    def test_two_optimizers_run_one_round(self, mode: str, round_: Actions) -> None:
        loop = Loop(mode)
        loop.forward()
        loop.backward()
        loop.step()
        loop.step()
        assert loop.num_opened == 1

    def test_a_step_with_gradients_from_elsewhere_runs_a_round(
        self, mode: str, round_: Actions
    ) -> None:
        loop = Loop(mode)
        loop.forward()
        assert loop.step_begin() == ()
        assert loop.step_end() == round_

    def test_a_backward_without_a_seen_forward_counts_by_its_own_no_sync(
        self, mode: str, round_: Actions
    ) -> None:
        loop = Loop(mode)
        loop.backward(synced=False)
        assert loop.step() == ((), ())
        loop.backward(synced=True)
        assert loop.step() == ((), round_)

    def test_a_closure_may_evaluate_often_and_runs_one_round(
        self, mode: str, round_: Actions
    ) -> None:
        loop = Loop(mode)
        loop.step_begin(closure=True)
        for _ in range(3):
            assert loop.forward() == ()
            loop.backward()
        assert loop.step_end() == round_

    def test_a_recomputation_runs_nothing(self, mode: str, round_: Actions) -> None:
        loop = Loop(mode)
        loop.forward()
        loop.backward()
        assert loop.forward(recomputing=True) == ()
        assert loop.step() == ((), round_)


# --- all modes


@pytest.mark.parametrize("mode", RULES)
def test_synchronize_leaves_nothing_open(mode: str) -> None:
    loop = Loop(mode)
    for _ in range(3):
        loop.forward()
        loop.backward()
        loop.step()
    loop.forward()
    loop.synchronize()
    assert loop.log.count(OPEN) == loop.log.count(CLOSE)
    assert loop.synchronize() == ()


@pytest.mark.parametrize("mode", RULES)
@pytest.mark.parametrize("seed", range(50))
def test_opening_and_closing_alternate_whatever_happens(mode: str, seed: int) -> None:
    draw = random.Random(seed)
    loop = Loop(mode)
    events: list[Callable[[], object]] = [
        lambda: loop.forward(grad=draw.random() < 0.8, synced=draw.random() < 0.5),
        lambda: loop.forward(recomputing=True, synced=draw.random() < 0.5),
        lambda: loop.backward(synced=draw.random() < 0.5),
        loop.step,
        loop.synchronize,
    ]
    for _ in range(300):
        draw.choice(events)()
    loop.synchronize()
    assert loop.log == [OPEN, CLOSE] * (len(loop.log) // 2)


@pytest.mark.parametrize("mode", RULES)
@pytest.mark.parametrize("seed", range(50))
def test_no_write_of_a_step_falls_into_an_open_round(mode: str, seed: int) -> None:
    draw = random.Random(seed)
    loop = Loop(mode)
    for _ in range(200):
        if draw.random() < 0.5:
            loop.forward(synced=draw.random() < 0.5)
        else:
            loop.backward()
        if draw.random() < 0.3:
            loop.step_begin()
            assert loop.log.count(OPEN) == loop.log.count(CLOSE)
            loop.step_end()


@pytest.mark.parametrize("mode", RULES)
@pytest.mark.parametrize("seed", range(50))
def test_ranks_that_skip_different_steps_count_the_same_rounds(mode: str, seed: int) -> None:
    draw = random.Random(seed)
    ranks = [Loop(mode) for _ in range(3)]
    for _ in range(60):
        num_forwards = draw.randint(1, 3)
        num_unsynced = draw.randint(0, 3)
        num_optimizers = draw.randint(1, 2)
        evaluates = draw.random() < 0.2
        synchronizes = draw.random() < 0.2
        for loop in ranks:
            for micro_step in range(num_unsynced + 1):
                synced = micro_step == num_unsynced
                for _ in range(num_forwards):
                    loop.forward(synced=synced)
                loop.backward(synced=synced)
            for _ in range(num_optimizers):
                if draw.random() < 0.6:
                    loop.step()
            if evaluates:
                loop.forward(grad=False)
            if synchronizes:
                loop.synchronize()
    for loop in ranks:
        loop.synchronize()
    assert len({loop.num_opened for loop in ranks}) == 1
    assert ranks[0].num_opened >= 60


@pytest.mark.parametrize("mode", ["forward", "none"])
def test_a_round_waits_for_the_last_of_several_optimizers(mode: str) -> None:
    loop = Loop(mode)
    loop.forward()
    loop.backward()
    loop.step_begin()
    assert loop.step_end(complete=False) == ()
    loop.step()
    assert loop.num_opened == 1


@pytest.mark.parametrize("mode", ["forward", "none"])
def test_a_round_whose_last_optimizer_does_not_step_runs_at_the_next_forward(mode: str) -> None:
    loop = Loop(mode)
    loop.forward()
    loop.backward()
    loop.step_end(complete=False)
    assert loop.num_opened == 0
    loop.forward()
    assert loop.num_opened == 1
