"""What binds a model to the engine, beside the training loop."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import torch
from models import mlp
from ranks import assert_states_close, run_ranks, state_of
from torch import nn

from crossover_comm import versions
from crossover_comm.config import GossipConfig
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import CrossoverError, InvalidArgument
from crossover_comm.gossip import Gossip
from crossover_comm.segments import trainable_parameters


def bound(context: Context, model: nn.Module, rule: int | None = None) -> Gossip:
    config = GossipConfig(topology="complete", segments=rule or "blocks")
    return Gossip(context, model, trainable_parameters(model), config, "none")


def run_round(gossip: Gossip) -> None:
    gossip.open_round()
    gossip.close_round()


def run_two_rounds(gossip: Gossip) -> None:
    run_round(gossip)
    run_round(gossip)


def version_of(model: nn.Module) -> list[int]:
    return [p._version for p in model.parameters()]


@pytest.fixture(params=[True, False], ids=["many at once", "one by one"])
def _increments(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both forms of torch.autograd.graph.increment_version, whatever this torch has."""
    original = versions._increment_version_takes_many
    if request.param and not original():
        pytest.skip("this torch increments one version at a time")
    versions._increment_version_takes_many = lambda: bool(request.param)  # type: ignore
    yield
    versions._increment_version_takes_many = original


@pytest.mark.parametrize("error", [None, RuntimeError, TypeError])
def test_a_torch_that_increments_one_version_at_a_time_is_recognised(
    error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def increment_version(_: object) -> None:
        if error is not None:
            raise error("expected a tensor")

    monkeypatch.setattr(torch.autograd.graph, "increment_version", increment_version)
    takes_many = versions._increment_version_takes_many.__wrapped__
    assert takes_many() == (error is None)


@pytest.mark.usefixtures("_increments")
def test_autograd_learns_of_every_mixed_parameter() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        gossip = bound(context, model)
        before = version_of(model)
        gossip.open_round()
        assert version_of(model) == before
        gossip.close_round()
        assert all(now > then for now, then in zip(version_of(model), before, strict=True))

    run_ranks(2, work)


def test_a_mix_between_forward_and_backward_is_an_error_of_autograd() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        gossip = bound(context, model)
        gossip.open_round()
        loss = model(torch.ones(2, 4)).square().sum()
        gossip.close_round()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    run_ranks(2, work)


def test_segments_awaited_one_by_one_and_the_rest_together_are_each_mixed_once() -> None:
    start = mlp(4, 8, 3)

    def work(context: Context) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(start)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(context.launch.rank)
        gossip = bound(context, model, rule=8)
        gossip.open_round()
        gossip.wait_segment(2)
        gossip.wait_segment(2)
        assert gossip.is_open
        gossip.close_round()
        gossip.close_round()
        assert not gossip.is_open
        assert [context.engine.round(0, s) for s in range(4)] == [1, 1, 1, 1]
        return state_of(model)

    first, second = run_ranks(2, work)
    middle = {name: value + 0.5 for name, value in state_of(start).items()}
    assert_states_close(first, middle)
    assert_states_close(second, middle)


def test_tensors_in_place_of_the_parameters_are_the_ones_mixed() -> None:
    def work(context: Context) -> None:
        model = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            model.weight.fill_(float(context.launch.rank))
        gossip = bound(context, model)
        gossip.open_round()
        other = model.weight.detach().clone()
        gossip.wait_segment(0, [other])
        assert other.eq(0.5).all()
        assert model.weight.eq(context.launch.rank).all()

    run_ranks(2, work)


def test_channels_last_double_half_and_empty_tensors_are_mixed_in_their_own_layout() -> None:
    class Mixed(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            image = torch.full((2, 3, 4, 4), value) + torch.arange(96.0).reshape(2, 3, 4, 4)
            self.image = nn.Parameter(image.to(memory_format=torch.channels_last))
            self.wide = nn.Parameter(torch.full((5,), value, dtype=torch.float64))
            self.narrow = nn.Parameter(torch.full((129,), value, dtype=torch.float16))
            self.empty = nn.Parameter(torch.zeros(0, 7))
            self.scalar = nn.Parameter(torch.tensor(value, dtype=torch.bfloat16))

    def work(context: Context) -> dict[str, torch.Tensor]:
        model = Mixed(2.0 * context.launch.rank)
        gossip = bound(context, model)
        gossip.open_round()
        gossip.close_round()
        return state_of(model)

    for state in run_ranks(2, work):
        assert_states_close(state, state_of(Mixed(1.0)))


def test_a_failure_of_one_rank_names_its_cause_on_the_other() -> None:
    has_failed = threading.Event()

    def work(context: Context) -> None:
        model = mlp(4, 3)
        gossip = bound(context, model)
        if context.launch.rank == 0:
            gossip.open_round()
            with torch.no_grad():
                model.get_parameter("0.weight").add_(1)
            with pytest.raises(InvalidArgument):
                gossip.close_round()
            has_failed.set()
        else:
            has_failed.wait()
            with pytest.raises(CrossoverError, match=r"rank 0.*'0\.weight': written between post"):
                run_two_rounds(gossip)  # rank 0 has posted for the first

    run_ranks(2, work)


def test_a_context_of_the_callers_own_is_not_broadcast_over() -> None:
    def work(context: Context) -> None:
        with pytest.raises(InvalidArgument, match="init_sync: expected False"):
            DistributedDataParallel(mlp(4, 3), context=context)

    run_ranks(2, work)
