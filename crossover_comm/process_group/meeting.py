"""How the members of a process group meet: links and an engine of the group's own."""

from __future__ import annotations

import collections
import logging
import secrets
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from crossover_comm import _C
from crossover_comm.agreement import StoreGroup
from crossover_comm.errors import InvalidArgument
from crossover_comm.process_group.engine_group import Membership
from crossover_comm.process_group.group import CrossoverProcessGroup
from crossover_comm.rendezvous import MeetingPlan, meet
from crossover_comm.store import store_host

__all__ = ["ProcessGroupOptions", "register"]

_NAME = "crossover"
_TRANSPORTS = ("auto", "shm", "tcp")

_logger = logging.getLogger("crossover_comm")
_num_created: collections.Counter[str] = collections.Counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessGroupOptions:
    """How the members of one process group are linked; equal on all of them.

    Passed as ``pg_options`` of ``init_process_group`` or ``new_group``.

    Attributes:
        transport: "auto": shared memory within a host, TCP between hosts; "shm" or "tcp": that
            alone.
        interface: Interface or address to listen on; None: loopback if all members share a host,
            else the interface that routes to the store.
        liveness_timeout: Seconds after which a member that shows no sign of life is lost.
    """

    transport: str = "auto"
    interface: str | None = None
    liveness_timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.transport not in _TRANSPORTS:
            raise InvalidArgument(
                f"transport: expected one of {', '.join(_TRANSPORTS)}, got {self.transport!r}"
            )
        if not self.liveness_timeout > 0:
            raise InvalidArgument(
                f"liveness_timeout: expected seconds > 0, got {self.liveness_timeout!r}"
            )


def register() -> None:
    """Makes the backend known to torch.distributed, once; does nothing where torch has none."""
    if dist.is_available() and not hasattr(dist.Backend, _NAME.upper()):
        dist.Backend.register_backend(_NAME, _create, extended_api=True, devices=["cpu"])


def _create(place: Any, options: object | None) -> CrossoverProcessGroup:
    """Called by torch.distributed in every member of a new group."""
    if options is None:
        options = ProcessGroupOptions()
    if not isinstance(options, ProcessGroupOptions):
        raise InvalidArgument(
            "pg_options: backend 'crossover' expects crossover_comm.ProcessGroupOptions, got "
            f"{type(options).__name__}"
        )
    member = Membership(
        name=place.group_id,
        rank=place.group_rank,
        size=place.group_size,
        timeout_s=place.timeout.total_seconds(),
    )
    # torch names a group that replaces a destroyed one like that one, and the store remembers.
    number = _num_created[member.name]
    _num_created[member.name] += 1
    store = PrefixStore(f"crossover_comm/{number}", place.store)
    return CrossoverProcessGroup(member, _joined(member, store, options))


def _joined(member: Membership, store: Store, options: ProcessGroupOptions) -> _C.Engine:
    pipes: list[_C.Pipe | None] = [None]
    if member.size > 1:
        group = StoreGroup(store, member.rank, member.size)
        plan = MeetingPlan(
            transport=options.transport,
            interface=options.interface,
            master_addr=store_host(store),
            configuration={"process group": asdict(options), "timeout": member.timeout_s},
            timeout_s=member.timeout_s,
        )
        try:
            pipes = meet(group, plan).pipes
        except BaseException as error:
            group.announce_end(f"{type(error).__name__} in init_process_group: {error}")
            raise
    return _C.Engine(
        rank=member.rank,
        size=member.size,
        pipes=pipes,
        timeout_s=options.liveness_timeout,
        stall_timeout_s=member.timeout_s,
        stall_warning_s=member.timeout_s,
        raise_on_non_finite=False,
        event_capacity=0,
        incarnation=secrets.randbits(63),
        warn=_logger.warning,
    )
