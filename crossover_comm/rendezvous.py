"""How the ranks meet: a store, each other's addresses, and a pipe to every peer.

The store tells who is where; the pipes are then made without it. Pairs of one host and network
namespace share memory, passed over an abstract unix socket; the others use TCP. Of each pair the
lower rank listens. All listeners are closed when the set-up is done.

The connections are authenticated by the job key: the file that CROSSOVER_JOB_KEY_FILE names, else
random bytes that rank 0 publishes in the store. The latter are no safer than the store itself:
whoever can read the store can join the job.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from crossover_comm import _C
from crossover_comm._version import __version__
from crossover_comm.agreement import StoreGroup, canonical_json
from crossover_comm.errors import InvalidArgument, TransportError
from crossover_comm.handshake import Identity, read_job_key
from crossover_comm.interfaces import Locality, choose_address
from crossover_comm.links import Endpoint, Link, connect_all, listen
from crossover_comm.seal import Seal

__all__ = ["Medium", "Meeting", "MeetingPlan", "choose_media", "meet"]

Medium: TypeAlias = Literal["shm", "tcp"]

_NUM_CHANNEL_FDS = 3
_CALL = "init"


@dataclass(frozen=True, slots=True)
class MeetingPlan:
    """What one rank brings along.

    Attributes:
        transport: "shm" or "tcp": that alone; else whichever suits.
        interface: Name or address to listen on; None: find it.
        master_addr: Host of rank 0, if known.
        configuration: What must be equal on every rank besides, ready for JSON.
        timeout_s: For each step of the meeting.
    """

    transport: str
    interface: str | None
    master_addr: str | None
    configuration: Mapping[str, object]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Meeting:
    """What came of it.

    Attributes:
        pipes: To each rank; None for this one.
        address: That this rank is reached at.
        local_rank: Index among the ranks of this machine.
        local_size: Number of ranks on this machine.
        seal: For what the ranks publish later.
    """

    pipes: list[_C.Pipe | None]
    address: str
    local_rank: int
    local_size: int
    seal: Seal


def meet(group: StoreGroup, plan: MeetingPlan) -> Meeting:
    """Meets the other ranks; called by all of them, more than one.

    Raises:
        InvalidArgument: Another configuration on some rank, or one that cannot be.
        TransportError, ProgressTimeout: Ranks are missing or cannot be reached.
    """
    key_file = os.environ.get("CROSSOVER_JOB_KEY_FILE")
    own_key = read_job_key(key_file) if key_file else None
    configuration = canonical_json(
        {
            **plan.configuration,
            "version": __version__,
            "size": group.size,
            "transport": plan.transport,
            "job key": "a file" if own_key else "from the store",
        }
    )
    group.agree(f"{_CALL}, configuration", configuration, plan.timeout_s)
    locality = Locality.of_this_process()
    greeting: dict[str, object] = {"locality": locality.to_json()}
    if group.rank == 0:
        greeting["job"] = secrets.token_hex(16)
        greeting["key"] = None if own_key else secrets.token_hex(32)
    greetings = group.gather(f"{_CALL}, greeting", greeting, plan.timeout_s)
    localities = [Locality(**other["locality"]) for other in greetings]
    media = choose_media(group.rank, localities, plan.transport)
    address = choose_address(plan.interface, plan.master_addr, len(set(localities)) == 1)
    identity = Identity(
        key=own_key or bytes.fromhex(greetings[0]["key"]),
        job=bytes.fromhex(greetings[0]["job"]),
        fingerprint=hashlib.sha256(configuration.encode()).digest(),
        rank=group.rank,
    )
    pipes = _make_pipes(group, identity, media, address, plan.timeout_s)
    neighbours = [r for r, other in enumerate(localities) if other.machine == locality.machine]
    seal = Seal(identity.key, identity.job)
    return Meeting(pipes, address, neighbours.index(group.rank), len(neighbours), seal)


def choose_media(rank: int, localities: Sequence[Locality], transport: str) -> dict[int, Medium]:
    """What leads to each peer of `rank`. The same verdict on every rank.

    Raises:
        InvalidArgument: "shm" is asked for, but not all ranks can share memory.
    """
    if transport == "shm":
        remote = [r for r, other in enumerate(localities) if other != localities[0]]
        if remote:
            raise InvalidArgument(
                f"transport='shm': ranks {remote} do not share host, network and pid namespace and "
                f"user with rank 0 ({_difference(localities[0], localities[remote[0]])}); use "
                "transport='auto' or 'tcp'"
            )
    return {
        peer: "shm" if transport != "tcp" and other == localities[rank] else "tcp"
        for peer, other in enumerate(localities)
        if peer != rank
    }


def _difference(a: Locality, b: Locality) -> str:
    theirs = b.to_json()
    return ", ".join(
        f"{name} {value} and {theirs[name]}"
        for name, value in a.to_json().items()
        if value != theirs[name]
    )


def _make_pipes(
    group: StoreGroup,
    identity: Identity,
    media: Mapping[int, Medium],
    address: str,
    timeout_s: float,
) -> list[_C.Pipe | None]:
    expected = frozenset(peer for peer in media if peer > group.rank)
    wanted = {
        "shm": Endpoint(f"crossover_comm-{secrets.token_hex(16)}", 0),
        "tcp": Endpoint(address, -1),
    }
    with contextlib.ExitStack() as listening:
        listeners = []
        endpoints: dict[str, tuple[str, int]] = {}
        for medium in sorted({media[peer] for peer in expected}):
            listener, endpoint = listen(wanted[medium])
            listeners.append(listening.enter_context(listener))
            endpoints[medium] = (endpoint.address, endpoint.port)
        all_endpoints = group.gather(f"{_CALL}, addresses", endpoints, timeout_s)
        targets = {
            peer: Endpoint(*all_endpoints[peer][medium])
            for peer, medium in media.items()
            if peer < group.rank
        }
        try:
            links = connect_all(identity, listeners, expected, targets, timeout_s)
        except TransportError as error:
            raise _with_causes(error, group, media) from error
    return _pipes_of(links, media, group, timeout_s)


def _with_causes(
    error: TransportError, group: StoreGroup, peers: Mapping[int, Any]
) -> TransportError:
    causes = [f"rank {rank} said: {cause}" for rank, cause in group.ends(list(peers)).items()]
    return TransportError("; ".join([str(error), *causes]))


def _pipes_of(
    links: Mapping[int, Link], media: Mapping[int, Medium], group: StoreGroup, timeout_s: float
) -> list[_C.Pipe | None]:
    """Turns links into pipes. Every rank sends all its channels before it waits for one."""
    pipes: list[_C.Pipe | None] = [None] * group.size
    deadline = time.monotonic() + timeout_s
    try:
        for peer, link in sorted(links.items(), reverse=True):
            if media[peer] == "tcp":
                pipes[peer] = _C.tcp_pipe(link.socket.detach(), link.label)
            elif peer > group.rank:
                pipes[peer] = _send_channel(link)
            else:
                pipes[peer] = _receive_channel(link, max(deadline - time.monotonic(), 0.001))
    finally:
        for link in links.values():
            link.close()
    return pipes


def _send_channel(link: Link) -> _C.Pipe:
    fds = _C.create_shared_memory_channel()
    try:
        socket.send_fds(link.socket, [b"\0"], fds)
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise TransportError(f"{link.label}: cannot pass shared memory: {error}") from error
    return _C.shared_memory_pipe(*fds, 0, link.take_process_fd(), link.label)


def _receive_channel(link: Link, timeout_s: float) -> _C.Pipe:
    link.socket.settimeout(timeout_s)
    try:
        _, fds, flags, _ = socket.recv_fds(
            link.socket, 1, _NUM_CHANNEL_FDS, socket.MSG_CMSG_CLOEXEC
        )
    except OSError as error:
        raise TransportError(f"{link.label}: no shared memory arrived: {error}") from error
    if len(fds) != _NUM_CHANNEL_FDS or flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise TransportError(f"{link.label}: expected 3 descriptors, got {len(fds)}")
    memory, wake_0, wake_1 = fds
    return _C.shared_memory_pipe(memory, wake_0, wake_1, 1, link.take_process_fd(), link.label)
