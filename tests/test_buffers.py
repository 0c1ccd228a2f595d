"""Buffers: local, averaged with the rounds of the parameters, or those of rank 0."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from group_cases import inputs_of, loss_of, sgd
from models import mlp
from ranks import DenseMixing, assert_states_close, lone_rank, run_ranks, state_of
from torch import nn

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import CrossoverError, InvalidArgument
from crossover_comm.hooks import synchronize
from crossover_comm.optimizer import DistributedOptimizer
from crossover_comm.topology import Table, mixing_matrix

OVERLAPS: tuple[Overlap, ...] = ("none", "forward", "backward", "fused")
STATISTICS = ("1.running_mean", "1.running_var")
LENGTHS = (2, 6, 4)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def replicas_of(size: int) -> list[nn.Module]:
    torch.manual_seed(7)
    replicas = [normed() for _ in range(size)]
    for rank, replica in enumerate(replicas):
        replica.get_buffer("1.running_mean").fill_(rank)
        replica.get_buffer("1.num_batches_tracked").fill_(10 * rank)
    return replicas


def wrap(context: Context, model: nn.Module, gossip: Any, **options: Any) -> Any:
    return DistributedDataParallel(
        model, gossip=gossip, context=context, init_sync=False, **options
    )


def train(replicas: list[nn.Module], gossip: Any, **options: Any) -> None:
    inputs = inputs_of(len(replicas))

    def work(context: Context) -> None:
        rank = context.launch.rank
        ddp = wrap(context, replicas[rank], gossip, **options)
        optimizer = sgd(ddp)
        for x in inputs[rank]:
            optimizer.zero_grad()
            loss_of(ddp, x).backward()
            optimizer.step()
        synchronize(ddp)

    run_ranks(len(replicas), work)


def reference(
    replicas: list[nn.Module],
    config: GossipConfig,
    *,
    before_forward: Callable[[list[nn.Module]], None] = lambda _: None,
    averages: bool = False,
) -> list[nn.Module]:
    """Plain replicas; with `averages`, buffers as of the round's begin mixed by the first draw."""
    plain = copy.deepcopy(replicas)
    inputs, optimizers = inputs_of(len(plain)), [sgd(model) for model in plain]
    mixing, buffers = DenseMixing(plain, config), DenseBuffers(plain, config)

    def mix(opened: list[dict[str, torch.Tensor]]) -> None:
        if averages:
            buffers.mix(opened, mixing.rounds)
        mixing.mix()

    for step in range(inputs[0].shape[0]):
        before_forward(plain)
        opened = [state_of(model) for model in plain]
        for model, optimizer, x in zip(plain, optimizers, inputs, strict=True):
            optimizer.zero_grad()
            loss_of(model, x[step]).backward()
        if config.overlap == "backward":
            mix(opened)
        for optimizer in optimizers:
            optimizer.step()
        if config.overlap != "backward":
            mix([state_of(model) for model in plain])
    return plain


class DenseBuffers:
    """b <- b + (W - I) s, with W of the first segment."""

    def __init__(self, replicas: list[nn.Module], config: GossipConfig) -> None:
        self._replicas = replicas
        self._schedule = config.schedule(len(replicas), 1)

    def mix(self, sent: list[dict[str, torch.Tensor]], round_number: int) -> None:
        matrix = torch.from_numpy(mixing_matrix(self._schedule, round_number, 0)).float()
        for name in STATISTICS:
            values = torch.stack([state[name] for state in sent])
            change = matrix @ values - values
            for replica, own in zip(self._replicas, change, strict=True):
                replica.get_buffer(name).add_(own)


def take_first(replicas: list[nn.Module]) -> None:
    """Every replica gets the buffers of the first."""
    for replica in replicas[1:]:
        for name, buffer in replica.named_buffers():
            buffer.copy_(replicas[0].get_buffer(name))


def take_mean(replicas: list[nn.Module]) -> None:
    """Every replica gets the mean of the statistics."""
    for name in STATISTICS:
        mean = torch.stack([replica.get_buffer(name) for replica in replicas]).mean(0)
        for replica in replicas:
            replica.get_buffer(name).copy_(mean)


def assert_all_close(given: list[nn.Module], wanted: list[nn.Module]) -> None:
    for own, other in zip(given, wanted, strict=True):
        assert_states_close(state_of(own), state_of(other))


# --- under gossip


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_statistics_are_mixed_as_the_parameters_and_counts_stay_local(
    overlap: Overlap, size: int
) -> None:
    config = GossipConfig(overlap=overlap, buffers="average")
    replicas = replicas_of(size)
    wanted = reference(replicas, config, averages=True)
    train(replicas, config)
    assert_all_close(replicas, wanted)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_gossip_may_take_the_buffers_of_rank_0_in_every_round(overlap: Overlap, size: int) -> None:
    config = GossipConfig(overlap=overlap, buffers="broadcast")
    replicas = replicas_of(size)
    wanted = reference(replicas, config, before_forward=take_first)
    train(replicas, config)
    assert_all_close(replicas, wanted)


def test_under_gossip_buffers_are_local_by_default() -> None:
    config = GossipConfig(overlap="none")
    replicas = replicas_of(2)
    wanted = reference(replicas, config)
    train(replicas, config)
    assert_all_close(replicas, wanted)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_wrapped_optimizer_averages_buffers_too(overlap: Overlap) -> None:
    config = GossipConfig(overlap=overlap, buffers="average")
    replicas, inputs = replicas_of(2), inputs_of(2)
    wanted = reference(replicas, config, averages=True)

    def work(context: Context) -> None:
        model = replicas[context.launch.rank]
        optimizer = DistributedOptimizer(sgd(model), model, gossip=config, context=context)
        for x in inputs[context.launch.rank]:
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
        synchronize(model)

    run_ranks(2, work)
    assert_all_close(replicas, wanted)


def test_the_mean_of_statistics_is_kept_under_accumulation() -> None:
    """Forwards under no_sync write buffers while an exchange of them is open."""
    replicas = replicas_of(3)
    config = GossipConfig(buffers="average")

    def work(context: Context) -> torch.Tensor:
        model = replicas[context.launch.rank]
        ddp = wrap(context, model, config)
        ddp.module[1].momentum = 0.0  # no forward changes the mean
        optimizer = sgd(ddp)
        for _ in range(4):
            with ddp.no_sync():
                loss_of(ddp, torch.ones(2, 4)).backward()
            loss_of(ddp, torch.ones(2, 4)).backward()
            optimizer.step()
        return model.get_buffer("1.running_mean").clone()

    given = torch.stack(run_ranks(3, work))
    torch.testing.assert_close(given.mean(0), torch.ones(8))
    assert (given - torch.arange(3.0)[:, None]).abs().max() > 0.1


# --- where gradients are averaged


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("overlap", OVERLAPS[:3])
def test_where_gradients_are_averaged_all_have_the_buffers_of_rank_0_as_in_torch(
    overlap: Overlap, size: int
) -> None:
    config = GossipConfig(groups="world", overlap=overlap)
    replicas = replicas_of(size)
    wanted = all_reduced(replicas, take_first)
    train(replicas, config)
    assert_all_close(replicas, wanted)


def test_where_gradients_are_averaged_statistics_may_be_too() -> None:
    replicas = replicas_of(3)
    wanted = all_reduced(replicas, take_mean)
    train(replicas, GossipConfig(groups="world", buffers="average"))
    assert_all_close(replicas, wanted)


@pytest.mark.filterwarnings("ignore:broadcast_buffers is deprecated")
@pytest.mark.parametrize("argument", ["broadcast_buffers", "forward_sync_buffers"])
def test_torchs_argument_keeps_buffers_local(argument: str) -> None:
    replicas = replicas_of(2)
    wanted = all_reduced(replicas, lambda _: None)
    train(replicas, "allreduce", **{argument: False})
    assert_all_close(replicas, wanted)


def all_reduced(
    replicas: list[nn.Module], before_forward: Callable[[list[nn.Module]], None]
) -> list[nn.Module]:
    """Plain replicas that start from the first's parameters and step with the mean gradient."""
    plain = copy.deepcopy(replicas)
    for replica in plain[1:]:
        for own, first in zip(replica.parameters(), plain[0].parameters(), strict=True):
            own.data.copy_(first)
    inputs, optimizers = inputs_of(len(plain)), [sgd(model) for model in plain]
    for step in range(inputs[0].shape[0]):
        before_forward(plain)
        for model, optimizer, x in zip(plain, optimizers, inputs, strict=True):
            optimizer.zero_grad()
            loss_of(model, x[step]).backward()
        for parameters in zip(*(model.parameters() for model in plain), strict=True):
            mean = torch.stack([p.grad for p in parameters if p.grad is not None]).mean(0)
            for p in parameters:
                p.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
    return plain


def test_rank_0_may_evaluate_alone() -> None:
    def work(context: Context) -> bool:
        ddp = wrap(context, normed(), "allreduce")
        optimizer = sgd(ddp)
        for _ in range(2):
            loss_of(ddp, torch.ones(2, 4)).backward()
            optimizer.step()
            if context.launch.rank == 0:
                ddp.eval()
                with torch.no_grad():
                    ddp(torch.ones(2, 4))
                ddp.train()
        return bool(ddp.will_sync_module_buffers())

    assert run_ranks(2, work) == [True, True]


def test_a_buffer_that_was_replaced_is_followed() -> None:
    def work(context: Context) -> float:
        ddp = wrap(context, normed(), "allreduce")
        for _ in range(2):
            if context.launch.rank == 0:
                ddp.module[1].running_mean = ddp.module[1].running_mean + 5
            ddp.eval()(torch.ones(2, 4)).sum().backward()
        return float(ddp.module[1].running_mean[0])

    assert run_ranks(2, work) == [10.0, 10.0]


# --- uneven inputs


@pytest.mark.parametrize("config", ["allreduce", GossipConfig(overlap="none", buffers="broadcast")])
def test_when_rank_0_has_no_data_the_buffers_of_the_first_that_has_are_taken(config: Any) -> None:
    replicas, inputs = replicas_of(3), inputs_of(3)

    def work(context: Context) -> None:
        rank = context.launch.rank
        ddp = wrap(context, replicas[rank], config)
        optimizer = sgd(ddp)
        with ddp.join():
            for x in inputs[rank][: LENGTHS[rank]]:
                optimizer.zero_grad()
                loss_of(ddp, x).backward()
                optimizer.step()

    run_ranks(3, work)
    counts = [int(replica.get_buffer("1.num_batches_tracked")) for replica in replicas]
    assert counts == [6, 6, 6]
    for replica in replicas:
        for name in STATISTICS:
            assert torch.equal(replica.get_buffer(name), replicas[1].get_buffer(name))


def test_a_rank_without_any_data_takes_part_in_averages() -> None:
    replicas = replicas_of(2)

    def work(context: Context) -> None:
        ddp = wrap(context, replicas[context.launch.rank], GossipConfig(buffers="average"))
        optimizer = sgd(ddp)
        with ddp.join():
            for _ in range(3 * context.launch.rank):
                loss_of(ddp, torch.ones(2, 4)).backward()
                optimizer.step()

    run_ranks(2, work)
    assert replicas[0].get_buffer("1.running_mean").abs().max() > 0.1


# --- what is refused


def test_unlike_buffers_are_named() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 3)
        model.register_buffer("mask", torch.ones(2 + context.launch.rank))
        with pytest.raises(InvalidArgument, match=r"'mask', shape: rank 0 has \[2\]"):
            wrap(context, model, "allreduce")

    run_ranks(2, work)


def test_ranks_that_want_unlike_things_are_told() -> None:
    def work(context: Context) -> None:
        rule: Any = "average" if context.launch.rank == 0 else "local"
        with pytest.raises(InvalidArgument, match=r'config.buffers: rank 0 has "average"'):
            wrap(context, normed(), GossipConfig(buffers=rule))

    run_ranks(2, work)


def test_push_sum_averages_no_buffers() -> None:
    table = Table(tables=[[[(1, 0.5)], [(0, 0.5)]]], stochasticity="column")

    def work(context: Context) -> None:
        with pytest.raises(InvalidArgument, match=r"buffers='average'.*got push-sum"):
            wrap(context, normed(), GossipConfig(topology=table, buffers="average"))

    run_ranks(2, work)


def test_torchs_argument_and_the_configuration_must_not_contradict() -> None:
    config = GossipConfig(buffers="broadcast")
    with pytest.raises(InvalidArgument, match="forward_sync_buffers: expected True"):
        wrap(lone_rank(), normed(), config, forward_sync_buffers=False)


def test_a_buffer_of_another_shape_than_at_the_start_is_an_error() -> None:
    def work(context: Context) -> None:
        ddp = wrap(context, normed(), "allreduce")

        def replace_and_go_on() -> None:
            for _ in range(2):  # the first rank to see it tells the other
                loss_of(ddp, torch.ones(2, 4)).backward()
                ddp.eval()
                ddp.module[1].running_mean = torch.zeros(5)

        with pytest.raises(CrossoverError, match=r"buffer '1.running_mean': expected .* got"):
            replace_and_go_on()

    run_ranks(2, work)


def test_a_model_without_buffers_exchanges_none() -> None:
    def work(context: Context) -> bool:
        return bool(wrap(context, mlp(4, 3), "allreduce").will_sync_module_buffers())

    assert run_ranks(2, work) == [False, False]
