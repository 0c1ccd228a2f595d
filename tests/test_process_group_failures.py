"""What a backend "crossover" group says when calls differ, time runs out or a member leaves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
from process_groups import errors_in_groups, in_groups, options

import crossover_comm as cc
from crossover_comm.process_group import CrossoverProcessGroup

CHUNK = (128 << 10) // 4  # elements of float32 that are reduced at a time


def mismatch(size_of: Callable[[int], int], dtype_of: Callable[[int], torch.dtype]) -> list[str]:
    def work(group: CrossoverProcessGroup) -> None:
        rank = group.rank()
        group.allreduce([torch.ones(size_of(rank), dtype=dtype_of(rank))], options()).wait()

    return errors_in_groups(2, work)


@pytest.mark.parametrize("numels", [(0, 8), (64, 128), (8, 10 * CHUNK)])
def test_sizes_that_differ_are_an_error_on_both_sides(numels: tuple[int, int]) -> None:
    for error in mismatch(lambda rank: numels[rank], lambda _: torch.float32):
        assert "all_reduce(sum)" in error
        assert "calls differ" in error or "instead" in error


def test_dtypes_that_differ_are_an_error_on_both_sides() -> None:
    dtypes = (torch.float32, torch.int32)
    for error in mismatch(lambda _: 8, lambda rank: dtypes[rank]):
        assert "all_reduce(sum) of 8 float32" in error
        assert "all_reduce(sum) of 8 int32" in error


def test_other_collectives_are_an_error_that_names_both() -> None:
    def work(group: CrossoverProcessGroup) -> None:
        if group.rank() == 0:
            group.allreduce([torch.ones(8)], options()).wait()
        else:
            group.broadcast([torch.ones(8)], options(root=1)).wait()  # complete when it has left
        group.barrier().wait()

    for error in errors_in_groups(2, work):
        assert "all_reduce(sum) of 8 float32" in error
        assert "broadcast of 8 float32 with root 1" in error


def test_parts_that_differ_in_all_to_all_are_an_error_on_both_sides() -> None:
    def work(group: CrossoverProcessGroup) -> None:
        outputs = [torch.empty(4), torch.empty(4)]
        inputs = [torch.ones(4), torch.ones(4)]
        if group.rank() == 0:
            inputs[1] = torch.ones(5)
        group.alltoall(outputs, inputs).wait()

    for error in errors_in_groups(2, work):
        assert "rank 1 has room for 16 bytes, this rank sends 20" in error


def test_a_rank_that_does_not_call_is_named_after_the_timeout() -> None:
    def work(group: CrossoverProcessGroup) -> None:
        if group.rank() == 2:
            group.recv([torch.empty(1)], 0, 0).wait()
        tensor = torch.ones(8)
        group.allreduce([tensor], options(timeout=timedelta(seconds=0.3))).wait()

    errors = errors_in_groups(3, work)
    assert any(error.startswith("ProgressTimeout") for error in errors[:2])
    assert all("waited 0.3 s for rank 2: alive, but not in this call" in e for e in errors), errors


def test_a_wait_that_is_too_short_ends_nothing() -> None:
    def work(group: CrossoverProcessGroup) -> torch.Tensor:
        tensor = torch.zeros(3)
        if group.rank() == 0:
            group.send([torch.ones(3)], 1, 0).wait()
            group.recv([torch.empty(1)], 1, 1).wait()
            group.send([torch.ones(3)], 1, 2).wait()
            return tensor
        late = group.recv([tensor], 0, 2)
        with pytest.raises(cc.ProgressTimeout, match=r"not complete within 0\.05 s"):
            late.wait(timedelta(seconds=0.05))
        assert not late.is_completed()
        group.recv([torch.empty(3)], 0, 0).wait()
        group.send([torch.ones(1)], 0, 1).wait()
        late.wait()
        return tensor

    assert in_groups(2, work)[1].tolist() == [1, 1, 1]


def test_a_rank_that_has_left_is_named_by_those_that_wait_for_it() -> None:
    def work(group: CrossoverProcessGroup) -> None:
        if group.rank() == 1:
            return group.shutdown()
        group.barrier().wait()

    errors = errors_in_groups(3, work)
    assert errors[1] == "returned"
    for error in (errors[0], errors[2]):
        assert error.startswith("TransportError: barrier: ")
        assert "rank 1 has shut down" in error


def test_a_future_under_way_gets_the_exception_of_its_group() -> None:
    def work(group: CrossoverProcessGroup) -> None:
        if group.rank() == 0:
            group.recv([torch.empty(1)], 1, 0).wait()
            return group.abort()
        future = group.allreduce([torch.ones(3)], options()).get_future()
        group.send([torch.ones(1)], 0, 0).wait()
        with pytest.raises(cc.TransportError, match="the process group was aborted"):
            future.wait()

    in_groups(2, work)
