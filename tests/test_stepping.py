"""Nested steps, and the last step of several optimizers."""

from __future__ import annotations

import torch

from crossover_comm.stepping import AwaitedSteps, StepNesting


def test_the_outermost_of_nested_steps_is_found() -> None:
    nesting = StepNesting()
    assert [nesting.enter(1), nesting.enter(2)] == [True, False]
    assert [nesting.leave(2), nesting.leave(1)] == [False, True]


def test_a_step_of_a_stranger_is_not_an_end() -> None:
    nesting = StepNesting()
    nesting.enter(1)
    assert not nesting.leave(7)
    assert nesting.leave(1)


def test_a_step_that_raised_is_forgotten_when_its_optimizer_steps_again() -> None:
    nesting = StepNesting()
    nesting.enter(1)
    nesting.enter(2)
    assert [nesting.enter(1), nesting.enter(2)] == [True, False]
    assert [nesting.leave(2), nesting.leave(1)] == [False, True]


def parameters_with_gradients(count: int) -> list[torch.Tensor]:
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(count)]
    for p in parameters:
        p.grad = torch.ones(1)
    return parameters


def ids(*parameters: torch.Tensor) -> set[int]:
    return {id(p) for p in parameters}


def test_a_model_has_stepped_when_every_parameter_with_a_gradient_has() -> None:
    first, second, unused = parameters_with_gradients(3)
    unused.grad = None
    awaited = AwaitedSteps([first, second, unused])
    for _ in range(2):
        assert not awaited.stepped(ids(first))
        assert awaited.stepped(ids(second))
        awaited.round_begins()


def test_a_parameter_that_nobody_holds_is_awaited_in_the_first_round_only() -> None:
    held, orphan = parameters_with_gradients(2)
    awaited = AwaitedSteps([held, orphan])
    assert not awaited.stepped(ids(held))
    awaited.round_begins()
    assert awaited.stepped(ids(held))


def test_an_optimizer_that_was_late_is_awaited_again_once_it_has_stepped() -> None:
    often, seldom = parameters_with_gradients(2)
    awaited = AwaitedSteps([often, seldom])
    awaited.stepped(ids(often))
    awaited.round_begins()
    assert awaited.stepped(ids(often))
    assert awaited.stepped(ids(seldom))
    awaited.round_begins()
    assert not awaited.stepped(ids(often))


def test_what_is_awaited_no_more_is_so_after_a_restart() -> None:
    parameters = parameters_with_gradients(2)
    before, after = AwaitedSteps(parameters), AwaitedSteps(parameters)
    before.stepped(ids(parameters[0]))
    before.round_begins()
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == {"stepped": [], "awaited": [], "idle": [1]}
    assert after.stepped(ids(parameters[0]))
