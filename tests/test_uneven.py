"""Uneven inputs: a rank without data serves its peers, and all end alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from group_cases import OVERLAPS, assert_equal_bits, inputs_of, loss_of, replicas_of, sgd
from models import mlp
from ranks import (
    DenseMixing,
    assert_states_close,
    joined_ranks,
    lone_rank,
    run_joined,
    run_ranks,
    state_of,
)
from torch import nn

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import CrossoverError, InvalidArgument

LENGTHS = (5, 2, 3)


def wrap(context: Context, model: nn.Module, config: GossipConfig) -> DistributedDataParallel:
    return DistributedDataParallel(model, gossip=config, context=context, init_sync=False)


def reference(config: GossipConfig) -> list[nn.Module]:
    """Plain replicas, of which those without data step no more."""
    plain, inputs = copy.deepcopy(replicas_of(3)), inputs_of(3)
    optimizers = [sgd(model) for model in plain]
    mixing = DenseMixing(plain, config)
    for index in range(max(LENGTHS)):
        active = [rank for rank in range(3) if index < LENGTHS[rank]]
        for rank in active:
            optimizers[rank].zero_grad()
            loss_of(plain[rank], inputs[rank][index]).backward()
        if config.overlap == "backward":
            mixing.mix()
        for rank in active:
            optimizers[rank].step()
        if config.overlap != "backward" and (index + 1) % config.interval == 0:
            mixing.mix()
    return plain


def train(config: GossipConfig, **options: Any) -> list[nn.Module]:
    replicas, inputs = copy.deepcopy(replicas_of(3)), inputs_of(3)

    def work(context: Context) -> None:
        rank = context.launch.rank
        ddp = wrap(context, replicas[rank], config)
        optimizer = sgd(ddp)
        with ddp.join(**options):
            for x in inputs[rank][: LENGTHS[rank]]:
                optimizer.zero_grad()
                loss_of(ddp, x).backward()
                optimizer.step()
        assert not context.engine.is_open(0)

    run_ranks(3, work)
    return replicas


@pytest.mark.parametrize("overlap", [*OVERLAPS, "fused"])
def test_a_rank_without_data_is_still_mixed_until_the_last_has_none(overlap: Overlap) -> None:
    config = GossipConfig(overlap=overlap)
    for given, wanted in zip(train(config), reference(config), strict=True):
        assert_states_close(state_of(given), state_of(wanted))


def test_rounds_that_an_interval_leaves_out_are_counted() -> None:
    config = GossipConfig(overlap="none", interval=2)
    for given, wanted in zip(train(config), reference(config), strict=True):
        assert_states_close(state_of(given), state_of(wanted))


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_averages_divide_by_all_ranks_or_by_those_with_data(
    overlap: Overlap, by_size: bool
) -> None:
    config = GossipConfig(groups="world", overlap=overlap)
    given = train(config, divide_by_initial_world_size=by_size)
    assert_equal_bits(given)
    wanted = all_reduced(by_size=by_size)
    assert_states_close(state_of(given[0]), state_of(wanted))


def all_reduced(*, by_size: bool) -> nn.Module:
    """What all have at the end: the replica of rank 0, which has the most data."""
    plain, inputs = copy.deepcopy(replicas_of(3)), inputs_of(3)
    model, optimizer = plain[0], sgd(plain[0])
    for index in range(max(LENGTHS)):
        active = [rank for rank in range(3) if index < LENGTHS[rank]]
        optimizer.zero_grad()
        divisor = 3 if by_size else len(active)
        total = sum(loss_of(model, inputs[rank][index]) for rank in active) / divisor
        torch.as_tensor(total).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("gossip", ["crossover", "allreduce"])
def test_all_ranks_raise_when_one_ends_early_and_can_go_on(gossip: str) -> None:
    def work(context: Context) -> int:
        rank = context.launch.rank
        ddp = DistributedDataParallel(mlp(4, 8, 3), gossip=gossip, context=context, init_sync=False)
        optimizer = sgd(ddp)

        def epoch(num_batches: int) -> None:
            with ddp.join(throw_on_early_termination=True):
                for _ in range(num_batches):
                    optimizer.zero_grad()
                    loss_of(ddp, torch.ones(2, 4)).backward()
                    optimizer.step()

        with pytest.raises(RuntimeError, match="exhausted all inputs"):
            epoch(LENGTHS[rank] + 50 * (rank == 0))
        epoch(2)
        return ddp._hooks.num_rounds if ddp._hooks is not None else 0

    rounds = run_ranks(3, work)
    assert len(set(rounds)) == 1
    assert rounds[0] < 40


def test_even_inputs_raise_nothing() -> None:
    def work(context: Context) -> None:
        ddp = wrap(context, mlp(4, 8, 3), GossipConfig())
        optimizer = sgd(ddp)
        with ddp.join(throw_on_early_termination=True):
            for _ in range(20):
                loss_of(ddp, torch.ones(2, 4)).backward()
                optimizer.step()

    run_ranks(3, work)


def test_a_peer_that_fails_ends_the_service() -> None:
    with joined_ranks(2) as contexts:

        def work(context: Context) -> None:
            ddp = wrap(context, mlp(4, 8, 3), GossipConfig())
            if context.launch.rank == 1:
                context.engine.fail("ValueError: bad batch")
                return
            with pytest.raises(CrossoverError, match="bad batch"), ddp.join():
                pass

        run_joined(contexts, work)


def test_only_one_model_at_a_time_joins_and_the_error_says_what_to_use() -> None:
    def work(context: Context) -> None:
        first, second = (wrap(context, mlp(4, 3), GossipConfig()) for _ in range(2))
        with (
            first.join(),
            pytest.raises(InvalidArgument, match=r"algorithms\.Join"),
            second.join(),
        ):
            pass

    run_ranks(2, work)


def test_groups_that_gossip_are_refused() -> None:
    def work(context: Context) -> None:
        ddp = wrap(context, mlp(4, 3), GossipConfig(groups=1))
        with pytest.raises(InvalidArgument, match="got several groups"), ddp.join():
            pass

    run_ranks(2, work)


@pytest.mark.parametrize("enable", [True, False])
def test_one_rank_alone_joins_nobody(enable: bool) -> None:
    ddp = wrap(lone_rank(), mlp(4, 3), GossipConfig())
    with ddp.join(enable=enable):
        ddp(torch.ones(1, 4)).sum().backward()


@pytest.mark.parametrize("gossip", ["crossover", "allreduce"])
def test_the_hook_of_torchs_join_takes_part_in_one_step_of_the_others(gossip: str) -> None:
    def work(context: Context) -> tuple[int, list[bool]]:
        rank = context.launch.rank
        ddp = DistributedDataParallel(mlp(4, 8, 3), gossip=gossip, context=context, init_sync=False)
        optimizer, hook = sgd(ddp), ddp.join_hook()
        for index in range(3):
            if index < 3 - rank:
                loss_of(ddp, torch.ones(2, 4)).backward()
                optimizer.step()
            else:
                hook.main_hook()
        hook.post_hook(is_last_joiner=rank == 0)
        assert ddp._hooks is not None
        return ddp._hooks.num_rounds, [bool(p.isfinite().all()) for p in ddp.parameters()]

    assert run_ranks(2, work) == [(3, [True] * 4)] * 2
