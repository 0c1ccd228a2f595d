"""A process group over an engine: a member's place, the group's life, how calls start."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import ProcessGroup

from crossover_comm import _C
from crossover_comm.errors import InvalidArgument
from crossover_comm.process_group.memory import Loan, element_name, reduction
from crossover_comm.process_group.work import CollectiveWork, Watcher

__all__ = ["EngineGroup", "Membership", "Tensors"]

_SHUTDOWN_S = 5.0

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Membership:
    """A process's place in a group.

    Attributes:
        name: The group's, as torch knows it.
        rank: 0 .. size - 1, within the group.
        size: Number of members.
        timeout_s: How long a collective may take, unless it is told otherwise.
    """

    name: str
    rank: int
    size: int
    timeout_s: float


class EngineGroup(ProcessGroup):
    """What all collectives of a group share; the collectives are in CrossoverProcessGroup.

    Args:
        member: This process's place.
        engine: Linked to all members; the group closes it.
    """

    def __init__(self, member: Membership, engine: _C.Engine) -> None:
        super().__init__(member.rank, member.size)
        self.member = member
        self._timeout_s = member.timeout_s
        self._engine = engine
        self._watcher = Watcher(engine)
        self._under_way: list[CollectiveWork] = []
        self._coalesced: list[CollectiveWork] | None = None
        self._name = member.name
        self._description = ""
        self._close = weakref.finalize(self, engine.shutdown, _SHUTDOWN_S)

    def getBackendName(self) -> str:  # noqa: N802, torch's name
        """ "crossover"."""
        return "crossover"

    def name(self) -> str:
        """ "crossover"."""
        return "crossover"

    @property
    def group_name(self) -> str:
        """The group's name in torch.distributed."""
        return self._name

    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_desc(self) -> str:
        """What the group's maker says it is for."""
        return self._description

    def _set_group_desc(self, description: str) -> None:
        self._description = description

    def set_timeout(self, timeout: timedelta) -> None:
        """How long the collectives to come may take, unless they are told otherwise."""
        self._timeout_s = timeout.total_seconds()

    def counters(self) -> dict[str, float]:
        """Bytes and messages, as :func:`crossover_comm.counters`."""
        return self._engine.counters()

    def shutdown(self) -> None:
        """Leaves the group, in bounded time. Works under way fail. Idempotent."""
        self._close()

    def abort(self) -> None:
        """Fails the works of all members, then leaves."""
        self._engine.fail("the process group was aborted")
        self._close()

    def _start_coalescing(self, device: torch.device) -> None:
        self._coalesced = []

    def _end_coalescing(self, device: torch.device) -> CollectiveWork:
        works, self._coalesced = self._coalesced or [], None
        calls = [call for work in works for call in work.calls]

        def settle() -> None:
            for work in works:
                work.settle()

        return CollectiveWork(self._engine, self._watcher, calls, [], settle)

    # --- shared by all calls

    def others(self) -> list[int]:
        """The ranks that follow this one in the circle."""
        rank, size = self.member.rank, self.member.size
        return [(rank + step) % size for step in range(1, size)]

    def place(
        self, call: str, dtype: torch.dtype, *, op: Any = None, root: int = 0
    ) -> _C.CallPlace:
        if not 0 <= root < self.member.size:
            raise InvalidArgument(
                f"{call}: expected a root of 0 .. {self.member.size - 1}, got {root}"
            )
        element, name = (element_name(dtype), "none")
        if op is not None:
            element, name = reduction(call, op, dtype)
        return _C.CallPlace(self.member.rank, self.member.size, root, element, name)

    def targets(self, call: str, outputs: Tensors) -> list[Loan]:
        return [Loan(call, output, is_read=False, is_written=True) for output in outputs]

    def parts(
        self, call: str, tensor: torch.Tensor, splits: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        """Views of the memory, one per rank: equal ones, or `splits` along the first dimension."""
        if not tensor.is_contiguous():
            raise InvalidArgument(f"{call}: expected a contiguous tensor, got one with strides")
        size, length = self.member.size, tensor.shape[0] if splits else tensor.numel()
        if splits and (len(splits) != size or sum(splits) != length):
            raise InvalidArgument(
                f"{call}: expected {size} splits that sum up to {length}, got {list(splits)}"
            )
        if not splits and length % size != 0:
            raise InvalidArgument(f"{call}: {length} elements are not divisible among {size} ranks")
        if splits:
            return list(tensor.detach().split(list(splits)))
        return list(tensor.detach().view(-1).split(length // size)) if length else [tensor] * size

    def require_sizes(self, call: str, tensors: Tensors, numels: Sequence[int | None]) -> None:
        """One tensor per rank, of these numbers of elements; None: any."""
        given = [tensor.numel() for tensor in tensors]
        matches = len(given) == len(numels) and all(
            wanted is None or numel == wanted for numel, wanted in zip(given, numels, strict=True)
        )
        if not matches:
            wanted = "any" if None in numels else str(list(numels))
            raise InvalidArgument(
                f"{call}: expected {self.member.size} tensors, one per rank, of {wanted} "
                f"elements, got {given}"
            )

    def start(
        self, programs: Sequence[_C.CallProgram], loans: Sequence[Loan], opts: Any, result: Tensors
    ) -> CollectiveWork:
        timeout_s = self._timeout_s
        if opts is not None and opts.timeout > timedelta(0):
            timeout_s = opts.timeout.total_seconds()
        calls = [self._engine.start_call(program, timeout_s) for program in programs]

        def settle() -> None:
            for loan in loans:
                loan.give_back()

        work = CollectiveWork(self._engine, self._watcher, calls, list(result), settle)
        # The engine uses the memory also when the caller drops the work.
        self._under_way = [other for other in self._under_way if not other.is_over()]
        self._under_way.append(work)
        if self._coalesced is not None:
            self._coalesced.append(work)
        return work
