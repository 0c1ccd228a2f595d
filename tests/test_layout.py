"""Which parameters the engine can exchange."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crossover_comm.errors import InvalidArgument
from crossover_comm.layout import is_dense, require_disjoint, require_exchangeable


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.zeros(2, 3),
        torch.zeros(2, 3).t(),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4).permute(1, 2, 0),
        torch.zeros(1, 4).expand(1, 4)[:, :],
        torch.zeros(10)[2:5],
    ],
)
def test_tensors_that_fill_their_memory_are_dense(tensor: torch.Tensor) -> None:
    assert is_dense(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 4)[:, :2],
        torch.zeros(10)[::2],
        torch.zeros(1, 4).expand(3, 4),
        torch.zeros(5).as_strided((3, 3), (1, 1)),
    ],
)
def test_tensors_with_gaps_or_overlap_are_not_dense(tensor: torch.Tensor) -> None:
    assert not is_dense(tensor)


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (frozen(torch.zeros(3, dtype=torch.int64)), "got int64"),
        (nn.Parameter(torch.zeros(3, dtype=torch.complex64)), "got complex64"),
        (nn.Parameter(torch.zeros(3, device="meta")), "on the CPU or a GPU, got one on meta"),
        (nn.Parameter(torch.eye(3).to_sparse()), "a dense tensor, got layout sparse_coo"),
        (nn.Parameter(torch.zeros(4, 4)[:, :2]), r"got shape \(4, 2\) with strides \(4, 1\)"),
        (nn.LazyLinear(3).weight, "got one of a lazy module"),
    ],
)
def test_what_cannot_be_exchanged_is_refused_by_name(parameter: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"parameter 'fc.weight': expected .*{message}"):
        require_exchangeable("fc.weight", parameter)


def test_a_tensor_of_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        parameter = nn.Parameter(torch.zeros(3))
    with pytest.raises(InvalidArgument, match=r"made under torch\.inference_mode"):
        require_exchangeable("p", parameter)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_floating_tensors_of_every_known_type_are_taken(dtype: torch.dtype) -> None:
    require_exchangeable("p", nn.Parameter(torch.zeros(3, dtype=dtype)))


def test_two_parameters_on_the_same_memory_are_refused_by_name() -> None:
    shared = torch.zeros(10)
    parameters = {"a": nn.Parameter(shared[:6]), "b": nn.Parameter(shared[5:])}
    with pytest.raises(InvalidArgument, match=r"'b': .* overlaps parameter 'a'; to tie weights"):
        require_disjoint(parameters)


def test_neighbours_in_memory_are_two_parameters() -> None:
    shared = torch.zeros(10)
    empty = nn.Parameter(shared[2:2])
    require_disjoint({"a": nn.Parameter(shared[:5]), "b": nn.Parameter(shared[5:]), "none": empty})
