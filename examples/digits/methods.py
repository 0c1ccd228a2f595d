"""The two methods that the demo compares: everything in which their training programs differ."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

import crossover_comm as cc


class Method(Protocol):
    """What a training program asks of a data-parallel method."""

    name: str
    bytes_source: str
    """Where `sent_bytes_per_step` comes from, for the report."""

    def start(self, device: torch.device) -> tuple[int, int]:
        """Joins the job, whose models will be on `device`; returns (rank, size)."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module: ...

    def consensus_distance(self, model: nn.Module) -> float:
        """Root of the workers' mean squared distance to their average. Collective."""
        ...

    def averaged(self, model: nn.Module) -> AbstractContextManager[object]:
        """Within it, `model` holds the average of the workers' models. Collective."""
        ...

    def sent_bytes_per_step(self, model: nn.Module, num_steps: int) -> float: ...

    def stop(self) -> None: ...


class Crossover:
    """Each worker steps on its own gradient and averages with one random peer per segment."""

    name = "crossover"
    bytes_source = "counted"

    def start(self, device: torch.device) -> tuple[int, int]:
        cc.init()
        return cc.rank(), cc.size()

    def wrap(self, model: nn.Module) -> nn.Module:
        return cc.DistributedDataParallel(model, gossip="crossover")

    def consensus_distance(self, model: nn.Module) -> float:
        return float(cc.consensus_distance(model))

    def averaged(self, model: nn.Module) -> AbstractContextManager[object]:
        return cc.averaged(model)

    def sent_bytes_per_step(self, model: nn.Module, num_steps: int) -> float:
        return cc.counters()["payload_sent_bytes"] / num_steps

    def stop(self) -> None:
        cc.shutdown()


class Ddp:
    """torch's DistributedDataParallel: every step all-reduces the gradient.

    Over gloo on the CPU, over NCCL on GPUs; both methods then use the same library.
    """

    name = "ddp"
    bytes_source = "2(N-1)/N of the gradient, a ring all-reduce"

    def start(self, device: torch.device) -> tuple[int, int]:
        dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
        return dist.get_rank(), dist.get_world_size()

    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model)

    def consensus_distance(self, model: nn.Module) -> float:
        mine = nn.utils.parameters_to_vector(model.parameters()).detach().double()
        mean = mine.clone()
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
        squared = (mine - mean).square().sum()
        dist.all_reduce(squared)
        return float(torch.sqrt(squared / dist.get_world_size()))

    def averaged(self, model: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()

    def sent_bytes_per_step(self, model: nn.Module, num_steps: int) -> float:
        gradient_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        size = dist.get_world_size()
        return 2 * (size - 1) / size * gradient_bytes

    def stop(self) -> None:
        dist.destroy_process_group()


METHODS: dict[str, type[Crossover] | type[Ddp]] = {"crossover": Crossover, "ddp": Ddp}
