"""Training saved by torch.distributed.checkpoint, and resumed with other ranks: by processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from group_cases import inputs_of, loss_of, replicas_of, sgd
from ranks import state_of
from spawn import run_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import crossover_comm as cc

SIZE = 2
STOP = 3
CONFIG = cc.GossipConfig(overlap="forward", exact_every=4, slow_momentum=0.5, interval=2)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    dist.init_process_group("gloo")
    cc.init()
    yield
    cc.shutdown()
    dist.destroy_process_group()


def started() -> tuple[cc.DistributedDataParallel, torch.optim.Optimizer]:
    model = replicas_of(cc.size())[cc.rank()]
    ddp = cc.DistributedDataParallel(model, gossip=CONFIG, init_sync=False)
    return ddp, sgd(ddp)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    for x in inputs:
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()


def checkpoint_of(model: cc.DistributedDataParallel, optimizer: torch.optim.Optimizer) -> Any:
    gossip = model.gossip_state_dict()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "gossip": gossip}
    return {f"rank{cc.rank()}": state}


def stop(folder: str) -> None:
    """Leaves a checkpoint, the averaged model, and what the training comes to in the end."""
    with joined():
        model, optimizer = started()
        inputs = inputs_of(SIZE)[cc.rank()]
        train(model, optimizer, inputs[:STOP])
        save(checkpoint_of(model, optimizer), checkpoint_id=f"{folder}/checkpoint")
        with cc.averaged(model):
            if cc.rank() == 0:
                torch.save(model.module.state_dict(), f"{folder}/averaged.pt")
        torch.save(state_of(model), f"{folder}/stop{cc.rank()}.pt")
        train(model, optimizer, inputs[STOP:])
        cc.synchronize(model)
        torch.save(state_of(model), f"{folder}/end{cc.rank()}.pt")


def resume(folder: str) -> None:
    with joined():
        model, optimizer = started()
        train(model, optimizer, inputs_of(SIZE)[1 - cc.rank()][:1])  # gives the optimizer its state
        state = checkpoint_of(model, optimizer)
        load(state, checkpoint_id=f"{folder}/checkpoint")
        own = state[f"rank{cc.rank()}"]
        model.load_state_dict(own["model"])
        optimizer.load_state_dict(own["optimizer"])
        model.load_gossip_state_dict(own["gossip"])
        train(model, optimizer, inputs_of(SIZE)[cc.rank()][STOP:])
        cc.synchronize(model)
        wanted = torch.load(f"{folder}/end{cc.rank()}.pt", weights_only=True)
        for name, value in state_of(model).items():
            assert torch.equal(value, wanted[name]), name


def go_on_from_the_average(folder: str) -> None:
    with joined():
        ends = [torch.load(f"{folder}/stop{rank}.pt", weights_only=True) for rank in range(SIZE)]
        model = replicas_of(cc.size())[cc.rank()]
        model.load_state_dict(torch.load(f"{folder}/averaged.pt", weights_only=True))
        ddp = cc.DistributedDataParallel(model, gossip=CONFIG, init_sync=False)
        assert cc.consensus_distance(ddp) == 0.0
        for name, value in state_of(ddp).items():
            torch.testing.assert_close(value, sum(end[name] for end in ends) / SIZE)
        train(ddp, sgd(ddp), inputs_of(cc.size())[cc.rank()])
        cc.synchronize(ddp)


def test_a_distributed_checkpoint_resumes_bit_for_bit_and_at_another_size(tmp_path: Path) -> None:
    run_ranks(stop, SIZE, str(tmp_path))
    run_ranks(resume, SIZE, str(tmp_path))
    run_ranks(go_on_from_the_average, SIZE + 1, str(tmp_path))
