"""Momentum exchange: the optimizer's momentum is mixed as the parameters are."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim import Optimizer

from crossover_comm.errors import InvalidArgument
from crossover_comm.gossip import Gossip
from crossover_comm.remedies.remedy import Remedy, held_by
from crossover_comm.remedies.tensors import by_name

__all__ = ["MomentumExchange"]

BUFFERS = ("momentum_buffer", "exp_avg")
"""What optimizers call a running mean of gradients: SGD and its kin; Adam and its kin."""


class MomentumExchange(Remedy):
    """In every round the momentum buffers are exchanged beside the parameters, by the same draw.

        x <- W x,   m <- W m

    They are posted with the parameters and mixed when the round closes, at the latest before the
    next step. A parameter without a buffer (no step yet, or never a gradient) counts as zero and
    gets none. Bytes: those of the parameters again. Memory: inboxes of one more model.
    Source: Yu, Jin, Yang, ICML 2019, arXiv 1905.03817.
    """

    def __init__(self, gossip: Gossip) -> None:
        super().__init__(gossip)
        self._companion = gossip.add_companion()
        self._owners: dict[int, weakref.ref[Optimizer]] = {}
        self._checked: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._posted: list[torch.Tensor] = []

    def step_begins(self, optimizer: Optimizer, *, closure: bool, exchanges: bool) -> None:
        self._own(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        if optimizer in self._checked:
            return
        self._checked.add(optimizer)
        for name, p in self.gossip.named_parameters.items():
            stepped = id(p) in held_by(optimizer) and p.grad is not None
            if stepped and _momentum_of(optimizer, p) is None:
                self.gossip.fail(
                    f"momentum='exchanged': expected an optimizer with momentum, one of {BUFFERS} "
                    f"in its state, got {type(optimizer).__name__}, whose state of '{name}' has "
                    f"{sorted(optimizer.state.get(p, {}))}"
                )

    def opened(self) -> None:
        self._posted = [self._buffer(p) for p in self.gossip.parameters]
        self.gossip.context.engine.open_round(
            self._plan(), self._addresses(), self.gossip.device.stream()
        )

    def closing(self) -> None:
        if self._posted:
            self.gossip.context.engine.close_round(
                self._plan(), self._addresses(), self.gossip.device.stream()
            )
            self._posted = []

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._posted = []

    def resumes(self, optimizer: Optimizer | None) -> None:
        if optimizer is None:
            raise InvalidArgument(
                "momentum='exchanged': expected load_gossip_state_dict(state, optimizer), whose "
                "momenta the first round exchanges, got no optimizer"
            )
        self._own(optimizer)

    def _plan(self) -> int:
        return self.gossip.companions[self._companion]

    def _own(self, optimizer: Optimizer) -> None:
        owner = weakref.ref(optimizer)
        for group in optimizer.param_groups:
            for p in group["params"]:
                self._owners[id(p)] = owner

    def _addresses(self) -> list[int]:
        return [buffer.data_ptr() for buffer in self._posted]

    def _buffer(self, p: torch.Tensor) -> torch.Tensor:
        owner = self._owners.get(id(p))
        optimizer = None if owner is None else owner()
        buffer = None if optimizer is None else _momentum_of(optimizer, p)
        if buffer is None:
            return torch.zeros_like(p, requires_grad=False)
        if (buffer.dtype, buffer.device, buffer.stride()) != (p.dtype, p.device, p.stride()):
            (name,) = by_name(self.gossip, {id(p): p})
            self.gossip.fail(
                f"momentum='exchanged', parameter '{name}': expected a momentum buffer of "
                f"{p.dtype} with strides {p.stride()} on {p.device} as the parameter, got "
                f"{buffer.dtype}, {buffer.stride()}, {buffer.device}"
            )
        return buffer


def _momentum_of(optimizer: Optimizer, p: torch.Tensor) -> torch.Tensor | None:
    state = optimizer.state.get(p, {})
    return next((state[key] for key in BUFFERS if state.get(key) is not None), None)
