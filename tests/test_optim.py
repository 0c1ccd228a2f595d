"""LARS and its schedule against values worked out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from crossover_comm.errors import InvalidArgument
from crossover_comm.optim import LARS, WarmUpPolynomial


def parameter(values: object, gradient: object) -> nn.Parameter:
    p = nn.Parameter(torch.tensor(values))
    p.grad = torch.tensor(gradient)
    return p


def test_a_matrix_steps_by_its_own_rate_and_keeps_the_rate_in_its_momentum() -> None:
    # ||p|| = 5, ||g|| = 1: lambda = 2 * 0.1 * 5 / (1 + 0.2 * 5) = 0.5, g + wd p = (1.6, 0.8)
    p = parameter([[3.0, 4.0]], [[1.0, 0.0]])
    optimizer = LARS([p], 2.0, momentum=0.5, weight_decay=0.2, trust=0.1)
    optimizer.step()
    torch.testing.assert_close(p.data, torch.tensor([[2.2, 3.6]]))
    # second step with lr = 0: lambda = 0, v = 0.5 * (0.8, 0.4)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    torch.testing.assert_close(p.data, torch.tensor([[1.8, 3.4]]))


def test_a_vector_takes_the_plain_rate_without_decay() -> None:
    p = parameter([3.0, 4.0], [1.0, 0.0])
    LARS([p], 2.0, weight_decay=0.2, trust=0.1).step()
    torch.testing.assert_close(p.data, torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize(
    ("values", "gradient", "expected"),
    [
        ([[0.0, 0.0]], [[1.0, 2.0]], [[-0.5, -1.0]]),
        ([[3.0, 4.0]], [[0.0, 0.0]], [[2.7, 3.6]]),
    ],
)
def test_a_norm_of_zero_means_the_plain_rate(
    values: object, gradient: object, expected: object
) -> None:
    p = parameter(values, gradient)
    LARS([p], 0.5, weight_decay=0.2).step()
    torch.testing.assert_close(p.data, torch.tensor(expected))


def test_its_state_can_be_saved_and_taken_up() -> None:
    first, second = parameter([[3.0, 4.0]], [[1.0, 0.0]]), parameter([[3.0, 4.0]], [[1.0, 0.0]])
    saved = LARS([first], 2.0)
    saved.step()
    other = LARS([second], 7.0)
    second.data.copy_(first.data)
    other.load_state_dict(copy.deepcopy(saved.state_dict()))
    saved.step()
    other.step()
    assert torch.equal(first.data, second.data)


def test_parameters_without_gradients_stay() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    LARS([p], 1.0).step()
    assert torch.equal(p.data, torch.ones(2, 2))


def test_a_bad_hyper_parameter_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"momentum: expected 0 <= momentum < 1, got 1\.5"):
        LARS([nn.Parameter(torch.ones(1))], 1.0, momentum=1.5)


def test_the_schedule_moves_rate_and_decay_alike() -> None:
    optimizer = LARS([nn.Parameter(torch.ones(2, 2))], 11.0, weight_decay=5e-5)
    schedule = WarmUpPolynomial(optimizer, total=10, warm_up=4, at_floor=2)
    factors = []
    for _ in range(10):
        group = optimizer.param_groups[0]
        factors.append(group["lr"] / 11.0)
        assert group["weight_decay"] / 5e-5 == pytest.approx(factors[-1])
        optimizer.step()
        schedule.step()
    falling = [0.9975 * (1 - u) ** 2.2 + 0.0025 for u in (0.0, 0.25, 0.5, 0.75)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, *falling, 0.0025, 0.0025])


def test_a_schedule_longer_than_the_training_is_refused() -> None:
    optimizer = LARS([nn.Parameter(torch.ones(1))], 1.0)
    with pytest.raises(InvalidArgument, match="do not fit into 5"):
        WarmUpPolynomial(optimizer, total=5, warm_up=4, at_floor=2)
