"""init() and shutdown(), alone and among processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
from spawn import free_port, run_ranks
from torch import nn
from torch._C._distributed_c10d import HashStore

from crossover_comm import _C, context
from crossover_comm.collectives import allreduce, barrier
from crossover_comm.errors import CrossoverError, InvalidArgument, TransportError

LAUNCHERS = ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launcher, and nothing left initialised."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    context.shutdown()


def test_before_init_a_call_says_what_to_do() -> None:
    assert not context.is_initialized()
    for call in (context.rank, context.size, context.local_rank, context.local_size, barrier):
        with pytest.raises(CrossoverError, match=r"call crossover_comm.init\(\) first"):
            call()


def test_without_a_launcher_there_is_one_rank() -> None:
    context.init()
    assert context.is_initialized()
    assert (context.rank(), context.size()) == (0, 1)
    assert (context.local_rank(), context.local_size()) == (0, 1)
    barrier()


def test_one_rank_needs_no_socket_and_no_store() -> None:
    context.init()
    here = context.current_context()
    assert here.group.store is None
    assert here.gloo is None


def test_init_twice_with_the_same_arguments_changes_nothing() -> None:
    context.init(timeout=20)
    first = context.current_context()
    context.init(timeout=timedelta(seconds=20))
    assert context.current_context() is first


def test_init_twice_with_other_arguments_is_refused() -> None:
    context.init(timeout=20)
    with pytest.raises(InvalidArgument, match=r"timeout_s=30.0 \(before: 20.0\)"):
        context.init()


def test_shutdown_can_be_repeated_and_init_may_follow() -> None:
    context.shutdown()
    context.init()
    context.shutdown()
    context.shutdown()
    assert not context.is_initialized()
    context.init(timeout=10)
    assert context.is_initialized()


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), timedelta(0)])
def test_a_timeout_is_a_number_of_seconds_above_zero(timeout: float | timedelta) -> None:
    with pytest.raises(InvalidArgument, match=r"timeout: expected a number of seconds > 0"):
        context.init(timeout=timeout)


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(
        InvalidArgument, match=r"expected 'auto', 'nccl', 'shm' or 'tcp', got 'rdma'"
    ):
        context.init(transport="rdma")


def test_ranks_that_never_come_are_named() -> None:
    with pytest.raises(TransportError, match=r"ranks \[1, 2\] did not call it within 0.2 s"):
        context.init(rank=0, size=3, store=HashStore(), timeout=0.2)
    assert not context.is_initialized()


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(TransportError, match=r"rank 1 cannot reach the store of rank 0 at 127"):
        context.init(rank=1, size=2, timeout=0.2)


def test_synchronizers_run_until_they_are_removed() -> None:
    context.init()
    here = context.current_context()
    seen: list[nn.Module] = []
    remove = here.add_synchronizer(seen.append)
    model = nn.Linear(1, 1)
    here.synchronize(model)
    remove()
    remove()
    here.synchronize(model)
    assert seen == [model]


def gossip(rounds: int) -> list[float]:
    """Mixes one number over a ring; what it is after each round."""
    engine = context.current_context().engine
    number = torch.full((1,), float(context.rank()))
    plan = _C.SegmentPlan([("all", "float32", [1], ["x"])], "float32", [0])
    index = engine.add_plan(plan, _C.complete_schedule(context.size()), 0)
    values = []
    for _ in range(rounds):
        engine.open_round(index, [number.data_ptr()])
        engine.close_round(index, [number.data_ptr()])
        values.append(float(number))
    return values


def meet_gossip_and_meet_again(transport: str) -> None:
    for attempt in range(2):
        context.init(transport=transport, timeout=30.0 + attempt)
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        assert (context.rank(), context.size()) == (rank, size)
        assert (context.local_rank(), context.local_size()) == (rank, size)
        assert gossip(2)[-1] == pytest.approx((size - 1) / 2, rel=1e-5)
        assert allreduce(torch.ones(1), average=False).tolist() == [size]
        barrier()
        context.shutdown()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_processes_meet_gossip_leave_and_meet_again(transport: str) -> None:
    run_ranks(meet_gossip_and_meet_again, 3, transport)


def take_the_place_from_torch() -> None:
    import torch.distributed as dist

    rank = int(os.environ.pop("RANK"))
    size = int(os.environ.pop("WORLD_SIZE"))
    address = f"tcp://127.0.0.1:{os.environ.pop('MASTER_PORT')}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    context.init()
    assert (context.rank(), context.size(), context.local_size()) == (rank, size, size)
    gossip(1)
    both = torch.ones(1)
    dist.all_reduce(both)
    assert torch.equal(both, allreduce(torch.ones(1), average=False))
    dist.destroy_process_group()


def test_a_default_process_group_supplies_rank_size_and_store() -> None:
    run_ranks(take_the_place_from_torch, 2)


def fail_on_rank_1() -> None:
    context.init()
    gossip(1)
    barrier()
    if context.rank() == 1:
        raise ValueError("the data are gone")
    with pytest.raises(CrossoverError, match=r"ValueError: the data are gone"):
        gossip(1)
    with pytest.raises(TransportError, match=r"rank 1 will not call it: .*the data are gone"):
        barrier()


def test_an_uncaught_exception_is_told_to_the_peers() -> None:
    results = run_ranks(fail_on_rank_1, 3, check=False)
    assert [result.exit_code for result in results] == [0, 1, 0], results
    assert "ValueError: the data are gone" in results[1].stderr


def disagree() -> None:
    context.init(stall_timeout=100.0 + int(os.environ["RANK"]) // 2)


def test_another_configuration_is_an_error_on_every_rank() -> None:
    for result in run_ranks(disagree, 3, check=False):
        assert result.exit_code == 1
        assert "stall_timeout: rank 0 has 100.0, rank 2 has 101.0" in result.stderr


def fork_and_go_on() -> None:
    context.init()
    barrier()
    for child_shuts_down in (False, True):
        child = os.fork()
        if child == 0:
            if child_shuts_down:
                context.shutdown()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
    gossip(2)
    barrier()


def test_a_forked_child_that_ends_harms_nobody() -> None:
    run_ranks(fork_and_go_on, 2)
