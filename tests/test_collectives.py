"""Collectives outside training: values, refusals, and ranks that do not take part."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from threads import in_contexts
from torch import nn

from crossover_comm.collectives import (
    allreduce,
    allreduce_,
    barrier,
    batches,
    broadcast_optimizer_state,
    broadcast_parameters,
)
from crossover_comm.context import Context
from crossover_comm.errors import CrossoverError, InvalidArgument, ProgressTimeout
from crossover_comm.optimizer_state import decode_state, encode_state

SIZE = 3


def own_tensor(rank: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(-8, 8, (4, 5), generator=generator).to(dtype)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.int16,
        torch.int64,
        torch.uint8,
    ],
)
def test_allreduce_sums_over_all_ranks(dtype: torch.dtype) -> None:
    given = [own_tensor(rank, dtype) for rank in range(SIZE)]
    wanted = given[0] + given[1] + given[2]
    for total in in_contexts(SIZE, lambda c: allreduce(given[c.launch.rank], average=False)):
        assert torch.equal(total, wanted)
        assert total.dtype == dtype


def test_allreduce_averages_by_default_and_leaves_its_argument_alone() -> None:
    given = [torch.full((2,), 3.0 * rank, requires_grad=True) for rank in range(SIZE)]
    for rank, mean in enumerate(in_contexts(SIZE, lambda c: allreduce(given[c.launch.rank]))):
        assert mean.tolist() == [3.0, 3.0]
        assert not mean.requires_grad
        assert given[rank].tolist() == [3.0 * rank] * 2


def test_allreduce_in_place_writes_into_a_strided_tensor() -> None:
    given = [torch.zeros(4, 6) + rank for rank in range(SIZE)]
    in_contexts(SIZE, lambda c: allreduce_(given[c.launch.rank].t()[::2]))
    for rank, tensor in enumerate(given):
        assert torch.equal(tensor[:, ::2], torch.ones(4, 3))
        assert torch.equal(tensor[:, 1::2], torch.full((4, 3), float(rank)))


@pytest.mark.parametrize("shape", [(), (0,), (1,)])
def test_allreduce_takes_every_shape(shape: tuple[int, ...]) -> None:
    for mean in in_contexts(SIZE, lambda c: allreduce(torch.full(shape, float(c.launch.rank)))):
        assert torch.equal(mean, torch.ones(shape))


@pytest.mark.parametrize(
    ("tensor", "average", "message"),
    [
        (torch.ones(2, dtype=torch.int64), True, r"for average=True, got torch.int64"),
        (torch.ones(2, dtype=torch.bool), False, r"got torch.bool"),
        (torch.ones(2).to_sparse(), False, r"expected a dense tensor"),
        (torch.ones(1).expand(3), False, r"its elements share memory"),
    ],
)
def test_allreduce_refuses_what_has_no_sum(
    tensor: torch.Tensor, average: bool, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        allreduce_(tensor, average=average)


def failure(context: Context, call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except CrossoverError as error:
        return f"{type(error).__name__}: {error}"
    return "returned"


def test_another_shape_on_one_rank_is_an_error_on_all() -> None:
    def work(context: Context) -> str:
        return failure(context, lambda: allreduce(torch.ones(3 if context.launch.rank else 2)))

    for text in in_contexts(SIZE, work):
        assert text.startswith("InvalidArgument: allreduce: not the same on every rank:")
        assert "shape: rank 0 has [2], rank 1 has [3]" in text


def test_a_collective_called_by_one_rank_only_names_the_others() -> None:
    def work(context: Context) -> str:
        if context.launch.rank == 0:
            return failure(context, lambda: allreduce(torch.ones(1), timeout=0.2))
        return "absent"

    text = in_contexts(4, work)[0]
    assert text == (
        "ProgressTimeout: allreduce (collective 0): ranks [1, 2, 3] did not call it within 0.2 s "
        "of rank 0"
    )


def test_after_a_vain_call_the_next_one_works() -> None:
    given_up = threading.Event()

    def work(context: Context) -> list[float]:
        if context.launch.rank == 0:
            with pytest.raises(ProgressTimeout):
                barrier(timeout=0.2)
            given_up.set()
        else:
            given_up.wait()
            with pytest.raises(ProgressTimeout):
                barrier()
        total: list[float] = allreduce(torch.ones(1), average=False).tolist()
        return total

    assert in_contexts(2, work) == [[2.0], [2.0]]


def test_different_calls_are_named() -> None:
    def work(context: Context) -> str:
        call = barrier if context.launch.rank else lambda: allreduce(torch.ones(1))
        return failure(context, call)

    for text in in_contexts(2, work):
        assert "rank 0 called allreduce; rank 1 called barrier" in text


def test_one_rank_alone_does_nothing() -> None:
    def work(context: Context) -> None:
        barrier()
        assert allreduce(torch.ones(2)).tolist() == [1.0, 1.0]
        model = nn.Linear(2, 2)
        broadcast_parameters(model)
        broadcast_optimizer_state(torch.optim.SGD(model.parameters(), lr=0.1))

    in_contexts(1, work)


class Mixed(nn.Module):
    """Several dtypes and layouts, an empty, a tied and a frozen parameter, and buffers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.narrow = nn.Parameter(torch.randn(3).to(torch.bfloat16))
        self.tied = self.narrow
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.spectrum = nn.Parameter(torch.randn(3, dtype=torch.complex64), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.rand(7) > 0.5)
        self.register_buffer("count", torch.randint(1 << 60, (2,)))


def same_bits(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


@pytest.mark.parametrize("root_rank", [0, 2])
def test_broadcast_parameters_makes_models_equal_bit_for_bit(root_rank: int) -> None:
    models = [Mixed(seed) for seed in range(SIZE)]
    in_contexts(SIZE, lambda c: broadcast_parameters(models[c.launch.rank], root_rank))
    assert all(same_bits(model, Mixed(root_rank)) for model in models)


def test_a_state_dict_or_named_tensors_can_be_broadcast() -> None:
    models = [nn.Linear(3, 2) for _ in range(2)]
    wanted = [models[0].weight.clone(), models[0].bias.clone()]
    in_contexts(2, lambda c: broadcast_parameters(models[c.launch.rank].state_dict()))
    assert torch.equal(models[1].weight, wanted[0])
    in_contexts(2, lambda c: broadcast_parameters([("b", models[c.launch.rank].bias)], 1))
    assert torch.equal(models[0].bias, wanted[1])


def test_nans_keep_their_bits() -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800000, -1], dtype=torch.int32)
    given = [bits.view(torch.float32).clone(), torch.zeros(3)]
    in_contexts(2, lambda c: broadcast_parameters([("x", given[c.launch.rank])]))
    assert torch.equal(given[1].view(torch.int32), bits)


def test_another_model_on_one_rank_is_an_error_that_names_the_tensor() -> None:
    def work(context: Context) -> str:
        model = nn.Sequential(nn.Linear(3, 4 + context.launch.rank // 2))
        return failure(context, lambda: broadcast_parameters(model))

    for text in in_contexts(SIZE, work):
        assert "tensors[0] '0.weight', shape: rank 0 has [4,3], rank 2 has [5,3]" in text


@pytest.mark.parametrize("root_rank", [-1, 1])
def test_a_root_that_does_not_exist_is_refused(root_rank: int) -> None:
    def work(context: Context) -> None:
        with pytest.raises(InvalidArgument, match=r"expected 0 <= root_rank < 1"):
            broadcast_parameters(nn.Linear(1, 1), root_rank)

    in_contexts(1, work)


def trained(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    groups: list[dict[str, Any]] = [
        {"params": [model.weight], "lr": 0.1 + seed},
        {"params": [model.bias]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9 + seed / 100))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("steps", [(3, 0), (0, 3), (2, 5)])
def test_optimizer_state_becomes_the_roots_also_where_there_is_none(
    steps: tuple[int, int],
) -> None:
    workers = [trained(rank, steps[rank]) for rank in range(2)]
    in_contexts(2, lambda c: broadcast_optimizer_state(workers[c.launch.rank][1]))
    wanted, given = (optimizer.state_dict() for _, optimizer in workers)
    assert given["param_groups"] == wanted["param_groups"]
    assert given["state"].keys() == wanted["state"].keys()
    for index, state in wanted["state"].items():
        assert all(torch.equal(given["state"][index][name], value) for name, value in state.items())


def test_other_parameter_groups_are_an_error_on_every_rank() -> None:
    def work(context: Context) -> str:
        tensors = [nn.Parameter(torch.ones(1)) for _ in range(1 + context.launch.rank)]
        optimizer = torch.optim.SGD(tensors, lr=0.1)
        return failure(context, lambda: broadcast_optimizer_state(optimizer))

    for text in in_contexts(2, work):
        assert "group_sizes: rank 0 has [1], rank 1 has [2]" in text


def test_state_that_is_no_data_is_refused_on_every_rank() -> None:
    def work(context: Context) -> str:
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        optimizer.param_groups[0]["hook"] = print
        return failure(context, lambda: broadcast_optimizer_state(optimizer))

    for text in in_contexts(2, work):
        assert "state_dict['param_groups'][0]['hook']: expected tensors, numbers" in text


def test_encoded_state_comes_back_with_its_types() -> None:
    tensors: list[torch.Tensor] = []
    value = {0: (1, [2.5, None]), "a": {"1": True, 1: "x"}, "t": torch.ones(2), "inf": math.inf}
    back = decode_state(encode_state(value, tensors), tensors)
    assert back.keys() == value.keys()
    assert back[0] == (1, [2.5, None])
    assert isinstance(back[0], tuple)
    assert back["a"] == {"1": True, 1: "x"}
    assert back["t"] is tensors[0]
    assert back["inf"] == math.inf


def test_batches_are_of_one_dtype_and_bounded() -> None:
    tensors = [torch.ones(3), torch.ones(2), torch.ones(0), torch.ones(9), torch.ones(1).half()]
    sizes = [[t.numel() for t in batch] for batch in batches(tensors, 20)]
    assert sizes == [[3, 2], [9], [1]]
