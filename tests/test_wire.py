"""What a narrow type on the wire does to parameters, over ranks in one process."""

from __future__ import annotations

import pytest
import torch
from models import mlp
from ranks import run_ranks

from crossover_comm.config import GossipConfig
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import CrossoverError


@pytest.mark.parametrize("topology", ["crossover", "all-reduce"])
def test_a_value_that_float16_cannot_hold_is_an_error_naming_the_parameter(topology: str) -> None:
    config = GossipConfig(topology=topology, wire="fp16", overlap="none")

    def work(context: Context) -> str:
        model = mlp(3, 2)
        with torch.no_grad():
            model.get_parameter("0.bias")[1] = 65520.0 * (context.launch.rank == 1)
        ddp = DistributedDataParallel(model, gossip=config, context=context, init_sync=False)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)

        def train() -> None:
            for _ in range(50):
                ddp(torch.ones(1, 3)).sum().backward()
                optimizer.step()

        with pytest.raises(CrossoverError) as caught:
            train()
        return str(caught.value)

    for message in run_ranks(2, work):
        assert "parameter '0.bias' holds 1 non-finite value" in message
        assert "too large for float16 on the wire" in message
