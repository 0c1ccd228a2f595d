"""Mode "forward" posts segments in the order in which the forward needs them."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

from crossover_comm.config import GossipConfig
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import synchronize

NUM_STEPS = 3


class Shuffled(nn.Module):
    """Layers that are called in another order than they were registered in."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self._calls = calls

    def forward(self, x: Tensor) -> Tensor:
        for index in self._calls:
            x = self.layers[index](x)
        return x


def posts_of(context: Context, calls: list[int]) -> list[list[int]]:
    """The segments that each step of a training has posted, in order."""
    ddp = DistributedDataParallel(
        Shuffled(calls),
        gossip=GossipConfig(overlap="forward", segments=1),
        context=context,
        init_sync=False,
    )
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        ddp(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
    synchronize(ddp)
    records, _ = context.engine.events(0)
    posts: list[list[int]] = [[] for _ in range(NUM_STEPS)]
    for _, kind, _, number, segment, *_ in records:
        if kind == "posted":
            posts[number].append(segment)
    return posts


def order_of(calls: list[int]) -> list[int]:
    """Segments of one tensor each: a weight and a bias for each layer."""
    return [2 * layer + tensor for layer in calls for tensor in range(2)]


def test_segments_are_posted_in_the_order_of_the_first_forward_from_the_second_step_on() -> None:
    calls = [2, 0, 3, 1]
    first, *others = run_ranks(2, lambda c: posts_of(c, calls))[0]
    assert first == order_of([0, 1, 2, 3])
    assert others == [order_of(calls)] * (NUM_STEPS - 1)


def test_ranks_whose_forwards_differ_post_in_the_order_of_rank_0() -> None:
    calls = [[3, 2, 1, 0], [0, 2, 1, 3]]
    for posts in run_ranks(2, lambda c: posts_of(c, calls[c.launch.rank])):
        assert posts[1:] == [order_of(calls[0])] * (NUM_STEPS - 1)


def test_segments_that_no_forward_needs_are_posted_last() -> None:
    posts = run_ranks(2, lambda c: posts_of(c, [3, 1]))[0]
    assert posts[-1] == order_of([3, 1, 0, 2])


def test_the_engine_takes_a_permutation_between_rounds_only() -> None:
    def work(context: Context) -> None:
        model = Shuffled([0])
        config = GossipConfig(overlap="backward", segments=1)
        ddp = DistributedDataParallel(model, gossip=config, context=context, init_sync=False)
        with pytest.raises(InvalidArgument, match="each of the 8 segments' indices once"):
            context.engine.set_issue_order(0, [0, 0, *range(2, 8)])
        ddp(torch.ones(2, 4))
        with pytest.raises(InvalidArgument, match="set_issue_order: plan 0 has an open round"):
            context.engine.set_issue_order(0, range(8))
        synchronize(ddp)

    run_ranks(2, work)
