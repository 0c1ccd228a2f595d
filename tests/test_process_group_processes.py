"""torch's DistributedDataParallel and functions over backend "crossover", between processes."""

from __future__ import annotations

import itertools
import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import mlp
from spawn import run_ranks, start_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import crossover_comm as cc

SIZES = (2, 3, 4)
TRANSPORTS = ("shm", "tcp")
NUM_STEPS = 5
BATCH = 12  # of all ranks together


def join(transport: str, timeout_s: float = 60.0) -> None:
    dist.init_process_group(
        backend="crossover",
        timeout=timedelta(seconds=timeout_s),
        pg_options=cc.ProcessGroupOptions(transport=transport),
    )


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 6, generator=generator)
    return x, torch.randint(0, 3, (BATCH,), generator=generator)


def train(model: nn.Module, rank: int, size: int) -> torch.Tensor:
    """All parameters after some steps on this rank's share of every batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(NUM_STEPS):
        x, y = data(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rank::size]), y[rank::size])
        loss.backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def new_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(6, 40, 40, 3)


def use_everything(folder: str) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for transport in TRANSPORTS:
        join(transport)
        model = DistributedDataParallel(new_model(rank), bucket_cap_mb=0.005)
        found = {"ddp": train(model, rank, size), **objects(rank, size), **subgroups(rank, size)}
        found |= functions(rank, size)
        if transport == "shm":
            found["gossip"] = gossip_beside(rank)
        torch.save(found, Path(folder) / f"{transport}-{rank}.pt")
        dist.destroy_process_group()


def objects(rank: int, size: int) -> dict[str, object]:
    gathered: list[object] = [None] * size
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * 1000 * rank})
    shared: list[object] = [{"from": rank}]
    dist.broadcast_object_list(shared, src=size - 1)
    return {"gathered": gathered, "shared": shared}


def subgroups(rank: int, size: int) -> dict[str, object]:
    """Two groups that share a rank, used in turns."""
    groups = [dist.new_group([0, 1]), dist.new_group([size - 1, 0])]
    sums: list[float | None] = []
    for group in groups:
        total = torch.tensor([float(rank + 1)])
        if dist.get_rank(group) >= 0:
            dist.all_reduce(total, group=group)
        sums.append(total.item())
    return {"sums": sums}


def functions(rank: int, size: int) -> dict[str, object]:
    """By torch's own functions: what their names and arguments become is torch's affair."""
    following, before = (rank + 1) % size, (rank - 1) % size
    received, mean = torch.empty(3), torch.full((4,), float(rank))
    works = [
        dist.isend(torch.full((3,), float(rank)), following, tag=5),
        dist.irecv(received, before, tag=5),
        dist.all_reduce(mean, op=dist.ReduceOp.AVG, async_op=True),
    ]
    for work in works:
        assert work is not None
        work.wait()
    joined, part = torch.empty(size), torch.empty(1)
    dist.all_gather_into_tensor(joined, torch.tensor([float(rank)]))
    dist.reduce_scatter_tensor(part, joined.clone())
    swapped = torch.empty(size)
    dist.all_to_all_single(swapped, torch.full((size,), float(rank)))
    dist.barrier()
    with pytest.raises(NotImplementedError, match="pass src="):
        dist.recv(received)
    return {"received": received, "mean": mean, "part": part, "swapped": swapped}


def gossip_beside(rank: int) -> torch.Tensor:
    """cc.init() takes rank, size and store from the default group; both work side by side."""
    cc.init()
    wrapped = cc.DistributedDataParallel(new_model(rank), gossip="allreduce")
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(2):
        x, y = data(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        dist.all_reduce(torch.ones(1))
    cc.synchronize(wrapped)
    flat = torch.cat([parameter.detach().flatten() for parameter in wrapped.parameters()])
    cc.shutdown()
    return flat


@pytest.fixture(scope="module", params=SIZES)
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, object]]]:
    """By transport and rank, what the processes came to."""
    size: int = request.param
    folder = tmp_path_factory.mktemp(f"size{size}")
    run_ranks(use_everything, size, str(folder))
    return {
        transport: [torch.load(folder / f"{transport}-{rank}.pt") for rank in range(size)]
        for transport in TRANSPORTS
    }


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_torchs_ddp_trains_replicas_that_are_equal_bit_for_bit(
    found: dict[str, list[dict[str, torch.Tensor]]], transport: str
) -> None:
    replicas = [of_rank["ddp"] for of_rank in found[transport]]
    assert all(torch.equal(replica, replicas[0]) for replica in replicas)
    whole = train(new_model(0), 0, 1)
    torch.testing.assert_close(replicas[0], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_objects_and_subgroups_and_functions_do_as_with_any_backend(
    found: dict[str, list[dict[str, object]]], transport: str
) -> None:
    size = len(found[transport])
    pairs = [(0, 1), (size - 1, 0)]
    for rank, of_rank in enumerate(found[transport]):
        assert of_rank["gathered"] == [{"rank": r, "text": "x" * 1000 * r} for r in range(size)]
        assert of_rank["shared"] == [{"from": size - 1}]
        wanted = [sum(r + 1.0 for r in set(p)) if rank in p else rank + 1.0 for p in pairs]
        assert of_rank["sums"] == wanted
        for name, value in {
            "received": [float((rank - 1) % size)] * 3,
            "mean": [(size - 1) / 2] * 4,
            "part": [float(size * rank)],
            "swapped": [float(r) for r in range(size)],
        }.items():
            tensor = of_rank[name]
            assert isinstance(tensor, torch.Tensor)
            assert tensor.tolist() == pytest.approx(value), name


def test_gossip_works_beside_torchs_collectives(
    found: dict[str, list[dict[str, torch.Tensor]]],
) -> None:
    replicas = [of_rank["gossip"] for of_rank in found["shm"]]
    assert all(torch.equal(replica, replicas[0]) for replica in replicas)


def reduce_for_ever(transport: str) -> None:
    join(transport, timeout_s=100.0)
    tensor = torch.ones(1 << 20)
    for step in itertools.count():
        dist.all_reduce(tensor, op=dist.ReduceOp.AVG)
        if step == 3:
            print("reducing", flush=True)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_survivor_names_the_rank_that_was_killed(transport: str) -> None:
    with start_ranks(reduce_for_ever, 3, transport) as ranks:
        for rank in range(3):
            ranks.wait_for_line(rank, "reducing")
        ranks.send_signal(1, signal.SIGKILL)
        results = ranks.wait()
    for result in (results[0], results[2]):
        assert "TransportError: all_reduce(average) of 1048576 float32: " in result.stderr
        assert "rank 1: connection ended without a farewell: " in result.stderr
        assert not result.timed_out
