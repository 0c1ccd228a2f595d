"""Groups of ranks that gossip in place of ranks, and rounds at intervals.

Ranks start from parameters of their own; the members of a group take those of its first.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from group_cases import (
    NUM_STEPS,
    OVERLAPS,
    WIDTHS,
    assert_equal_bits,
    flat_reference,
    inputs_of,
    loss_of,
    merged,
    replicas_of,
    sgd,
    train,
)
from models import mlp
from ranks import assert_states_close, run_ranks, state_of
from spawn import run_ranks as run_processes

import crossover_comm as cc
from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument
from crossover_comm.groups import Hierarchy, groups_of, shards_of
from crossover_comm.hooks import synchronize
from crossover_comm.segments import cut, trainable_parameters

HIERARCHIES: tuple[Hierarchy, ...] = ("sharded", "root")


# --- groups that gossip


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(("size", "num_groups"), [(4, 2), (6, 3), (8, 2), (8, 4)])
def test_groups_train_as_ranks_with_larger_batches_sharded_or_through_roots(
    size: int, num_groups: int, overlap: Overlap
) -> None:
    config = GossipConfig(groups=size // num_groups, overlap=overlap, segments=200)
    replicas, inputs = replicas_of(size), inputs_of(size)
    groups = groups_of(size // num_groups, size, list)
    start = [replicas[members[0]] for members in groups]
    wanted = flat_reference(start, merged(inputs, groups), config)
    for hierarchy in HIERARCHIES:
        own = copy.deepcopy(replicas)
        train(own, inputs, dataclasses.replace(config, hierarchy=hierarchy))
        for members, flat in zip(groups, wanted, strict=True):
            assert_equal_bits([own[rank] for rank in members])
            assert_states_close(state_of(own[members[0]]), state_of(flat))


def test_groups_of_unlike_sizes_count_alike_in_the_mean() -> None:
    groups = ((4, 0, 2), (1,), (3,))
    config = GossipConfig(groups=groups, overlap="none")
    replicas, inputs = replicas_of(5), inputs_of(5)
    start = [replicas[members[0]] for members in groups]
    wanted = flat_reference(start, merged(inputs, groups), config)
    train(replicas, inputs, config)
    for members, flat in zip(groups, wanted, strict=True):
        assert_equal_bits([replicas[rank] for rank in members])
        assert_states_close(state_of(replicas[members[0]]), state_of(flat))


def test_members_of_a_group_share_its_traffic() -> None:
    """Gradients: 2 (g-1) models and flags in a group, a flag per tensor and one per segment.

    Gossip: one model, and g - 1 copies of it.
    """
    replicas, inputs = replicas_of(4), inputs_of(4)
    numel = sum(p.numel() for p in replicas[0].parameters())
    segments = cut(replicas[0], trainable_parameters(replicas[0]), "blocks")
    num_flags = sum(len(segment.tensors) + 1 for segment in segments)
    for hierarchy in HIERARCHIES:
        config = GossipConfig(groups=2, hierarchy=hierarchy, overlap="none")
        counted = train(copy.deepcopy(replicas), inputs, config)
        sent = [c["payload_sent_bytes"] // (4 * NUM_STEPS) for c in counted]
        of_group = 2 * (numel + num_flags) + 2 * numel
        assert sent[0] + sent[1] == sent[2] + sent[3] == of_group
        roots = (numel + num_flags) + 2 * numel
        assert (sent[0] == roots) == (hierarchy == "root")


def hierarchies(folder: str, *transports: str) -> None:
    """A worker: trains in groups over each transport."""
    for transport in transports:
        cc.init(transport=transport, timeout=60.0)
        for name, config in process_configs():
            model = replicas_of(cc.size())[cc.rank()]
            ddp = cc.DistributedDataParallel(model, gossip=config, init_sync=False)
            optimizer = sgd(ddp)
            for x in inputs_of(cc.size())[cc.rank()]:
                optimizer.zero_grad()
                loss_of(ddp, x).backward()
                optimizer.step()
            cc.synchronize(ddp)
            torch.save(state_of(model), Path(folder) / f"{transport}-{name}-{cc.rank()}.pt")
            del ddp, optimizer
        cc.shutdown()


def process_configs() -> Iterator[tuple[str, GossipConfig]]:
    for overlap in OVERLAPS:
        yield overlap, GossipConfig(groups=2, overlap=overlap)
    yield "host", GossipConfig(groups="host")


@pytest.mark.parametrize("size", [4, 6])
def test_processes_in_groups_train_as_threads_do_over_shared_memory_and_tcp(
    size: int, tmp_path: Path
) -> None:
    run_processes(hierarchies, size, str(tmp_path), "shm", "tcp")
    for name, config in process_configs():
        replicas = replicas_of(size)
        train(replicas, inputs_of(size), config)
        for rank, model in enumerate(replicas):
            for transport in ("shm", "tcp"):
                state = torch.load(tmp_path / f"{transport}-{name}-{rank}.pt", weights_only=True)
                for key, value in state_of(model).items():
                    assert torch.equal(state[key], value), (transport, name, key)


# --- intervals


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("topology", ["complete", "crossover"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_local_sgd_trains_as_the_dense_reference(
    size: int, topology: str, overlap: Overlap
) -> None:
    config = GossipConfig(topology=topology, overlap=overlap, interval=3)
    replicas, inputs = replicas_of(size), inputs_of(size, 7)
    wanted = flat_reference(replicas, inputs, config)
    train(replicas, inputs, config)
    for model, plain in zip(replicas, wanted, strict=True):
        assert_states_close(state_of(model), state_of(plain))


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_an_interval_counts_synced_steps_only(overlap: Overlap) -> None:
    config = GossipConfig(overlap=overlap, interval=2)

    def work(context: Context) -> int:
        ddp = DistributedDataParallel(mlp(*WIDTHS), gossip=config, context=context, init_sync=False)
        optimizer = sgd(ddp)
        for _ in range(5):
            with ddp.no_sync():
                loss_of(ddp, torch.ones(2, 4)).backward()
            loss_of(ddp, torch.ones(2, 4)).backward()
            optimizer.step()
        synchronize(ddp)
        return context.engine.round(0, 0)

    assert run_ranks(2, work) == [2, 2]


# --- rules


def test_rules_name_the_groups_they_mean() -> None:
    assert groups_of("world", 3, list) == ((0, 1, 2),)
    assert groups_of(2, 4, list) == ((0, 1), (2, 3))
    assert groups_of("host", 4, lambda: ["a", "b", "a", "c"]) == ((0, 2), (1,), (3,))
    assert groups_of(((1,), (0, 2)), 3, list) == ((1,), (0, 2))


@pytest.mark.parametrize(
    ("rule", "message"),
    [(2, "expected a divisor of the 3 ranks, got 2"), (((0,), (2,)), "ranks 0..2 in one group")],
)
def test_groups_that_do_not_fit_the_job_are_refused(rule: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        groups_of(rule, 3, list)


def test_shards_are_whole_tensors_and_balanced_over_the_segments() -> None:
    segments = [([6, 1, 1], 4), ([3, 3], 4), ([0], 4), ([2, 2, 2, 2], 4)]
    shards = shards_of(segments, 2)
    assert shards == [[(0, 6), (6, 8)], [(3, 6), (0, 3)], [(0, 0), (0, 0)], [(4, 8), (0, 4)]]
