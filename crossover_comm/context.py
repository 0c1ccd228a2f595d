"""init() and shutdown(), and the one object that holds what a process shares with its peers."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from types import TracebackType

import torch
from torch._C._distributed_c10d import PrefixStore, Store

from crossover_comm import _C
from crossover_comm.agreement import StoreGroup
from crossover_comm.device import Placement
from crossover_comm.errors import CrossoverError, InvalidArgument, ProgressTimeout, TransportError
from crossover_comm.gloo import GlooGroup
from crossover_comm.launch import Launch, detect_launch, find_process_group
from crossover_comm.rendezvous import MeetingPlan, meet
from crossover_comm.seal import Seal
from crossover_comm.settings import STALL_WARNING_S, NcclOptions, Settings, seconds
from crossover_comm.store import open_store, store_host

__all__ = [
    "Context",
    "Settings",
    "counters",
    "current_context",
    "init",
    "is_initialized",
    "joined_context",
    "local_rank",
    "local_size",
    "own_context",
    "rank",
    "shutdown",
    "size",
]

_SHUTDOWN_S = 5.0

_logger = logging.getLogger("crossover_comm")
_context: Context | None = None
_is_watching = False
_generations = itertools.count()


class Context:
    """What this process shares with its peers, from init() to shutdown().

    Attributes:
        launch: Rank, size and where they came from; local rank and size are filled in.
        settings: What init() was told.
        group: Small values and agreements through the store.
        engine: The progress thread and all plans.
        gloo: torch's collectives for use outside training; None with one rank.
        placement: Where the gossiped models live.
        members: The ranks of the job that share it.
        parts: The contexts of some of its ranks, by these; see crossover_comm.members.
        next_member_plan: An id that no plan of a part has here.
        is_closed: close() has been called.
    """

    def __init__(
        self,
        launch: Launch,
        settings: Settings,
        group: StoreGroup,
        engine: _C.Engine,
        gloo: GlooGroup | None,
        seal: Seal | None = None,
    ) -> None:
        self.launch = launch
        self.settings = settings
        self.group = group
        self.engine = engine
        self.gloo = gloo
        self.placement = Placement(settings, group, engine, seal)
        self.members = tuple(range(launch.size))
        self.parts: dict[tuple[int, ...], Context] = {}
        self.next_member_plan = _C.FIRST_CHOSEN_PLAN
        self.is_closed = False
        self._process = os.getpid()
        self._synchronizers: list[Callable[[torch.nn.Module], None]] = []

    def add_plan(
        self,
        plan: _C.SegmentPlan,
        schedule: _C.Schedule,
        first_round: int,
        device: _C.Device | None,
        raise_on_non_finite: bool | None = None,
    ) -> int:
        """As `engine.add_plan`, for a schedule of these ranks; all of them call it in one order."""
        return self.engine.add_plan(plan, schedule, first_round, device, raise_on_non_finite)

    def add_synchronizer(
        self, synchronizer: Callable[[torch.nn.Module], None]
    ) -> Callable[[], None]:
        """Registers what closes the open rounds of a model; returns what removes it again.

        The synchronizer is called with the model that somebody is about to read or write, and
        does nothing if that holds none of its parameters.
        """
        self._synchronizers.append(synchronizer)

        def remove() -> None:
            if synchronizer in self._synchronizers:
                self._synchronizers.remove(synchronizer)

        return remove

    def synchronize(self, model: torch.nn.Module) -> None:
        """Closes the open rounds of `model`, so that its parameters may be read and written."""
        for synchronizer in tuple(self._synchronizers):
            synchronizer(model)

    def agree(self, name: str, payload: str, timeout: float | timedelta | None = None) -> None:
        """Returns if the JSON text `payload` is the same on every rank; called by all of them.

        Args:
            name: What is called or agreed on, for messages.
            payload: See agreement.canonical_json.
            timeout: Seconds to wait for the other ranks; None: as init() was told.

        Raises:
            InvalidArgument: On every rank, naming what differs and where.
            ProgressTimeout: Some ranks did not call it in time.
        """
        self.require_own_process()
        waiting_s = self.settings.timeout_s if timeout is None else seconds("timeout", timeout)
        self.group.agree(name, payload, waiting_s)

    def require_own_process(self) -> None:
        """Raises InvalidArgument in a forked child: store and links are in use by its parent."""
        if self._is_forked() and self.launch.size > 1:
            raise InvalidArgument(
                "crossover_comm was used in a process forked after init(); its links belong to the "
                "parent"
            )

    def fail(self, cause: str) -> None:
        """Tells the peers that this rank has failed, and why. Never raises."""
        if self._is_forked():
            return
        self.engine.fail(cause)
        for context in (self, *self.parts.values()):
            context.group.announce_end(cause)

    def close(self) -> None:
        """Says farewell and ends the progress thread, in bounded time. Idempotent."""
        if self._is_forked():
            return
        for context in (self, *self.parts.values()):
            context.is_closed = True
            context.group.announce_end("it has shut down")
        self.engine.shutdown(_SHUTDOWN_S)
        for context in (self, *self.parts.values()):
            context.gloo = None

    def _is_forked(self) -> bool:
        return os.getpid() != self._process


def init(
    *,
    rank: int | None = None,
    size: int | None = None,
    store: Store | None = None,
    timeout: float | timedelta = 30.0,
    stall_timeout: float | timedelta = 1800.0,
    stall_warning: float | timedelta = STALL_WARNING_S,
    transport: str = "auto",
    interface: str | None = None,
    check_finite: bool = True,
    event_capacity: int = 0,
    nccl: NcclOptions | None = None,
) -> None:
    """Joins the job: finds the other ranks and connects to them. Called by every rank.

    Rank and size come from the arguments, torch.distributed's default process group, torchrun,
    Open MPI or Slurm, in this order; without any of them the process is the only rank, and
    everything works with nothing to do. Again with the same arguments: nothing happens.

    Args:
        rank: 0 .. size - 1; together with `size`.
        size: Number of ranks.
        store: A torch store that all ranks share; None: made at MASTER_ADDR and MASTER_PORT.
        timeout: Seconds after which a silent peer is lost, and for each step of the set-up.
        stall_timeout: Seconds that a peer which lives may take to post its part of a round.
        stall_warning: Seconds of waiting for such a peer before a warning is logged; then at twice
            the time, and so on.
        transport: "auto": NCCL for models on a GPU, else shared memory within a host and TCP
            between hosts; "nccl", "shm" or "tcp": that alone, the latter two through host memory
            for models on a GPU.
        interface: Interface or address to listen on; None: CROSSOVER_INTERFACE, else loopback if
            all ranks share a host, else the interface that routes to rank 0.
        check_finite: A NaN or infinity in a parameter raises before it is sent.
        event_capacity: Number of engine events kept for inspection.
        nccl: How NCCL is used; None: as NcclOptions() says.

    Raises:
        InvalidArgument: Contradictory arguments or environment, or not the same on every rank.
        TransportError: Ranks are missing, refused or cannot be reached.
    """
    global _context
    settings = Settings(
        rank=rank,
        size=size,
        store=store,
        timeout_s=seconds("timeout", timeout),
        stall_timeout_s=seconds("stall_timeout", stall_timeout),
        transport=transport,
        interface=interface or os.environ.get("CROSSOVER_INTERFACE") or None,
        check_finite=check_finite,
        event_capacity=event_capacity,
        stall_warning_s=seconds("stall_warning", stall_warning),
        nccl=nccl or NcclOptions(),
    )
    settings.require_transport()
    if _context is not None:
        _context.require_own_process()
        _context.settings.require_same(settings)
        return
    _context = _join(settings)
    _watch_the_end_of_the_process()


def shutdown() -> None:
    """Leaves the job, in bounded time; does nothing before init(). init() may follow."""
    global _context
    context, _context = _context, None
    if context is not None:
        context.close()


def is_initialized() -> bool:
    """Whether init() has been called, and shutdown() not yet."""
    return _context is not None


def current_context() -> Context:
    """The context of this process.

    Raises:
        CrossoverError: init() has not been called.
    """
    if _context is None:
        raise CrossoverError("not initialised: call crossover_comm.init() first")
    return _context


def joined_context() -> Context | None:
    """The process's own context, if init() has been called."""
    return current_context() if is_initialized() else None


def own_context() -> Context:
    """The process's own context; init() is called first if it was not."""
    if not is_initialized():
        init()
    return current_context()


def rank() -> int:
    """This process's rank, 0 .. size() - 1."""
    return current_context().launch.rank


def size() -> int:
    """The number of ranks."""
    return current_context().launch.size


def local_rank() -> int:
    """This process's index among the ranks of its host."""
    index = current_context().launch.local_rank
    assert index is not None
    return index


def local_size() -> int:
    """The number of ranks on this host."""
    count = current_context().launch.local_size
    assert count is not None
    return count


def counters() -> dict[str, float]:
    """Bytes and messages that gossip has moved since init(), as this rank saw it.

    Returns:
        payload_sent_bytes, payload_received_bytes: Parameters alone. wire_sent_bytes,
        wire_received_bytes: Headers and control frames included. messages_sent,
        messages_received: One per segment and peer. first_contact_s: What it took NCCL to start and
        to connect with all peers; 0 before, and without NCCL.
    """
    return current_context().engine.counters()


def _join(settings: Settings) -> Context:
    launch, store = _find_place(settings)
    if launch.size == 1:
        launch = replace(launch, local_rank=0, local_size=1)
        group = StoreGroup(None, 0, 1)
        return Context(launch, settings, group, _start_engine(launch, settings, [None]), None)
    if store is None:
        store = open_store(launch, settings.timeout_s)
    prefix = f"crossover_comm/{launch.restart_count}/{next(_generations)}"
    group = StoreGroup(PrefixStore(prefix, store), launch.rank, launch.size)
    try:
        meeting = meet(group, _meeting_plan(launch, store, settings))
        gloo = GlooGroup(
            PrefixStore(f"{prefix}/gloo", store),
            launch.rank,
            launch.size,
            meeting.address,
            settings.timeout_s,
        )
        # Past this barrier nobody needs the store for the set-up any more, so rank 0 may end.
        gloo.barrier("init")
        engine = _start_engine(launch, settings, meeting.pipes)
    except BaseException as error:
        group.announce_end(f"{type(error).__name__} in init: {error}")
        if isinstance(error, ProgressTimeout):  # nobody has met yet: the ranks are not there
            raise TransportError(str(error)) from error
        raise
    if launch.local_rank is None or launch.local_size is None:
        launch = replace(launch, local_rank=meeting.local_rank, local_size=meeting.local_size)
    return Context(launch, settings, group, engine, gloo, meeting.seal)


def _meeting_plan(launch: Launch, store: Store, settings: Settings) -> MeetingPlan:
    return MeetingPlan(
        transport=settings.transport,
        interface=settings.interface,
        master_addr=launch.master_addr or store_host(store),
        configuration={
            "timeout": settings.timeout_s,
            "stall_timeout": settings.stall_timeout_s,
            "check_finite": settings.check_finite,
            "nccl": asdict(settings.nccl),
        },
        timeout_s=settings.timeout_s,
    )


def _find_place(settings: Settings) -> tuple[Launch, Store | None]:
    found = find_process_group() if settings.rank is None and settings.store is None else None
    if found is None:
        launch = detect_launch(settings.rank, settings.size, has_store=settings.store is not None)
        return launch, settings.store
    group_rank, group_size, store = found
    launch = detect_launch(group_rank, group_size, has_store=True)
    return replace(launch, source="torch.distributed's default process group"), store


def _start_engine(launch: Launch, settings: Settings, pipes: list[_C.Pipe | None]) -> _C.Engine:
    return _C.Engine(
        rank=launch.rank,
        size=launch.size,
        pipes=pipes,
        timeout_s=settings.timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
        stall_warning_s=settings.stall_warning_s,
        raise_on_non_finite=settings.check_finite,
        event_capacity=settings.event_capacity,
        incarnation=secrets.randbits(63),
        warn=_logger.warning,
    )


def _watch_the_end_of_the_process() -> None:
    """From now on the peers learn of its end, and of an exception that is its cause."""
    global _is_watching
    if _is_watching:
        return
    _is_watching = True
    atexit.register(shutdown)
    if hasattr(sys, "ps1"):
        return  # at a prompt, an exception ends nothing
    previous = sys.excepthook

    def tell_peers(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if _context is not None:
            _context.fail(f"{kind.__name__}: {error}".removesuffix(": "))
        previous(kind, error, traceback)

    sys.excepthook = tell_peers
