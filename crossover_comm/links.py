"""Authenticated connections to all peers, set up at once, undisturbed by whoever else connects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from crossover_comm.errors import TransportError
from crossover_comm.handshake import (
    MESSAGE_BYTES,
    Acceptor,
    Connector,
    HandshakeError,
    Identity,
    RefusalReason,
)

__all__ = ["Endpoint", "Link", "connect_all", "listen"]

_HANDSHAKE_TIMEOUT_S = 5.0
_MAX_HANDSHAKES = 128
_RETRY_S = 0.2
_BACKLOG = 1024
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

_logger = logging.getLogger("crossover_comm")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a rank listens: an address and port, or (port 0) an abstract unix socket's name."""

    address: str
    port: int

    @property
    def is_unix(self) -> bool:
        return self.port == 0

    @property
    def family(self) -> socket.AddressFamily:
        if self.is_unix:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    @property
    def socket_address(self) -> str | tuple[str, int]:
        """As bind and connect take it; a port of -1 lets the system choose."""
        return f"\0{self.address}" if self.is_unix else (self.address, max(self.port, 0))

    def __str__(self) -> str:
        return "a unix socket" if self.is_unix else _host_port(self.address, self.port)


@dataclass(slots=True)
class Link:
    """A connection whose other end has proved to be `peer`.

    Attributes:
        socket: Connected; the owner closes it or detaches its descriptor.
        where: The other end, for messages: "10.0.0.4:4711" or "process 123".
        process_fd: A pidfd of the peer, owned; -1 over TCP.
        peer: The rank at the other end.
    """

    socket: socket.socket
    where: str
    process_fd: int = -1
    peer: int = -1

    @property
    def label(self) -> str:
        return f"rank {self.peer} ({self.where})"

    def take_process_fd(self) -> int:
        """The pidfd, from now on the caller's."""
        taken, self.process_fd = self.process_fd, -1
        return taken

    def close(self) -> None:
        """Closes what the link still owns."""
        self.socket.close()
        if self.process_fd >= 0:
            os.close(self.take_process_fd())


def listen(endpoint: Endpoint) -> tuple[socket.socket, Endpoint]:
    """A listening socket, and the endpoint with the port that the system chose if it was -1.

    Raises:
        TransportError: The address cannot be bound.
    """
    listener = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        listener.bind(endpoint.socket_address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise TransportError(f"cannot listen on {endpoint}: {error.strerror}") from error
    listener.setblocking(False)
    if endpoint.is_unix:
        return listener, endpoint
    return listener, Endpoint(endpoint.address, listener.getsockname()[1])


def connect_all(
    identity: Identity,
    listeners: Sequence[socket.socket],
    expected: frozenset[int],
    targets: Mapping[int, Endpoint],
    timeout_s: float,
) -> dict[int, Link]:
    """Connects to every target and waits for every expected rank; the links by peer.

    Strangers are refused, logged once each, and change nothing. The listeners stay the caller's.

    Args:
        identity: Of this rank.
        listeners: Where the expected ranks connect to.
        expected: The ranks that connect to this one.
        targets: Where the ranks listen that this one connects to.
        timeout_s: For all of it.

    Raises:
        TransportError: Names the ranks that are missing, and why if it was seen.
    """
    setup = _Setup(identity, listeners, expected, targets)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(setup.run(timeout_s))
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_run, setup.run(timeout_s)).result()


def _run(work: Coroutine[Any, Any, dict[int, Link]]) -> dict[int, Link]:
    # Not asyncio.run(): it would leave the user's thread without an event loop.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


class _Setup:
    def __init__(
        self,
        identity: Identity,
        listeners: Sequence[socket.socket],
        expected: frozenset[int],
        targets: Mapping[int, Endpoint],
    ) -> None:
        self._identity = identity
        self._listeners = listeners
        self._missing = set(expected)
        self._targets = targets
        self._links: dict[int, Link] = {}
        self._refused: set[tuple[str, str]] = set()
        self._wrong_keys: list[str] = []

    async def run(self, timeout_s: float) -> dict[int, Link]:
        try:
            await self._run_tasks(timeout_s)
        except BaseException:
            for link in self._links.values():
                link.close()
            raise
        return self._links

    async def _run_tasks(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._all_accepted: asyncio.Future[None] = loop.create_future()
        self._free_slots = asyncio.Semaphore(_MAX_HANDSHAKES)
        self._handshakes: set[asyncio.Task[None]] = set()
        if not self._missing:
            self._all_accepted.set_result(None)
        accepting = [loop.create_task(self._accept(listener)) for listener in self._listeners]
        connecting = [loop.create_task(self._connect(peer)) for peer in self._targets]
        try:
            await asyncio.wait_for(asyncio.gather(self._all_accepted, *connecting), timeout_s)
        except asyncio.TimeoutError:
            raise self._timed_out(timeout_s) from None
        finally:
            tasks = [*accepting, *connecting, *self._handshakes]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, peer: int) -> None:
        endpoint = self._targets[peer]
        try:
            self._links[peer] = await self._introduce_patiently(peer, endpoint)
        except HandshakeError as error:
            how = "refused this rank" if error.by_peer else "was refused by this rank"
            raise TransportError(f"rank {peer} at {endpoint} {how}: {error}") from None
        except (OSError, EOFError) as error:
            raise TransportError(
                f"no connection to rank {peer} at {endpoint}: {_reason(error)}"
            ) from error

    async def _introduce_patiently(self, peer: int, endpoint: Endpoint) -> Link:
        """Tries again if the peer hangs up without a word: on a busy machine a handshake can take
        longer than it listens to. One that listens no more refuses the next connection."""
        while True:
            try:
                return await self._introduce(peer, endpoint)
            except (EOFError, ConnectionResetError, BrokenPipeError):
                await asyncio.sleep(_RETRY_S)

    async def _introduce(self, peer: int, endpoint: Endpoint) -> Link:
        loop = asyncio.get_running_loop()
        sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
        link = Link(sock, str(endpoint), peer=peer)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, endpoint.socket_address)
            _identify(link)
            connector = Connector(self._identity, peer)
            await loop.sock_sendall(sock, connector.hello())
            await loop.sock_sendall(sock, connector.proof(await _receive(sock)))
            connector.finish(await _receive(sock))
        except BaseException:
            link.close()
            raise
        return link

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._free_slots.acquire()
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                if not self._all_accepted.done():
                    self._all_accepted.set_exception(
                        TransportError(f"cannot accept connections: {error.strerror}")
                    )
                return
            link = Link(sock, _host_port(*address[:2]) if address else "a unix socket")
            task = loop.create_task(self._serve(link))
            self._handshakes.add(task)
            task.add_done_callback(self._handshake_ended)

    def _handshake_ended(self, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        self._free_slots.release()

    async def _serve(self, link: Link) -> None:
        try:
            await asyncio.wait_for(self._authenticate(link), _HANDSHAKE_TIMEOUT_S)
        except HandshakeError as error:
            if error.reason == RefusalReason.WRONG_KEY:
                self._wrong_keys.append(f"rank {error.claimed_rank} from {link.where}")
            self._refuse(link, str(error))
        except asyncio.TimeoutError:
            self._refuse(link, f"it kept silent for {_HANDSHAKE_TIMEOUT_S:g} s")
        except (OSError, EOFError) as error:
            self._refuse(link, _reason(error))
        except BaseException:
            link.close()
            raise

    async def _authenticate(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        _identify(link)
        acceptor = Acceptor(self._identity, frozenset(self._missing))
        try:
            await loop.sock_sendall(link.socket, acceptor.hello(await _receive(link.socket)))
            proof = acceptor.proof(await _receive(link.socket))
        except HandshakeError as error:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(link.socket, error.reply)
            raise
        await loop.sock_sendall(link.socket, proof)
        if acceptor.peer not in self._missing:
            raise EOFError(f"rank {acceptor.peer} is connected already")
        self._missing.remove(acceptor.peer)
        link.peer = acceptor.peer
        self._links[link.peer] = link
        if not self._missing and not self._all_accepted.done():
            self._all_accepted.set_result(None)

    def _refuse(self, link: Link, reason: str) -> None:
        link.close()
        host = link.where.rpartition(":")[0]
        if (host, reason) not in self._refused:
            self._refused.add((host, reason))
            _logger.warning("refused a connection from %s: %s", link.where, reason)

    def _timed_out(self, timeout_s: float) -> TransportError:
        silent = sorted(set(self._targets) - set(self._links))
        parts = []
        if self._missing:
            parts.append(f"ranks {sorted(self._missing)} did not connect to this rank")
        if silent:
            parts.append(f"ranks {silent} did not answer this rank")
        if self._wrong_keys:
            parts.append(f"refused for another job key: {', '.join(self._wrong_keys)}")
        return TransportError(
            f"rank {self._identity.rank}: after {timeout_s:g} s {'; '.join(parts)}"
        )


async def _receive(sock: socket.socket) -> bytes:
    """One message, and not a byte more: what follows belongs to the engine."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < MESSAGE_BYTES:
        part = await loop.sock_recv(sock, MESSAGE_BYTES - len(data))
        if not part:
            raise EOFError("it closed the connection during the handshake")
        data += part
    return data


def _identify(link: Link) -> None:
    """Over a unix socket: opens a pidfd of the peer, which must run as the same user.

    Before the handshake, whose fresh nonces then show that the process still lives.
    """
    if link.socket.family != socket.AF_UNIX:
        return
    raw = link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    link.where = f"process {pid}"
    if uid != os.getuid():
        raise EOFError(f"it runs as user {uid}, this rank as user {os.getuid()}")
    link.process_fd = os.pidfd_open(pid)


def _host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
