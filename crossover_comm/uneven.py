"""Uneven inputs: a rank that has run out of data serves its peers until all have.

A rank that has data says in the store when it begins a round. One that has none waits for that, and
then takes part with a *shadow step*. The last rank to run out names the number of rounds, so that
all run as many as the one with the most data, and none more.
"""

from __future__ import annotations

import contextlib
import json
import weakref
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.algorithms.join import JoinHook

from crossover_comm.buffers import CommonBuffers
from crossover_comm.context import Context
from crossover_comm.errors import InvalidArgument
from crossover_comm.gradients import copy_from_roots
from crossover_comm.hooks import RoundHooks
from crossover_comm.store import await_key

__all__ = ["ShadowHook", "UnevenInputs", "join_group"]


class Exhausted(RuntimeError):
    """Some rank has run out of data, and the user asked for an end."""


class UnevenInputs(contextlib.AbstractContextManager[None]):
    """The context of ``DistributedDataParallel.join``. Entered and left by every rank.

    When it ends all ranks have run the same number of rounds. Where gradients are averaged the
    parameters become those of a rank that has taken all steps.

    Args:
        hooks: The model's.
        number: How many contexts of this model came before.
        throws: All ranks raise RuntimeError once one has run out of data.
        divides_by_size: Averages of gradients divide by the number of ranks, else by that of the
            ranks which still have data.

    Raises:
        InvalidArgument: The model is gossiped among groups, or another such context is open.
        ProgressTimeout: Ranks with data began no round in `stall_timeout`.
    """

    def __init__(
        self, hooks: RoundHooks, number: int, *, throws: bool, divides_by_size: bool
    ) -> None:
        context = hooks.gossip.context
        require_flat(hooks)
        assert context.group.store is not None
        self._hooks = hooks
        self._context = context
        self._store: Store = context.group.store
        self._key = f"join/{hooks.gossip.plan}/{number}"
        self._throws = throws
        self._divides_by_size = divides_by_size
        self._told = 0

    def __enter__(self) -> None:
        if self._context in _open:
            raise InvalidArgument(
                "join: expected one model at a time, got a second one; use "
                "torch.distributed.algorithms.Join([first, second])"
            )
        _open.add(self._context)
        expect_uneven(self._hooks, self._divides_by_size)
        self._hooks.tell_rounds(self._round_begins)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _open.discard(self._context)
        try:
            is_uneven = kind in (None, Exhausted) and self._serve()
        finally:
            self._hooks.tell_rounds(None)
            expect_even(self._hooks)
        if kind is None and is_uneven and self._throws:
            raise Exhausted(f"rank {self._context.launch.rank} or another exhausted all inputs")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward_begins(self) -> None:
        """Called before each forward that counts.

        Raises:
            Exhausted: A rank ran out of data before this step, and this is to end all.
        """
        key = f"{self._key}/fewest"
        if not self._throws or not self._store.check([key]):
            return
        if int(self._store.get(key)) <= self._hooks.num_rounds:
            self._store.set(f"{self._key}/has raised", "")
            raise Exhausted("a rank has exhausted all inputs, so that all raise")

    def _round_begins(self, number: int) -> None:
        if number <= self._told:
            return
        self._told = number
        self._store.set(self._begun(number), "")
        stale = number - _KEPT_ROUNDS
        if stale > 0 and stale % self._context.launch.size == self._context.launch.rank:
            self._store.delete_key(self._begun(stale))

    def _serve(self) -> bool:
        """Takes part in the others' rounds to the end; whether some ran out before others."""
        hooks, context = self._hooks, self._context
        hooks.synchronize()
        hooks.tell_rounds(None)
        num_own = num_rounds = hooks.num_rounds
        self._store.set(f"{self._key}/own/{context.launch.rank}", str(num_own))
        self._lower_fewest(num_own)
        data_ends(hooks)
        if self._store.add(f"{self._key}/number", 1) == context.launch.size:
            self._end()
        while True:
            self._await(self._begun(num_rounds + 1))
            if self._store.check([f"{self._key}/outcome"]):
                outcome = json.loads(self._store.get(f"{self._key}/outcome"))
                if num_rounds == outcome["num_rounds"]:
                    break
            num_rounds += 1
            while hooks.num_rounds < num_rounds:
                hooks.shadow_step()
                hooks.exchange_buffers()
        hooks.synchronize()
        copy_from(hooks, outcome["root"])
        context.agree(f"the end of {self._key}", "{}")
        return bool(outcome["is_uneven"])

    def _lower_fewest(self, num_own: int) -> None:
        key, wanted, found = f"{self._key}/fewest", str(num_own), ""
        while not found or int(found) > num_own:
            found = self._store.compare_set(key, found, wanted).decode()

    def _end(self) -> None:
        """All have run out: tells how many rounds there are, and wakes those that wait for more."""
        ranks = range(self._context.launch.size)
        own = [int(self._store.get(f"{self._key}/own/{rank}")) for rank in ranks]
        most = max(own)
        is_uneven = min(own) < most or self._store.check([f"{self._key}/has raised"])
        outcome = {"num_rounds": most, "root": own.index(most), "is_uneven": is_uneven}
        self._store.set(f"{self._key}/outcome", json.dumps(outcome))
        self._store.set(self._begun(most + 1), "")

    def _begun(self, number: int) -> str:
        return f"{self._key}/begun/{number}"

    def _await(self, key: str) -> None:
        """Waits for a key as long as a living peer may take."""
        await_key(
            self._store,
            key,
            self._context.engine.check_failure,
            self._context.settings.stall_timeout_s,
            "join: ranks with data have begun no round",
        )


class ShadowHook(JoinHook):
    """What torch's ``Join`` calls on a rank that has run out of data, once per step of the others.

    Args:
        hooks: The model's; None with one rank.
        divides_by_size: As for :class:`UnevenInputs`.
    """

    def __init__(self, hooks: RoundHooks | None, divides_by_size: bool) -> None:
        self._hooks = hooks
        if hooks is not None:
            require_flat(hooks)
            expect_uneven(hooks, divides_by_size)
        self._has_served = False

    def main_hook(self) -> None:
        if self._hooks is None:
            return
        if not self._has_served:
            self._hooks.synchronize()
            data_ends(self._hooks)
        self._has_served = True
        self._hooks.shadow_step()

    def post_hook(self, is_last_joiner: bool) -> None:
        hooks = self._hooks
        if hooks is None:
            return
        hooks.synchronize()
        expect_even(hooks)
        context = hooks.gossip.context
        last = context.group.gather("the last to join", is_last_joiner, context.settings.timeout_s)
        copy_from(hooks, last.index(True))


def join_group() -> Any:
    """The process group whose all-reduces torch's ``Join`` counts by.

    Raises:
        InvalidArgument: There is none.
    """
    if not dist.is_initialized():
        raise InvalidArgument(
            "torch.distributed.algorithms.Join: expected torch.distributed's default process group "
            "to be initialised, got none; model.join() needs none"
        )
    return dist.group.WORLD


def require_flat(hooks: RoundHooks) -> None:
    """Raises InvalidArgument if groups gossip: a rank without data would fall behind its group."""
    if hooks.gradients is not None and hooks.gradients.num_groups > 1:
        raise InvalidArgument(
            "join: expected no groups or groups='world', got several groups, whose members must "
            "take equal steps; give every rank as many batches"
        )


def expect_uneven(hooks: RoundHooks, divides_by_size: bool) -> None:
    """From now on ranks may run out of data."""
    if hooks.gradients is not None:
        hooks.gradients.divides_by_size = divides_by_size
    if isinstance(hooks.buffers, CommonBuffers):
        hooks.buffers.is_uneven = True


def expect_even(hooks: RoundHooks) -> None:
    """All ranks have data again."""
    if hooks.gradients is not None:
        hooks.gradients.divides_by_size = True
    if isinstance(hooks.buffers, CommonBuffers):
        hooks.buffers.is_uneven = False
        hooks.buffers.has_data = True


def data_ends(hooks: RoundHooks) -> None:
    """This rank has no more data; it takes part in what buffers still owe to its last step."""
    if isinstance(hooks.buffers, CommonBuffers):
        hooks.buffers.has_data = False
        hooks.exchange_buffers()


def copy_from(hooks: RoundHooks, root: int) -> None:
    """What all ranks have in common becomes this rank's."""
    if hooks.gradients is not None:
        copy_from_roots(hooks.gossip, _rooted(root, hooks.gossip.context.launch.size))
    if isinstance(hooks.buffers, CommonBuffers):
        hooks.buffers.copy_from(root)


_KEPT_ROUNDS = 4096
"""Further back no rank can be: it would hold up the others."""
_open: weakref.WeakSet[Context] = weakref.WeakSet()


def _rooted(root: int, size: int) -> tuple[tuple[int, ...], ...]:
    """All ranks as one group whose first is `root`."""
    return ((root, *(rank for rank in range(size) if rank != root)),)
