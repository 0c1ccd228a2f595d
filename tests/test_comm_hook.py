"""Communication hooks: torch's meaning where gradients are averaged, what is sent under gossip."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from group_cases import inputs_of, loss_of, replicas_of, sgd
from models import mlp
from ranks import DenseMixing, assert_states_close, run_ranks, state_of
from spawn import run_ranks as run_processes
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

import crossover_comm as cc
from crossover_comm.comm_bucket import CommBucket
from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.hooks import synchronize
from crossover_comm.topology import mixing_matrix

OVERLAPS: tuple[Overlap, ...] = ("none", "forward", "backward", "fused")
Hook = Callable[[Any, CommBucket], Any]


def wrap(context: Context, model: nn.Module | None = None, gossip: Any = "allreduce") -> Any:
    model = mlp(4, 8, 3) if model is None else model
    return DistributedDataParallel(model, gossip=gossip, context=context, init_sync=False)


def done(tensor: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(tensor)
    return future


# --- where gradients are averaged


class Meeting:
    """Averages buckets of ranks that are threads, as a hook of each."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=60)
        self._given: dict[int, torch.Tensor] = {}

    def mean(self, rank: int, bucket: CommBucket) -> torch.futures.Future[torch.Tensor]:
        self._given[rank] = bucket.buffer()
        self._barrier.wait()
        mean = torch.stack([self._given[r] for r in sorted(self._given)]).mean(0)
        self._barrier.wait()
        return done(mean)


class Branches(nn.Module):
    """One layer that all use, one of some ranks' data, one of nobody; weights of two layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.layers[0].weight = nn.Parameter(torch.arange(16.0).view(4, 4).sin().t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers[0](x)
        return torch.as_tensor(self.layers[1](y) if x[0, 0] > inputs_of(1)[0][0, 0, 0] else y)


@pytest.mark.parametrize("overlap", OVERLAPS[:3])
def test_a_hook_that_averages_gives_what_preset_allreduce_gives(overlap: Overlap) -> None:
    config = GossipConfig(groups="world", overlap=overlap, segments=70)
    meeting, inputs, start = Meeting(2), inputs_of(2), Branches()

    def gradients(context: Context, *, by_hook: bool) -> dict[str, torch.Tensor | None]:
        ddp = wrap(context, copy.deepcopy(start), config)
        if by_hook:
            ddp.register_comm_hook(context.launch.rank, meeting.mean)
        for x in inputs[context.launch.rank][:2]:
            ddp(x).square().mean().backward()
        return {name: p.grad for name, p in ddp.module.named_parameters()}

    def work(context: Context) -> None:
        given, wanted = gradients(context, by_hook=True), gradients(context, by_hook=False)
        assert wanted["layers.2.weight"] is None
        for name, gradient in wanted.items():
            torch.testing.assert_close(given[name], gradient, msg=name)

    run_ranks(2, work)


def test_buckets_come_in_order_with_what_torchs_have_and_the_peers() -> None:
    def work(context: Context) -> None:
        seen = []

        def note(state: str, bucket: CommBucket) -> torch.futures.Future[torch.Tensor]:
            assert state == "state"
            for p, view in zip(bucket.parameters(), bucket.gradients(), strict=True):
                assert p.grad is not None
                assert torch.equal(view, p.grad)
            assert bucket.buffer().numel() == sum(p.numel() for p in bucket.parameters())
            seen.append((bucket.index(), bucket.is_last(), bucket.peers()))
            return done(bucket.buffer())

        ddp = wrap(context, gossip=GossipConfig(groups="world", segments=40))
        ddp.register_comm_hook("state", note)
        loss_of(ddp, torch.ones(2, 4)).backward()
        others = tuple(rank for rank in range(3) if rank != context.launch.rank)
        assert seen == [(i, i == 3, others) for i in range(4)]

    run_ranks(3, work)


def test_what_the_hook_gives_replaces_the_gradients_undivided() -> None:
    def tripled(_: Any, bucket: CommBucket) -> torch.futures.Future[torch.Tensor]:
        bucket.set_buffer(bucket.buffer().double())
        return done(3 * bucket.buffer())

    def work(context: Context) -> None:
        ddp, x = wrap(context), inputs_of(2)[context.launch.rank][0]
        model, plain = ddp.module, copy.deepcopy(ddp.module)
        ddp.register_comm_hook(None, tripled)
        loss_of(ddp, x).backward()
        loss_of(plain, x).backward()
        for p, own in zip(model.parameters(), plain.parameters(), strict=True):
            assert own.grad is not None
            torch.testing.assert_close(p.grad, 3 * own.grad)

    run_ranks(2, work)


def test_a_rank_without_data_hands_over_zeros() -> None:
    meeting, replicas = Meeting(2), replicas_of(2)

    def work(context: Context) -> None:
        rank = context.launch.rank
        ddp = wrap(context, replicas[rank])
        ddp.register_comm_hook(rank, meeting.mean)
        optimizer = sgd(ddp)
        with ddp.join(divide_by_initial_world_size=False):
            for x in inputs_of(2)[rank][: 1 + 2 * rank]:
                optimizer.zero_grad()
                loss_of(ddp, x).backward()
                optimizer.step()

    run_ranks(2, work)
    assert_states_close(state_of(replicas[0]), state_of(replicas[1]), atol=0.0)


def torchs_hooks() -> None:
    """In a process of its own: hooks of torch over gloo against our own averages."""
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    start = nn.Sequential(mlp(4, 8, 3), nn.Linear(3, 5))
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(dist.get_rank()))
    power = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=5)
    hooks: list[tuple[Any, Any, float]] = [
        (None, default_hooks.allreduce_hook, 1e-6),
        (None, default_hooks.fp16_compress_hook, 1e-2),
        (power, powerSGD_hook.powerSGD_hook, 1e-6),
        (None, default_hooks.fp16_compress_wrapper(default_hooks.allreduce_hook), 1e-2),
        (None, None, 0.0),
    ]
    found = []
    for state, hook, _ in hooks:
        ddp = cc.DistributedDataParallel(copy.deepcopy(start), gossip="allreduce")
        if hook is not None:
            ddp.register_comm_hook(state, hook)
        loss_of(ddp, x).backward()
        found.append([p.grad for p in ddp.parameters()])
    for (_, hook, tolerance), given in zip(hooks, found, strict=True):
        for own, wanted in zip(given, found[-1], strict=True):
            torch.testing.assert_close(own, wanted, rtol=tolerance, atol=tolerance, msg=str(hook))
    cc.shutdown()
    dist.destroy_process_group()


def test_hooks_that_torch_ships_work_over_its_process_group() -> None:
    run_processes(torchs_hooks, 2)


# --- under gossip


class HookedMixing(DenseMixing):
    """x <- x + (W - I) hook(x)."""

    def __init__(
        self, replicas: list[nn.Module], config: GossipConfig, hook: Callable[..., torch.Tensor]
    ) -> None:
        super().__init__(replicas, config)
        self._sent = hook

    @torch.no_grad()
    def mix(self) -> None:
        for index, per_rank in enumerate(zip(*self._segments, strict=True)):
            matrix = torch.from_numpy(mixing_matrix(self._schedule, self.rounds, index))
            own = [list(segment.parameters) for segment in per_rank]
            sent = torch.stack([self._sent(torch.cat([t.flatten() for t in ts])) for ts in own])
            for tensors, change in zip(own, matrix @ sent.double() - sent, strict=True):
                for t, part in zip(
                    tensors, change.split([t.numel() for t in tensors]), strict=True
                ):
                    t.add_(part.view_as(t).float())
        self.rounds += 1


def coarse(flat: torch.Tensor) -> torch.Tensor:
    """Multiples of 1/8, and nothing of every third element."""
    sent = (flat * 8).round() / 8
    sent[::3] = 0
    return sent


def train(replicas: Sequence[nn.Module], config: GossipConfig, hook: Hook) -> None:
    inputs = inputs_of(len(replicas))

    def work(context: Context) -> None:
        ddp = wrap(context, replicas[context.launch.rank], config)
        ddp.register_comm_hook(None, hook)
        optimizer = sgd(ddp)
        for x in inputs[context.launch.rank]:
            optimizer.zero_grad()
            loss_of(ddp, x).backward()
            optimizer.step()
        synchronize(ddp)

    run_ranks(len(replicas), work)


@pytest.mark.parametrize(
    "config",
    [
        *(GossipConfig(overlap=overlap) for overlap in OVERLAPS),
        GossipConfig(overlap="none", topology="ring", segments=50),
        GossipConfig(overlap="backward", rounds_per_step=2, exact_every=3),
    ],
    ids=lambda config: f"{config.topology}-{config.overlap}-{config.rounds_per_step}",
)
def test_gossip_sends_what_the_hook_makes_of_parameters(config: GossipConfig) -> None:
    replicas, inputs = replicas_of(3), inputs_of(3)
    plain = copy.deepcopy(replicas)
    mixing, optimizers = HookedMixing(plain, config, coarse), [sgd(model) for model in plain]
    for step in range(inputs[0].shape[0]):
        for model, optimizer, x in zip(plain, optimizers, inputs, strict=True):
            optimizer.zero_grad()
            loss_of(model, x[step]).backward()
        if config.overlap == "backward":
            mixing.mix()
        for optimizer in optimizers:
            optimizer.step()
        if config.overlap != "backward":
            mixing.mix()
    train(replicas, config, lambda _, bucket: coarse(bucket.buffer()))
    for given, wanted in zip(replicas, plain, strict=True):
        assert_states_close(state_of(given), state_of(wanted))


@pytest.mark.parametrize("wire", ["fp32", "int8"])
def test_the_mean_is_kept_whatever_is_sent(wire: Any) -> None:
    replicas = replicas_of(3)
    before = {n: torch.stack([r.state_dict()[n] for r in replicas]).mean(0) for n in NAMES}

    def work(context: Context) -> None:
        ddp = wrap(context, replicas[context.launch.rank], GossipConfig(overlap="none", wire=wire))
        ddp.register_comm_hook(None, lambda _, bucket: done(torch.randn(bucket.buffer().shape)))
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)
        for _ in range(3):
            loss_of(ddp, torch.ones(2, 4)).backward()
            optimizer.step()

    start = state_of(replicas[0])
    run_ranks(3, work)
    for name in NAMES:
        mean = torch.stack([r.state_dict()[name] for r in replicas]).mean(0)
        torch.testing.assert_close(mean, before[name], rtol=1e-4, atol=2e-6)
        assert not torch.allclose(start[name], replicas[0].state_dict()[name], atol=0.1)


NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


def test_a_compiled_model_mixes_what_the_hook_has_sent() -> None:
    """Its graph hands tensors of its own to the wait."""
    config = GossipConfig(overlap="forward")
    replicas = replicas_of(2)
    twins = copy.deepcopy(replicas)
    train(replicas, config, lambda _, bucket: coarse(bucket.buffer()))
    compiled: list[Any] = [torch.compile(model, backend="aot_eager") for model in twins]
    train(compiled, config, lambda _, bucket: coarse(bucket.buffer()))
    for given, wanted in zip(twins, replicas, strict=True):
        assert_states_close(state_of(given), state_of(wanted))


def test_a_hook_knows_the_peers_of_the_round() -> None:
    config = GossipConfig(topology="ring", overlap="none")
    seen: list[set[tuple[int, ...]]] = [set() for _ in range(4)]

    def work(context: Context) -> None:
        def note(_: Any, bucket: CommBucket) -> torch.Tensor:
            seen[context.launch.rank].add(bucket.peers())
            return bucket.buffer()

        ddp = wrap(context, gossip=config)
        ddp.register_comm_hook(None, note)
        loss_of(ddp, torch.ones(2, 4)).backward()
        sgd(ddp).step()

    run_ranks(4, work)
    assert seen == [{(1, 3)}, {(0, 2)}, {(1, 3)}, {(0, 2)}]
