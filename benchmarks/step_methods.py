"""The ways to train that the benchmarks compare, by name, each as a step on the same model.

``compute``                        the model alone
``ddp``                            torch's DistributedDataParallel over gloo
``decent/TOPOLOGY``                Decent-DP: ring, one-peer-exp
``crossover/OVERLAP/WIRE``         this package, default topology
``crossover/OVERLAP/WIRE/TOPOLOGY``  with another one, or ``one-peer``: all segments to one peer
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from simulated_compute import SleepingLayer
from torch import Tensor, nn

import crossover_comm as cc
from crossover_comm.config import OVERLAPS, WIRES
from crossover_comm.topology import Crossover

__all__ = ["Method", "available", "why_unavailable"]


class Method:
    """A model wrapped one way, with its optimizer.

    Args:
        name: As above, available.
        widths: Of the MLP's layers.
    """

    def __init__(self, name: str, widths: Sequence[int]) -> None:
        torch.manual_seed(0)
        self._sleep = SleepingLayer()
        plain = _mlp(widths, self._sleep)
        self.model_bytes = 4 * sum(p.numel() for p in plain.parameters())
        kind, _, rest = name.partition("/")
        self._optimizer: torch.optim.Optimizer | None = None
        self._model: nn.Module = plain
        if kind == "decent":
            self._model = _decent(plain, rest)
            return
        self._optimizer = _sgd(list(plain.parameters()))
        if kind == "ddp":
            self._model = nn.parallel.DistributedDataParallel(plain)
        elif kind == "crossover":
            self._model = cc.DistributedDataParallel(plain, gossip=_config(rest))

    def step(self, x: Tensor, sleep_s: float) -> tuple[float, float]:
        """One training step; seconds of forward and backward, and of the whole."""
        self._sleep.duration_s = sleep_s
        started = time.perf_counter()
        if self._optimizer is not None:
            self._optimizer.zero_grad()
        self._model(x).square().mean().backward()
        computed = time.perf_counter()
        if self._optimizer is not None:
            self._optimizer.step()
        return computed - started, time.perf_counter() - started

    def quiesce(self) -> None:
        """Waits for what is under way, so that it does not meet the next method's traffic."""
        cc.synchronize()
        for work in getattr(self._model, "_comm_ops", []):  # Decent-DP offers no other way
            if work is not None:
                work.wait()


def why_unavailable(name: str) -> str | None:
    """Why a method cannot run here; None if it can."""
    kind, *rest = name.split("/")
    if kind == "decent" and importlib.util.find_spec("decent_dp") is None:
        return "decent_dp cannot be imported (pip install decent-dp==0.2.3)"
    if kind == "crossover":
        for value, known in zip(rest, (OVERLAPS, WIRES), strict=False):
            if value not in known:
                return f"this version knows {', '.join(known)}, not {value}"
    elif kind not in ("compute", "ddp", "decent"):
        return "no such method"
    return None


def available(names: Sequence[str]) -> list[str]:
    """Those that can run; says of the others why not."""
    reasons = {name: why_unavailable(name) for name in names}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name}: left out: {reason}")
    return [name for name, reason in reasons.items() if reason is None]


def _mlp(widths: Sequence[int], middle: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    layers = layers[:-1]
    layers.insert(len(layers) // 2 + 1, middle)
    return nn.Sequential(*layers)


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def _config(description: str) -> cc.GossipConfig:
    overlap, wire, *topology = description.split("/")
    options: dict[str, Any] = {"overlap": overlap, "wire": wire}
    if topology == ["one-peer"]:
        options["topology"] = Crossover(segmentwise=False)
    elif topology:
        options["topology"] = topology[0]
    return cc.GossipConfig(**options)


def _decent(plain: nn.Module, topology: str) -> nn.Module:
    """Its optimizer steps inside the gradient hooks. Pairs are made of the default group."""
    from decent_dp.ddp import DecentralizedDataParallel
    from loguru import logger

    logger.disable("decent_dp")
    wrapped = DecentralizedDataParallel(
        plain, lambda named: _sgd([p for _, p in named]), topology=topology, _local_world_size=1
    )
    dist.barrier()
    return cast(nn.Module, wrapped)
