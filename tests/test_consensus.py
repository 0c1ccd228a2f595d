"""How far models are apart, and the model in their middle."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from threads import in_contexts
from torch import nn

from crossover_comm.consensus import averaged, consensus_distance
from crossover_comm.context import Context
from crossover_comm.errors import InvalidArgument

SIZE = 3


def model_of(rank: int) -> nn.Module:
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model(torch.randn(5, 3))
    model.register_buffer("count", torch.tensor([rank, 7]))
    model.register_buffer("flag", torch.tensor([rank > 0, rank > 1]))
    return model


def models() -> list[nn.Module]:
    return [model_of(rank) for rank in range(SIZE)]


def bits_of(model: nn.Module) -> list[bytes]:
    return [t.detach().contiguous().numpy().tobytes() for t in model.state_dict().values()]


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().view(-1) for p in model.parameters()])


def test_the_distance_is_that_of_the_formula() -> None:
    given = models()
    x = torch.stack([flat(model) for model in given])
    wanted = math.sqrt((x - x.mean(0)).square().sum().item() / SIZE)
    for distance in in_contexts(SIZE, lambda c: consensus_distance(given[c.launch.rank])):
        assert distance == pytest.approx(wanted, rel=1e-12)


def test_equal_models_and_one_rank_alone_have_no_distance() -> None:
    equal = [model_of(1), model_of(1)]
    assert in_contexts(2, lambda c: consensus_distance(equal[c.launch.rank])) == [0.0, 0.0]
    assert in_contexts(1, lambda _: consensus_distance(equal[0])) == [0.0]


def test_shared_parameters_count_once() -> None:
    def distance(context: Context) -> float:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 2.0 * context.launch.rank)
        return consensus_distance(nn.Sequential(layer, layer))

    assert in_contexts(2, distance) == [1.0, 1.0]


def test_inside_averaged_every_model_is_the_mean() -> None:
    given = models()
    states = [model.state_dict() for model in given]
    wanted = {
        name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]
    }

    def seen(context: Context) -> dict[str, torch.Tensor]:
        with averaged(given[context.launch.rank]) as model:
            return {name: value.clone() for name, value in model.state_dict().items()}

    for state in in_contexts(SIZE, seen):
        for name, value in state.items():
            mean = wanted[name] if value.is_floating_point() else wanted[name].round()
            assert torch.equal(value, mean.to(value.dtype)), name


def leave(model: nn.Module) -> None:
    with averaged(model):
        pass


def leave_after_writing(model: nn.Module) -> None:
    with averaged(model), torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()


def leave_by_an_exception(model: nn.Module) -> None:
    with pytest.raises(ZeroDivisionError), averaged(model):
        raise ZeroDivisionError


@pytest.mark.parametrize("go", [leave, leave_after_writing, leave_by_an_exception])
def test_after_averaged_every_local_bit_is_back(go: Callable[[nn.Module], None]) -> None:
    given = models()
    nan = torch.tensor([0x7FC00123], dtype=torch.int32).view(torch.float32)
    for model in given:
        model.register_buffer("nan", nan.clone())
    before = [bits_of(model) for model in given]
    in_contexts(SIZE, lambda c: go(given[c.launch.rank]))
    assert [bits_of(model) for model in given] == before


def test_autograd_notices_the_writes() -> None:
    def work(context: Context) -> None:
        model = nn.Linear(2, 2)
        output = model(torch.ones(1, 2, requires_grad=True)).square().sum()
        with averaged(model):
            pass
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.backward()

    in_contexts(2, work)


def test_tied_weights_and_channels_last_are_averaged_in_place() -> None:
    def work(context: Context) -> None:
        conv = nn.Conv2d(2, 2, 3, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        nn.init.constant_(conv.weight, context.launch.rank)
        pointer, strides = conv.weight.data_ptr(), conv.weight.stride()
        with averaged(nn.Sequential(conv, conv)):
            assert torch.all(conv.weight == 0.5)
            assert (conv.weight.data_ptr(), conv.weight.stride()) == (pointer, strides)

    in_contexts(2, work)


def test_open_rounds_are_closed_before_parameters_are_read_and_put_back() -> None:
    def work(context: Context) -> None:
        model = nn.Linear(1, 1)
        closed: list[nn.Module] = []
        remove = context.add_synchronizer(closed.append)
        consensus_distance(model)
        assert closed == [model]
        with averaged(model):
            assert closed == [model] * 2
        assert closed == [model] * 3
        remove()
        consensus_distance(model)
        assert closed == [model] * 3

    in_contexts(2, work)


def test_another_model_on_one_rank_is_refused() -> None:
    def work(context: Context) -> None:
        model = nn.Linear(2, 1 + context.launch.rank)
        with pytest.raises(InvalidArgument, match=r"tensors\[0\] 'weight', shape: rank 0 has"):
            consensus_distance(model)

    in_contexts(2, work)


def test_a_buffer_whose_elements_share_memory_is_refused() -> None:
    def work(_: Context) -> None:
        model = nn.Linear(1, 1)
        model.register_buffer("mask", torch.ones(1).expand(4))
        with pytest.raises(InvalidArgument, match=r"'mask': its elements share memory"):
            leave(model)

    in_contexts(1, work)
