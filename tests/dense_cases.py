"""Trainings that many processes run one after the other, and what each must come to.

Every rank starts from parameters of its own and trains on data of its own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import torch
from models import mlp
from ranks import DenseMixing, state_of
from torch import nn

import crossover_comm as cc
from crossover_comm.config import WIRES, Overlap, SegmentRule
from crossover_comm.context import Context, current_context
from crossover_comm.topology import Topology

__all__ = [
    "OVERLAPS",
    "PERMUTATIONS",
    "Case",
    "Run",
    "TwoByteCase",
    "cases_of",
    "dense_states",
    "joined",
    "load_runs",
    "run_case",
    "run_cases",
    "save_runs",
    "train",
]

OVERLAPS: tuple[Overlap, ...] = ("none", "forward", "backward", "fused")
PERMUTATIONS = ("crossover", "crossover-sequential", "exponential", "table")
"""Schedules in which every rank sends to one peer and receives from one, with weight 1/2."""

State = dict[str, torch.Tensor]
Run = dict[str, dict[str, Any]]
"""What came of each case, by its name."""


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        schedule: For the name; see `config.topology`.
        config: Overlap included.
        optimizer: "sgd" (with momentum and weight decay) or "adamw".
        widths: Of the MLP.
        num_steps: One batch each, one round each.
    """

    schedule: str
    config: cc.GossipConfig
    optimizer: str = "sgd"
    widths: tuple[int, ...] = (5, 8, 7, 3)
    num_steps: int = 12

    @property
    def name(self) -> str:
        config = self.config
        parts = (self.schedule, config.overlap, config.wire, config.segments, self.optimizer)
        return "-".join(map(str, parts))

    @property
    def is_permutation(self) -> bool:
        return self.schedule in PERMUTATIONS

    def replicas(self, size: int) -> list[nn.Module]:
        """One model per rank, all different."""
        torch.manual_seed(size)
        return [mlp(*self.widths) for _ in range(size)]

    def batches(self, rank: int) -> torch.Tensor:
        """The rank's own data, one batch per step."""
        generator = torch.Generator().manual_seed(100 + rank)
        centre = 1.0 if rank % 2 == 0 else -1.0
        return centre + torch.randn(self.num_steps, 6, self.widths[0], generator=generator)

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


class TwoByteCase(Case):
    """The same in pure bfloat16."""

    def replicas(self, size: int) -> list[nn.Module]:
        return [model.bfloat16() for model in super().replicas(size)]

    def batches(self, rank: int) -> torch.Tensor:
        return super().batches(rank).bfloat16()


def cases_of(size: int) -> list[Case]:
    """Every schedule in every mode over fp32 and bf16; each segment rule and optimizer in each."""
    varied: Iterator[tuple[SegmentRule, str]] = itertools.cycle(
        itertools.product(("blocks", 100), ("sgd", "adamw"))
    )
    cases = []
    for wire, (schedule, topology) in itertools.product(WIRES[:2], _topologies(size).items()):
        for overlap in OVERLAPS:
            segments, optimizer = next(varied)
            config = cc.GossipConfig(
                topology=topology, overlap=overlap, wire=wire, segments=segments, seed=size
            )
            cases.append(Case(schedule, config, optimizer))
    return [*cases, *_narrower(size), *_of_several_phases(size)]


def _narrower(size: int) -> list[Case]:
    """One peer and several by the other wires."""
    return [
        Case(topology, cc.GossipConfig(topology=topology, overlap=overlap, wire=wire, seed=size))
        for wire in WIRES[2:]
        for topology, overlap in itertools.product(("crossover", "ring"), OVERLAPS[::2])
    ]


def _of_several_phases(size: int) -> list[Case]:
    composite = cc.GossipConfig(
        overlap="none", rounds_per_step=2, exact_every=3, exact_first=1, seed=size
    )
    topologies: dict[str, str | Topology] = {
        "groups": cc.GroupCrossover(3),
        "mixed-radix": "mixed-radix",
        "base2": "base2",
    }
    return [
        Case("composite", composite),
        Case("composite", dataclasses.replace(composite, overlap="backward")),
        *(
            Case(name, cc.GossipConfig(topology=topology, overlap="backward", seed=size))
            for name, topology in topologies.items()
        ),
    ]


def _topologies(size: int) -> dict[str, str | Topology]:
    named = ("crossover", "crossover-sequential", "exponential", "ring", "complete")
    shifts = [shift for shift in (1, size - 1) if shift > 0]
    shifted = [[[((r + shift) % size, 0.5)] for r in range(size)] for shift in shifts]
    return {
        **dict(zip(named, named, strict=True)),
        "table": cc.Table(tables=shifted, rotate_by_segment=True),
        "graph": cc.from_networkx(networkx.star_graph(size - 1)),
    }


@functools.cache
def dense_states(case: Case, size: int) -> list[State]:
    """The parameters by rank after plain training of all replicas, mixed by a dense matrix."""
    replicas = case.replicas(size)
    optimizers = [case.optimizer_of(model) for model in replicas]
    batches = [case.batches(rank) for rank in range(size)]
    mixing = DenseMixing(replicas, case.config)
    for step in range(case.num_steps):
        for model, optimizer, own in zip(replicas, optimizers, batches, strict=True):
            optimizer.zero_grad()
            _loss(model, own[step]).backward()
        if case.config.overlap == "backward":
            mixing.mix()
        for optimizer in optimizers:
            optimizer.step()
        if case.config.overlap != "backward":
            mixing.mix()
    return [state_of(model) for model in replicas]


def run_cases(folder: str, *transports: str) -> None:
    """A worker: runs every case over each transport in turn; see `load_runs`."""
    for transport in transports:
        with joined(transport):
            save_runs({case.name: run_case(case) for case in cases_of(cc.size())}, folder)


def run_case(case: Case) -> dict[str, Any]:
    """Trains by gossip: the final "state", and what the "counters" have counted."""
    before = cc.counters()
    state = train(case, case.replicas(cc.size()), current_context())
    counters = {name: value - before[name] for name, value in cc.counters().items()}
    return {"state": copy.deepcopy(state), "counters": counters}


def train(case: Case, replicas: Sequence[nn.Module], context: Context) -> State:
    """Trains a rank's own of the replicas by gossip; its parameters after the last round."""
    rank = context.launch.rank
    replica = replicas[rank]
    ddp = cc.DistributedDataParallel(replica, gossip=case.config, init_sync=False, context=context)
    optimizer = case.optimizer_of(ddp)
    for x in case.batches(rank):
        optimizer.zero_grad()
        _loss(ddp, x).backward()
        optimizer.step()
    cc.synchronize(ddp)
    return state_of(replica)


def save_runs(runs: Run, folder: str) -> None:
    """Leaves what run_case has returned by the case's name, for `load_runs`."""
    transport = current_context().settings.transport
    torch.save(runs, Path(folder) / f"{transport}{cc.rank()}.pt")


def load_runs(folder: Path, transport: str, size: int) -> list[Run]:
    """By rank, what it has saved when it had joined over `transport`."""
    files = [folder / f"{transport}{rank}.pt" for rank in range(size)]
    return [torch.load(file, weights_only=True) for file in files]


@contextlib.contextmanager
def joined(transport: str) -> Iterator[None]:
    """Inside, this process is a rank."""
    cc.init(transport=transport, timeout=60.0)
    try:
        yield
    finally:
        cc.shutdown()


def _loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor((model(x) - x[:, :1]).square().mean())
