"""Communication hooks that are refused, or whose outcome does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from group_cases import loss_of
from ranks import lone_rank, run_ranks
from test_comm_hook import done, wrap
from torch import nn

from crossover_comm.comm_bucket import CommBucket
from crossover_comm.config import GossipConfig
from crossover_comm.context import Context
from crossover_comm.errors import CrossoverError, InvalidArgument
from crossover_comm.topology import Table


def unchanged(_: Any, bucket: CommBucket) -> torch.futures.Future[torch.Tensor]:
    return done(bucket.buffer())


def also_unchanged(_: Any, bucket: CommBucket) -> torch.futures.Future[torch.Tensor]:
    return done(bucket.buffer())


def test_a_second_hook_is_refused() -> None:
    def work(context: Context) -> None:
        for gossip in ("allreduce", "crossover"):
            ddp = wrap(context, gossip=gossip)
            ddp.register_comm_hook(None, unchanged)
            with pytest.raises(RuntimeError, match="can only be called once"):
                ddp.register_comm_hook(None, unchanged)

    run_ranks(2, work)


def test_something_that_cannot_be_called_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="must be callable"):
        wrap(lone_rank()).register_comm_hook(None, 1)


def of_integers(state: object, bucket: int) -> None: ...


def to_integer(state: object, bucket: Any) -> int:
    return 1


of_integers.__annotations__["bucket"] = int
to_integer.__annotations__["return"] = int


@pytest.mark.parametrize(
    ("hook", "message"),
    [(of_integers, "bucket annotation should be"), (to_integer, "return annotation should be")],
)
def test_annotations_that_do_not_fit_are_refused(hook: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        wrap(lone_rank()).register_comm_hook(None, hook)


@pytest.mark.parametrize(
    ("gossip", "outcome", "message"),
    [
        ("allreduce", 1, r"callback must return a torch\.futures\.Future object, but got int"),
        ("allreduce", done(torch.ones(2)), r"one tensor of the 40 elements .* got shape \(2,\)"),
        ("crossover", torch.ones(3), r"one tensor of the 40 elements .* got shape \(3,\)"),
    ],
)
def test_an_outcome_that_does_not_fit_ends_the_job(gossip: str, outcome: Any, message: str) -> None:
    def work(context: Context) -> None:
        ddp = wrap(context, nn.Sequential(nn.Linear(4, 8)), gossip)
        ddp.register_comm_hook(None, lambda *_: outcome)
        with pytest.raises(CrossoverError, match=message):
            loss_of(ddp, torch.ones(2, 4)).backward()

    run_ranks(2, work)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GossipConfig(groups=1), "got several groups"),
        (
            GossipConfig(topology=Table(tables=[[[(1, 0.5)], [(0, 0.5)]]], stochasticity="column")),
            "got a column-stochastic topology",
        ),
    ],
)
def test_where_a_hook_has_no_meaning_it_is_refused(config: GossipConfig, message: str) -> None:
    def work(context: Context) -> None:
        with pytest.raises(InvalidArgument, match=message):
            wrap(context, gossip=config).register_comm_hook(None, unchanged)

    run_ranks(2, work)


def test_ranks_must_register_the_same_hook() -> None:
    def work(context: Context) -> None:
        hook = unchanged if context.launch.rank == 0 else also_unchanged
        with pytest.raises(InvalidArgument, match=r'hook: rank 0 has "unchanged"'):
            wrap(context).register_comm_hook(None, hook)

    run_ranks(2, work)
