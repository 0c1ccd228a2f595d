"""Connects a training loop to the round rule: what torch does becomes events, actions are done."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from crossover_comm.buffers import Buffers, buffers_for
from crossover_comm.claims import claim
from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context, current_context
from crossover_comm.errors import InvalidArgument
from crossover_comm.fused import FusedSteps
from crossover_comm.gossip import Gossip
from crossover_comm.gradients import GradientAverager, copy_from_roots
from crossover_comm.groups import groups_of, hosts
from crossover_comm.live import LiveObjects
from crossover_comm.loop_events import LoopEvents, in_backward
from crossover_comm.planned import PlannedParameters
from crossover_comm.remedies import remedies_for
from crossover_comm.resume import TrainingState
from crossover_comm.rounds import Action, Actions, EveryNthRound, StepRule, rule_for
from crossover_comm.shards import reshard
from crossover_comm.step_hooks import StepHooks
from crossover_comm.stepping import AwaitedSteps, StepNesting
from crossover_comm.waiting import register_wait_hooks
from crossover_comm.weakly import weakly

__all__ = ["RoundHooks", "attach", "context_of", "synchronize"]


class RoundHooks:
    """Gossips one model while it trains. Detaches itself when nobody holds it any more.

    It listens to the backward of every parameter, to the steps of every optimizer that holds one of
    them, and in modes ``"forward"`` and ``"fused"`` to the modules that read them. Its holder calls
    :meth:`forward_begins` where `is_told_of_forwards`; with groups of ranks it also hands what a
    forward returns to ``gradients.watch``.

    Args:
        context: The rank's place and engine; it has at least 2 ranks.
        model: The model.
        parameters: Those of its parameters that are gossiped, by name, in model order.
        config: How.
        overlap: The mode, `config`'s or the wrapper's default.
        is_wrapper: It takes the place of another wrapper's that gossips the same parameters.

    Attributes:
        buffers: What exchanges buffers; None: they are local.
        has_ended: It gossips no more, for another wrapper has taken its place.
        is_told_of_forwards: Whether its holder is to tell of each forward of the whole model.

    Raises:
        InvalidArgument: If a parameter is gossiped already or cannot be, or the ranks differ.
    """

    def __init__(
        self,
        context: Context,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        config: GossipConfig,
        overlap: Overlap,
        is_wrapper: bool,
    ) -> None:
        claim(parameters, _live, takes_over=is_wrapper)
        groups = None
        if config.groups is not None:
            machines = functools.partial(hosts, context)
            groups = groups_of(config.groups, context.launch.size, machines)
        self.gossip = Gossip(context, model, parameters, config, overlap, groups)
        self.gradients: GradientAverager | None = None
        if groups is not None:
            self.gradients = GradientAverager(self.gossip, groups, config, overlap)
            copy_from_roots(self.gossip, groups)
        awaits_in_forward = overlap in ("forward", "fused")
        gossips = groups is None or len(groups) > 1
        rule = rule_for(
            overlap,
            gossips=gossips,
            early=config.momentum == "decentlam",
            interval=config.interval,
        )
        self._events = LoopEvents(rule)
        self._remedies = remedies_for(self.gossip, config)
        self.buffers: Buffers | None = buffers_for(self.gossip, config, overlap)
        self.is_told_of_forwards = not awaits_in_forward or self.buffers is not None
        if self.buffers is not None:
            self._remedies = (*self._remedies, self.buffers)
        self._fused: FusedSteps | None = None
        if overlap == "fused":
            assert isinstance(rule, EveryNthRound)
            assert isinstance(rule.every, StepRule)
            self._fused = FusedSteps(self.gossip, rule.every)
        self._nesting = StepNesting()
        self._awaited = AwaitedSteps(self.gossip.parameters)
        parts = (self.gossip, self.gradients, rule, self._awaited, self._remedies)
        self._state = TrainingState(*parts)
        self._stepping: Set[int] = frozenset()
        self._round_begins: Callable[[int], None] | None = None
        self.is_wrapper = is_wrapper
        self.has_ended = False
        self._known = {id(p) for p in self.gossip.parameters}
        self._planned = PlannedParameters(self.gossip, self._known, mixes=gossips)
        self.forward_begins = torch.compiler.disable(weakly(self._forward_begins))
        """Tells that a forward of the whole model begins; compiled code leaves its graph for it."""
        handles = self._register(awaits_in_forward)
        _live.add(self)
        leave = context.add_synchronizer(weakly(self._synchronize_if_concerned))
        plans = [p for p in (self.gossip, self.gradients, self.buffers) if p is not None]
        ends = [*(h.remove for h in handles), leave, *(plan.remove for plan in plans)]
        self._release = weakref.finalize(self, _call_all, ends)
        self._release.atexit = False

    def end(self) -> None:
        """Ends gossip as if nobody held this any more; an open round is dropped."""
        self.has_ended = True
        _live.remove(self)
        self._release()

    def require_not_ended(self) -> None:
        """Raises InvalidArgument after `end`."""
        if self.has_ended:
            raise InvalidArgument(
                "this wrapper's module has been wrapped again since: expected calls of the newer "
                "wrapper or of the module"
            )

    def __reduce__(self) -> NoReturn:
        raise InvalidArgument(
            "an optimizer that gossips cannot be copied or pickled: save its state_dict()"
        )

    def bind(self, optimizer: Optimizer) -> None:
        """Tells mode ``"fused"`` who steps; else the first steps do.

        Raises:
            InvalidArgument: If the optimizer cannot be stepped in parts.
        """
        if self._fused is not None:
            self._fused.bind(optimizer)

    @property
    def synced(self) -> bool:
        """Whether forwards now, and their backwards, count for a round: ``no_sync`` clears it."""
        return self._events.synced

    @synced.setter
    def synced(self, synced: bool) -> None:
        self._events.synced = synced

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backwards of forwards inside count for no round, as with DDP's ``no_sync``."""
        before = self.synced
        self.synced = False
        try:
            yield
        finally:
            self.synced = before

    def synchronize(self) -> None:
        """Closes the open round; runs the one that a skipped step has left owing."""
        self._do(self._events.synchronize())

    @property
    def num_rounds(self) -> int:
        """Rounds opened so far, those that `interval` leaves out too, or averages of gradients."""
        return self._events.num_rounds if self.gradients is None else self.gradients.num_averages

    def shadow_step(self) -> None:
        """Takes part in a step of the others: no optimizer steps, gradients count as zero."""
        before, self.synced = self.synced, True
        self._do(self._events.forward(grad_enabled=True, recomputing=False))
        self.exchange_buffers()
        self._events.backward()
        self.synced = before
        if self.gradients is not None:
            self.gradients.shadow()
        self._do(self._events.step_begin(closure=False) + self._events.step_end(complete=True))
        if self._fused is not None:
            self._fused.step_ends()

    def exchange_buffers(self) -> None:
        """Called when a forward of the whole model begins, after :meth:`forward_seen`."""
        if self.buffers is not None:
            self.buffers.forward_begins(self.num_rounds)

    def state_dict(self) -> dict[str, Any]:
        """Where gossip stands, beside parameters and optimizer. The open round is closed first."""
        self.synchronize()
        if self.gradients is not None:
            self.gradients.backward_ends()
        return self._state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], optimizer: Optimizer | None = None) -> None:
        """As :meth:`TrainingState.load_state_dict`."""
        self._events.catch_up()
        self._state.load_state_dict(state, optimizer)

    def gossips(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Whether one of them is among the gossiped."""
        return any(id(p) in self._known for p in parameters)

    def forward_seen(self, grad_enabled: bool, *, recomputing: bool) -> None:
        """Called when a forward begins, or goes on where a segment is read."""
        if grad_enabled and not recomputing:
            self._awaited.round_begins()
            if self._fused is not None:
                self._fused.forward_seen()
        if self.gradients is not None:
            self.gradients.forward_seen(grad_enabled, synced=self.synced, recomputing=recomputing)
        self._do(self._events.forward(grad_enabled=grad_enabled, recomputing=recomputing))

    def await_segment(
        self, index: int, grad_enabled: bool, tensors: Sequence[torch.Tensor] | None
    ) -> None:
        """Called where a forward is about to read a segment."""
        recomputing = in_backward()
        if recomputing or not self._events.in_known_forward or self.gradients is not None:
            self.forward_seen(grad_enabled, recomputing=recomputing)
        if recomputing and self._fused is not None:
            self._fused.require_unstepped(index)
        if not recomputing and self.gossip.wait_segment(index, tensors):
            self._tell_mixed(index, tensors)

    def gradient_seen(self, parameter: torch.Tensor) -> None:
        """Called when a gradient has been accumulated, from whichever thread runs the backward."""
        self._events.backward()
        if self.gradients is not None:
            self.gradients.gradient_seen(parameter, synced=self.synced)
        if self._fused is not None:
            self._fused.gradient_seen(parameter)

    def step_begins(self, optimizer: Optimizer, *, closure: bool) -> set[int]:
        """Called before any optimizer steps; the ids of parameters that it is not to step."""
        held = self._planned.held_by(optimizer)
        if not (held and self._nesting.enter(id(optimizer))):
            return set()
        stepped = set()
        if self._fused is not None:
            stepped = self._fused.step_begins(optimizer, closure=closure)
        self._stepping = held
        if self.gradients is not None:
            self.gradients.step_begins()
        actions = self._events.step_begin(closure=closure)
        for remedy in self._remedies:
            remedy.step_begins(optimizer, closure=closure, exchanges=bool(actions))
        if self._fused is None:  # it has closed what is written, and keeps open what is stepped
            self._do(actions)
        for remedy in self._remedies:
            remedy.before_step(optimizer)
        return stepped

    def step_ends(self, optimizer: Optimizer) -> None:
        """Called after any optimizer has stepped."""
        if not self._nesting.leave(id(optimizer)):
            return
        for remedy in self._remedies:
            remedy.after_step(optimizer)
        self._do(self._events.step_end(complete=self._awaited.stepped(self._stepping)))
        if self._fused is not None:
            self._fused.step_ends()

    def tell_rounds(self, begins: Callable[[int], None] | None) -> None:
        """Calls `begins` with the number of each round, as `num_rounds` counts, that begins."""
        if self.gradients is None:
            self._round_begins = begins
        else:
            self.gradients.round_begins = begins

    def _forward_begins(self) -> None:
        recomputing = in_backward()
        self.forward_seen(torch.is_grad_enabled(), recomputing=recomputing)
        if not recomputing:
            self.exchange_buffers()

    def _synchronize_if_concerned(self, model: nn.Module) -> None:
        if self.gossips(model.parameters()):
            self.synchronize()

    def _do(self, actions: Actions) -> None:
        if self._round_begins is not None:
            self._round_begins(self.num_rounds)
        for action in actions:
            if action is Action.OPEN:
                self._open()
            else:
                self._close()

    def _open(self) -> None:
        for remedy in self._remedies:
            remedy.opening()
        if self._fused is None:
            self.gossip.open_round()
        else:
            self._fused.post_rest()
        for remedy in self._remedies:
            remedy.opened()

    def _close(self) -> None:
        for remedy in self._remedies:
            remedy.closing()
        for index in self.gossip.close_round():
            self._tell_mixed(index)

    def _tell_mixed(self, index: int, tensors: Sequence[torch.Tensor] | None = None) -> None:
        for remedy in self._remedies:
            remedy.mixed(index, tensors or self.gossip.segments[index].parameters)

    def _register(self, awaits_in_forward: bool) -> list[RemovableHandle]:
        on_gradient = self._events.gradient_hook
        if self._fused is not None or self.gradients is not None:
            on_gradient = weakly(self.gradient_seen)
        handles = [
            p.register_post_accumulate_grad_hook(on_gradient) for p in self.gossip.parameters
        ]
        if awaits_in_forward:
            handles += register_wait_hooks(self.gossip.model, self.gossip.awaited, self)
        return handles


def attach(
    context: Context,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    config: GossipConfig,
    default_overlap: Overlap,
    is_wrapper: bool = False,
) -> RoundHooks | None:
    """Gossips a model from now on, while the answer is held; None with one rank."""
    if context.launch.size == 1:
        return None
    overlap = config.overlap_or(default_overlap)
    return RoundHooks(context, model, parameters, config, overlap, is_wrapper)


def context_of(model: nn.Module) -> Context:
    """What the ranks share among which a model is gossiped; the process's own if it is not.

    Raises:
        InvalidArgument: Parts of it are gossiped among unlike ranks.
        CrossoverError: It is not gossiped, and init() has not been called.
    """
    concerned = [hooks.gossip.context for hooks in _live if hooks.gossips(model.parameters())]
    if len({context.members for context in concerned}) > 1:
        raise InvalidArgument("model: expected one group of ranks for all of it, got several")
    return concerned[0] if concerned else current_context()


def synchronize(target: nn.Module | Optimizer | None = None) -> None:
    """Brings parameters to a state in which they may be read and written: no round is open.

    Waits for what is posted and mixes it; in modes ``"forward"`` and ``"none"`` it also runs the
    round of a backward that no step has followed (GradScaler skipped it). So call it on every rank
    at the same place if it may come between a backward and its step; after a step any rank may call
    it alone.

    Args:
        target: A wrapped model, its inner module, or an optimizer; None: everything gossiped
            since init().

    Raises:
        InvalidArgument: If a parameter was written since it was posted.
        CrossoverError: The engine's first failure.
    """
    for hooks in _live:
        if target is None:
            is_concerned = not hooks.gossip.context.is_closed
        else:
            is_concerned = hooks.gossips(_parameters_of(target))
        if is_concerned:
            hooks.synchronize()


def _parameters_of(target: nn.Module | Optimizer) -> Iterator[torch.Tensor]:
    if isinstance(target, nn.Module):
        reshard(target)
        yield from target.parameters()
    else:
        for group in target.param_groups:
            yield from group["params"]


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


_step_hooks = StepHooks(lambda: _live)
_live: LiveObjects[RoundHooks] = LiveObjects(_step_hooks.register, _step_hooks.remove)
