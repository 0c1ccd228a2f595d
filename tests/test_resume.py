"""A training that stops, is saved, and goes on in a new job, against one that never stopped."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import mlp
from ranks import lone_rank, run_ranks, state_of
from torch import nn

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import synchronize
from crossover_comm.optimizer import DistributedOptimizer
from crossover_comm.rounds import BackwardRule, EarlyStepRule, EveryNthRound, GradientRule, StepRule
from crossover_comm.rule_state import load_rule_state, rule_state
from crossover_comm.topology import Table

SIZE = 4
NUM_STEPS = 8
STOP = 5
"""Steps before the checkpoint: within a period of every configuration below."""
OVERLAPS: tuple[Overlap, ...] = ("none", "forward", "backward")
PUSH_SUM = Table(
    tables=[[[(3, 0.5)], [(0, 0.5)], [(1, 0.5), (0, 0.25)], [(2, 0.5)]]], stochasticity="column"
)
CONFIGS: dict[str, dict[str, Any]] = {
    "crossover": {"segments": 80},
    "sequential": {"topology": "crossover-sequential", "wire": "bf16"},
    "push-sum": {"topology": PUSH_SUM},
    "interval": {"interval": 3},
    "exact averages": {"exact_every": 3, "exact_first": 1, "rounds_per_step": 2},
    "slow momentum": {"exact_every": 4, "slow_momentum": 0.5},
    "quasi-global": {"momentum": "quasi-global"},
    "exchanged": {"momentum": "exchanged"},
    "groups": {"groups": 2, "interval": 2},
    "all-reduce": {"groups": "world"},
    "averaged buffers": {"buffers": "average"},
    "broadcast buffers": {"buffers": "broadcast"},
    "auto": {"wire": "auto", "wire_budget": 1.04},
}

State = dict[str, torch.Tensor]


class Training:
    """One rank's training; `gossip` is what has the two methods under test."""

    def __init__(self, context: Context, config: GossipConfig, *, by_optimizer: bool) -> None:
        self.rank = context.launch.rank
        self.model: Any = model_of(self.rank, normed=config.buffers is not None)
        self.gossip: Any
        if by_optimizer:
            self.optimizer = sgd(self.model)
            self.gossip = DistributedOptimizer(
                self.optimizer, self.model, gossip=config, context=context
            )
        else:
            self.gossip = self.model = DistributedDataParallel(
                self.model, gossip=config, context=context, init_sync=False
            )
            self.optimizer = sgd(self.model)

    def run(self, first: int, end: int) -> None:
        generator = torch.Generator().manual_seed(self.rank)
        for x in torch.randn(NUM_STEPS, 6, 4, generator=generator)[first:end]:
            self.optimizer.zero_grad()
            dtype = next(iter(self.model.parameters())).dtype
            torch.as_tensor(self.model(x.to(dtype))).square().mean().backward()
            self.optimizer.step()

    def final(self) -> State:
        synchronize(self.model)
        return state_of(self.model)

    def save(self) -> bytes:
        file = io.BytesIO()
        state = {
            "gossip": self.gossip.gossip_state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "model": self.model.state_dict(),
        }
        torch.save(state, file)
        return file.getvalue()

    def load(self, checkpoint: bytes) -> None:
        state = torch.load(io.BytesIO(checkpoint), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.gossip is self.model:
            self.gossip.load_gossip_state_dict(state["gossip"], self.optimizer)
        else:
            self.gossip.load_gossip_state_dict(state["gossip"])


_seeding = threading.Lock()

Start = Callable[[Context], Training]


def model_of(rank: int, *, normed: bool = False) -> nn.Module:
    with _seeding:  # torch's generator is every thread's
        torch.manual_seed(10 + rank)
        model = plain_model()
        return nn.Sequential(*model, nn.BatchNorm1d(3)) if normed else model


def plain_model() -> nn.Sequential:
    return mlp(4, 8, 3)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def starts(config: GossipConfig, *, by_optimizer: bool = False) -> Start:
    return lambda context: Training(context, config, by_optimizer=by_optimizer)


def unbroken(start: Start) -> list[State]:
    def work(context: Context) -> State:
        training = start(context)
        training.run(0, NUM_STEPS)
        return training.final()

    return run_ranks(SIZE, work)


def checkpoints(start: Start, stop: int = STOP) -> list[bytes]:
    def work(context: Context) -> bytes:
        training = start(context)
        training.run(0, stop)
        return training.save()

    return run_ranks(SIZE, work)


def resumed(start: Start, saved: list[bytes], stop: int = STOP) -> list[State]:
    def work(context: Context) -> State:
        training = start(context)
        training.load(saved[training.rank])
        training.run(stop, NUM_STEPS)
        return training.final()

    return run_ranks(SIZE, work)


def rolled_back(start: Start) -> list[State]:
    """Saves, goes on to the end of the batches, goes back, and does it again; one job."""

    def work(context: Context) -> State:
        training = start(context)
        training.run(0, STOP)
        checkpoint = training.save()
        training.run(STOP, NUM_STEPS)
        synchronize(training.model)
        training.load(checkpoint)
        training.run(STOP, NUM_STEPS)
        return training.final()

    return run_ranks(SIZE, work)


def assert_same_bits(given: list[State], wanted: list[State]) -> None:
    for rank, (state, reference) in enumerate(zip(given, wanted, strict=True)):
        for name, value in reference.items():
            assert torch.equal(state[name], value), f"rank {rank}, {name}"


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("name", CONFIGS)
def test_resumed_training_equals_one_that_never_stopped_bit_for_bit(
    name: str, overlap: Overlap
) -> None:
    by_optimizer = OVERLAPS.index(overlap) == list(CONFIGS).index(name) % 3
    start = starts(GossipConfig(overlap=overlap, **CONFIGS[name]), by_optimizer=by_optimizer)
    assert_same_bits(resumed(start, checkpoints(start)), unbroken(start))


@pytest.mark.parametrize(
    "name",
    ["crossover", "sequential", "exact averages", "averaged buffers", "broadcast buffers", "auto"],
)
def test_mode_fused_resumes_bit_for_bit(name: str) -> None:
    by_optimizer = name == "sequential"
    start = starts(GossipConfig(overlap="fused", **CONFIGS[name]), by_optimizer=by_optimizer)
    assert_same_bits(resumed(start, checkpoints(start)), unbroken(start))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_two_bytes_are_rounded_alike_after_a_resume(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "plain_model", lambda: mlp(4, 8, 3).to(dtype))
    start = starts(GossipConfig(overlap="none"))
    assert_same_bits(resumed(start, checkpoints(start)), unbroken(start))


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_measured_levels_resume_from_every_place_of_a_window(stop: int) -> None:
    start = starts(GossipConfig(overlap="none", wire="auto", wire_budget=1.04))
    assert_same_bits(resumed(start, checkpoints(start, stop), stop), unbroken(start))


def test_decentlam_resumes_bit_for_bit() -> None:
    start = starts(GossipConfig(momentum="decentlam"))
    assert_same_bits(resumed(start, checkpoints(start)), unbroken(start))


@pytest.mark.parametrize(
    ("name", "overlap"),
    [
        ("slow momentum", "forward"),
        ("exchanged", "backward"),
        ("groups", None),
        ("averaged buffers", "forward"),
        ("broadcast buffers", None),
    ],
)
def test_a_job_that_goes_back_to_its_checkpoint_repeats_itself(
    name: str, overlap: Overlap | None
) -> None:
    start = starts(GossipConfig(overlap=overlap, **CONFIGS[name]))
    assert_same_bits(rolled_back(start), unbroken(start))


def test_an_open_round_is_closed_by_saving_and_dropped_by_loading() -> None:
    def work(context: Context) -> tuple[bool, bool, int]:
        training = Training(context, GossipConfig(overlap="forward"), by_optimizer=False)
        training.run(0, 2)
        engine = context.engine
        state = training.gossip.gossip_state_dict()
        is_open_after_saving = engine.is_open(0)
        training.run(2, 3)
        training.gossip.load_gossip_state_dict(state)
        plan = training.gossip._hooks.gossip.plan
        return is_open_after_saving, engine.is_open(plan), engine.round(plan, 0)

    assert run_ranks(SIZE, work) == [(False, False, 2)] * SIZE


def test_the_keys_of_a_state_are_the_same_before_the_first_step() -> None:
    def shapes(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shapes(inner) for key, inner in value.items()}
        return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)

    def work(context: Context) -> None:
        for name, chosen in CONFIGS.items():
            training = Training(context, GossipConfig(**chosen), by_optimizer=False)
            before = shapes(training.gossip.gossip_state_dict())
            training.run(0, NUM_STEPS)
            assert shapes(training.gossip.gossip_state_dict()) == before, name

    run_ranks(SIZE, work)


def refusals(saved: list[bytes], config: GossipConfig, size: int, shift: int = 0) -> list[str]:
    """What each rank of another job says to a state."""

    def work(context: Context) -> str:
        training = Training(context, config, by_optimizer=False)
        state = torch.load(io.BytesIO(saved[(training.rank + shift) % size]), weights_only=True)
        try:
            training.gossip.load_gossip_state_dict(state["gossip"])
        except InvalidArgument as error:
            return str(error)
        return "loaded"

    return run_ranks(size, work)


def test_a_state_of_another_job_is_refused_by_the_difference() -> None:
    saved = checkpoints(starts(GossipConfig(seed=1)))
    for said in refusals(saved, GossipConfig(seed=2), SIZE):
        assert "config.seed: the state has 1, this job has 2" in said
    for said in refusals(saved, GossipConfig(seed=1), SIZE - 1):
        assert "expected that of a job of size 3, got that of size 4; to go on with" in said
    for rank, said in enumerate(refusals(saved, GossipConfig(seed=1), SIZE, shift=1)):
        assert f"expected that of rank {rank}, got that of rank {(rank + 1) % SIZE}" in said


def test_states_of_unlike_rounds_are_refused_on_every_rank() -> None:
    def work(context: Context) -> str:
        training = Training(context, GossipConfig(), by_optimizer=False)
        training.run(0, 2)
        early = training.save()
        training.run(2, 4)
        late = training.save()
        chosen = early if training.rank == 2 else late
        with pytest.raises(InvalidArgument) as raised:
            training.load(chosen)
        return str(raised.value)

    for said in run_ranks(SIZE, work):
        assert "rounds.gossip: rank 0 has 4, rank 2 has 2" in said


def test_what_is_no_gossip_state_is_refused() -> None:
    def work(context: Context) -> None:
        training = Training(context, GossipConfig(momentum="exchanged"), by_optimizer=False)
        with pytest.raises(InvalidArgument, match="expected what gossip_state_dict"):
            training.gossip.load_gossip_state_dict(training.model.state_dict())
        state = training.gossip.gossip_state_dict()
        with pytest.raises(InvalidArgument, match="got no optimizer"):
            training.gossip.load_gossip_state_dict(state)

    run_ranks(2, work)


@pytest.mark.parametrize("by_optimizer", [False, True])
def test_one_rank_alone_resumes_its_own_state_only(by_optimizer: bool) -> None:
    training = Training(lone_rank(), GossipConfig(), by_optimizer=by_optimizer)
    training.run(0, 2)
    training.load(training.save())
    state = torch.load(io.BytesIO(checkpoints(starts(GossipConfig()))[0]), weights_only=True)
    with pytest.raises(InvalidArgument, match="expected that of a job of size 1, got that of size"):
        training.gossip.load_gossip_state_dict(state["gossip"])


def test_the_state_of_every_rule_is_plain_and_complete() -> None:
    def used(rule: Any) -> Any:
        rule.forward(grad_enabled=True, synced=True, recomputing=False)
        rule.backward(synced=True)
        return rule

    makers: list[Callable[[], Any]] = [
        BackwardRule,
        lambda: StepRule(close_at_once=False),
        EarlyStepRule,
        GradientRule,
        lambda: EveryNthRound(BackwardRule(), 2),
    ]
    for make in makers:
        state = rule_state(used(make()))
        fresh = make()
        assert rule_state(fresh) != state
        load_rule_state(fresh, state)
        assert rule_state(fresh) == state
        assert all(isinstance(value, bool | int | str | dict) for value in state.values())
