"""Collectives of backend "crossover" among threads, against the obvious computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from process_groups import in_groups, options

import crossover_comm as cc
from crossover_comm.process_group import CrossoverProcessGroup

SIZES = (1, 2, 3, 5)
CHUNK = (128 << 10) // 4  # elements of float32 that are reduced at a time
NUMELS = (0, 1, 63, 65, 1000, 3 * CHUNK + 5)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
REFERENCES: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    dist.ReduceOp.SUM: lambda stack: stack.sum(0),
    dist.ReduceOp.PRODUCT: lambda stack: stack.prod(0),
    dist.ReduceOp.MIN: lambda stack: stack.amin(0),
    dist.ReduceOp.MAX: lambda stack: stack.amax(0),
}


def values(rank: int, numel: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small integers, so that sums are exact in every dtype."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randint(1, 4, (numel,), generator=generator).to(dtype)


def of_all(size: int, numel: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.stack([values(rank, numel, dtype) for rank in range(size)])


@pytest.mark.parametrize("size", SIZES)
def test_all_reduce_sums_tensors_of_any_length(size: int) -> None:
    def work(group: CrossoverProcessGroup) -> list[torch.Tensor]:
        tensors = [values(group.rank(), numel) for numel in NUMELS]
        works = [group.allreduce([tensor], options()) for tensor in tensors]
        assert all(work.wait() for work in works)
        return tensors

    for tensors in in_groups(size, work, delay_probability=0.3):
        for numel, tensor in zip(NUMELS, tensors, strict=True):
            assert torch.equal(tensor, of_all(size, numel).sum(0))


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_all_reduce_knows_every_operation_of_a_dtype(dtype: torch.dtype) -> None:
    def work(group: CrossoverProcessGroup) -> list[torch.Tensor]:
        tensors = [values(group.rank(), 1000, dtype) for _ in REFERENCES]
        for op, tensor in zip(REFERENCES, tensors, strict=True):
            group.allreduce([tensor], options(op)).wait()
        return tensors

    for tensors in in_groups(3, work):
        for reference, tensor in zip(REFERENCES.values(), tensors, strict=True):
            assert torch.equal(tensor, reference(of_all(3, 1000, dtype)).to(dtype))


def test_averages_bits_booleans_and_complex_numbers_are_reduced_as_in_torch() -> None:
    ops = dist.ReduceOp

    def work(group: CrossoverProcessGroup) -> dict[str, torch.Tensor]:
        rank = group.rank()
        reduced = {
            "average": (values(rank, 70), ops.AVG),
            "and": (values(rank, 70, torch.int32), ops.BAND),
            "or": (values(rank, 70, torch.int32), ops.BOR),
            "xor": (values(rank, 70, torch.int32), ops.BXOR),
            "bool": (values(rank, 70) > 2, ops.SUM),
            "complex": (torch.complex(values(rank, 70), values(rank + 9, 70)), ops.SUM),
        }
        for tensor, op in reduced.values():
            group.allreduce([tensor], options(op)).wait()
        return {name: tensor for name, (tensor, _) in reduced.items()}

    ints = [values(rank, 70, torch.int32) for rank in range(3)]
    imaginary = torch.stack([values(rank + 9, 70) for rank in range(3)]).sum(0)
    wanted = {
        "average": of_all(3, 70).sum(0) / 3,
        "and": ints[0] & ints[1] & ints[2],
        "or": ints[0] | ints[1] | ints[2],
        "xor": ints[0] ^ ints[1] ^ ints[2],
        "bool": (of_all(3, 70) > 2).any(0),
        "complex": torch.complex(of_all(3, 70).sum(0), imaginary),
    }
    for found in in_groups(3, work):
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_every_rank_gets_the_same_bits_in_every_run() -> None:
    def work(group: CrossoverProcessGroup) -> torch.Tensor:
        tensor = torch.randn(2 * CHUNK, generator=torch.Generator().manual_seed(group.rank()))
        group.allreduce([tensor], options()).wait()
        return tensor

    runs = [in_groups(4, work, delay_probability=0.5) for _ in range(3)]
    first = runs[0][0]
    assert all(torch.equal(tensor, first) for run in runs for tensor in run)


@pytest.mark.parametrize("numel", [3, 2 * CHUNK + 7])
@pytest.mark.parametrize("size", SIZES)
def test_broadcast_and_reduce_have_any_root(size: int, numel: int) -> None:
    def work(group: CrossoverProcessGroup) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = []
        for root in range(size):
            copied, reduced = values(group.rank(), numel), values(group.rank(), numel)
            group.broadcast([copied], options(root=root)).wait()
            group.reduce([reduced], options(root=root)).wait()
            found.append((copied, reduced))
        return found

    for rank, found in enumerate(in_groups(size, work)):
        for root, (copied, reduced) in enumerate(found):
            assert torch.equal(copied, values(root, numel))
            kept = of_all(size, numel).sum(0) if rank == root else values(rank, numel)
            assert torch.equal(reduced, kept)


@pytest.mark.parametrize("size", SIZES)
def test_gathers_and_scatters_put_each_ranks_part_in_its_place(size: int) -> None:
    def work(group: CrossoverProcessGroup) -> dict[str, list[torch.Tensor]]:
        rank, root = group.rank(), size - 1
        own = values(rank, 40)
        listed = [torch.empty(40) for _ in range(size)]
        joined = torch.empty(size * 40)
        gathered = [torch.empty(40) for _ in range(size)]
        scattered = torch.empty(40)
        at_root = rank == root
        parts = [[values(10 + other, 40) for other in range(size)]] if at_root else []
        works = [
            group.allgather([listed], [own]),
            group.all_gather_single(joined, own),
            group.gather([gathered] if at_root else [], [own], options(root=root)),
            group.scatter([scattered], parts, options(root=root)),
        ]
        assert all(work.wait() for work in works)
        found = {"listed": listed, "joined": list(joined.split(40)), "scattered": [scattered]}
        return found | ({"gathered": gathered} if at_root else {})

    wanted = list(of_all(size, 40))
    for rank, found in enumerate(in_groups(size, work)):
        for name in found.keys() - {"scattered"}:
            for part, value in zip(found[name], wanted, strict=True):
                assert torch.equal(part, value), name
        assert torch.equal(found["scattered"][0], values(10 + rank, 40))


@pytest.mark.parametrize("size", SIZES)
def test_reduce_scatter_leaves_each_rank_the_sum_of_its_part(size: int) -> None:
    numel = CHUNK + 3

    def work(group: CrossoverProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = [values(group.rank() * 10 + part, numel) for part in range(size)]
        listed, single = torch.empty(numel), torch.empty(numel)
        group.reduce_scatter([listed], [inputs], options()).wait()
        group.reduce_scatter_single(single, torch.cat(inputs), options()).wait()
        return listed, single

    for rank, found in enumerate(in_groups(size, work)):
        wanted = torch.stack([values(other * 10 + rank, numel) for other in range(size)]).sum(0)
        assert torch.equal(found[0], wanted)
        assert torch.equal(found[1], wanted)


@pytest.mark.parametrize("size", SIZES)
def test_all_to_all_transposes_parts_of_any_length(size: int) -> None:
    def part(source: int, target: int) -> torch.Tensor:
        return torch.full((source + 2 * target, 2), float(source * 10 + target))

    def work(group: CrossoverProcessGroup) -> tuple[list[torch.Tensor], torch.Tensor]:
        rank = group.rank()
        inputs = [part(rank, other) for other in range(size)]
        outputs = [torch.empty_like(part(other, rank)) for other in range(size)]
        group.alltoall(outputs, inputs).wait()
        single = torch.empty(sum(len(output) for output in outputs), 2)
        group.all_to_all_single(
            single, torch.cat(inputs), [len(t) for t in outputs], [len(t) for t in inputs]
        ).wait()
        return outputs, single

    for rank, (outputs, single) in enumerate(in_groups(size, work)):
        wanted = [part(other, rank) for other in range(size)]
        assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))
        assert torch.equal(single, torch.cat(wanted))


def test_messages_are_matched_by_tag_and_among_equal_tags_by_order() -> None:
    def work(group: CrossoverProcessGroup) -> list[torch.Tensor]:
        if group.rank() == 0:
            sends = [(values(1, 5), 7), (values(2, 5), 8), (values(3, 5), 7)]
            assert all(group.send([tensor], 1, tag).wait() for tensor, tag in sends)
            return []
        received = [torch.empty(5) for _ in range(3)]
        tagged = zip(received, (8, 7, 7), strict=True)
        works = [group.recv([tensor], 0, tag) for tensor, tag in tagged]
        assert all(work.wait() for work in works)
        return received

    received = in_groups(2, work)[1]
    assert [tensor.tolist() for tensor in received] == [values(k, 5).tolist() for k in (2, 1, 3)]


def test_a_barrier_ends_when_the_last_has_come() -> None:
    arrived: list[int] = []

    def work(group: CrossoverProcessGroup) -> int:
        barrier = None
        if group.rank() > 0:
            barrier = group.barrier()
            group.send([torch.ones(1)], 0, 0).wait()
        else:
            for other in range(1, group.size()):
                group.recv([torch.empty(1)], other, 0).wait()
            arrived.append(0)
            barrier = group.barrier()
        barrier.wait()
        return len(arrived)

    assert in_groups(3, work) == [1, 1, 1]


def test_tensors_that_are_not_contiguous_are_read_and_written() -> None:
    def work(group: CrossoverProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
        rank = group.rank()
        summed = values(rank, 12).view(3, 4).t()
        outputs = torch.empty(4, 2)
        group.allreduce([summed], options()).wait()
        group.allgather([list(outputs.unbind(1))], [values(rank, 8)[::2]]).wait()
        return summed, outputs

    for summed, outputs in in_groups(2, work):
        assert torch.equal(summed, of_all(2, 12).sum(0).view(3, 4).t())
        assert torch.equal(outputs, of_all(2, 8)[:, ::2].t())


def test_a_work_is_completed_with_its_future_and_dropped_ones_still_move() -> None:
    def work(group: CrossoverProcessGroup) -> torch.Tensor:
        dropped, kept = values(group.rank(), CHUNK), values(group.rank(), 10)
        group.allreduce([dropped], options())
        last = group.allreduce([kept], options())
        value = last.get_future().wait()
        assert last.is_completed()
        assert last.is_success()
        assert last.exception() is None
        assert last.get_future() is last.get_future()
        group.barrier().get_future().wait()
        return torch.cat([dropped, value[0]])

    wanted = torch.cat([of_all(2, CHUNK).sum(0), of_all(2, 10).sum(0)])
    assert all(torch.equal(found, wanted) for found in in_groups(2, work))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: g.recv_anysource([torch.ones(1)], 0), NotImplementedError, "pass src="),
        (lambda g: g.monitored_barrier(), NotImplementedError, "barrier()"),
        (lambda g: g.send([torch.ones(1)], 0, 0), cc.InvalidArgument, "another rank"),
        (
            lambda g: g.allreduce([torch.ones(2, dtype=torch.int32)], options(dist.ReduceOp.AVG)),
            cc.InvalidArgument,
            "'average' has no meaning for elements of int32",
        ),
        (
            lambda g: g.allreduce([torch.ones(2)], options(dist.ReduceOp.BAND)),
            cc.InvalidArgument,
            "'and' has no meaning for elements of float32",
        ),
        (
            lambda g: g.allreduce([torch.ones(2, 2).to_sparse()], options()),
            cc.InvalidArgument,
            "all_reduce: expected a dense tensor",
        ),
        (
            lambda g: g.allreduce([torch.ones(2, device="meta")], options()),
            cc.DeviceError,
            "all_reduce: backend 'crossover' moves tensors in host memory, got one on meta",
        ),
        (
            lambda g: g.allgather([[torch.ones(2)]], [torch.ones(3)]),
            cc.InvalidArgument,
            "all_gather: output 0 has 2 elements, this rank's input 3",
        ),
        (
            lambda g: g.allgather([[torch.ones(2)]], [torch.ones(2).int()]),
            cc.InvalidArgument,
            "all_gather: expected tensors of one dtype, got float32, int32",
        ),
    ],
)
def test_what_is_not_supported_says_so_by_name(
    call: Callable[[Any], object], error: type[Exception], message: str
) -> None:
    def work(group: CrossoverProcessGroup) -> None:
        with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
            call(group)

    in_groups(1, work)
