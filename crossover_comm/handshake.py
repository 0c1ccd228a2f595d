"""Proof, on a fresh connection, that both ends belong to the same job: HMAC-SHA256 both ways.

Four messages of MESSAGE_BYTES each; nothing in them is ever unpickled or executed:

    connector -> acceptor   HELLO_CONNECTOR  nonce
    acceptor  -> connector  HELLO_ACCEPTOR   nonce
    connector -> acceptor   PROOF_CONNECTOR  HMAC(key, "connector" + both hellos)
    acceptor  -> connector  PROOF_ACCEPTOR   HMAC(key, "acceptor" + both hellos)

A hello holds the protocol's version, both ranks, the job's id and the fingerprint of its
configuration, so the proofs bind them all. The nonces make a replay worthless, the two labels a
reflection. The acceptor proves nothing to a stranger: the connector's proof comes first. Instead of
its second message the acceptor may send REFUSAL with a reason; it is not authenticated and serves
for messages only.

The classes hold no socket: they turn received messages into messages to send.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import secrets
import stat
import struct
from dataclasses import dataclass

from crossover_comm.errors import InvalidArgument, TransportError

__all__ = [
    "MESSAGE_BYTES",
    "Acceptor",
    "Connector",
    "HandshakeError",
    "Identity",
    "RefusalReason",
    "read_job_key",
]

_MAGIC = b"CROSSOVR"
_VERSION = 1
_FORMAT = struct.Struct(">8sBBHII16s32s32s")
_NONCE_BYTES = 32
_MIN_KEY_BYTES = 16

MESSAGE_BYTES = _FORMAT.size
"""Size of every message."""


class _Kind(enum.IntEnum):
    HELLO_CONNECTOR = 1
    HELLO_ACCEPTOR = 2
    PROOF_CONNECTOR = 3
    PROOF_ACCEPTOR = 4
    REFUSAL = 5


class RefusalReason(enum.IntEnum):
    """Why an end refused the other."""

    NOT_OURS = 1
    WRONG_JOB = 2
    WRONG_RANK = 3
    WRONG_CONFIGURATION = 4
    WRONG_KEY = 5


_REASON_TEXT = {
    RefusalReason.NOT_OURS: "it does not speak this protocol",
    RefusalReason.WRONG_JOB: "it belongs to another job or another start of this one",
    RefusalReason.WRONG_RANK: "it is not the rank that was expected here",
    RefusalReason.WRONG_CONFIGURATION: "it has another configuration",
    RefusalReason.WRONG_KEY: "it has another job key (see CROSSOVER_JOB_KEY_FILE)",
}


class HandshakeError(TransportError):
    """The handshake failed.

    Attributes:
        reason: Why.
        claimed_rank: The rank the other end called itself; None if it did not get so far.
        by_peer: The other end refused this one.
        reply: What to send before closing; empty if nothing.
    """

    def __init__(
        self,
        reason: RefusalReason,
        *,
        claimed_rank: int | None = None,
        by_peer: bool = False,
        reply: bytes = b"",
    ) -> None:
        super().__init__(_REASON_TEXT[reason])
        self.reason = reason
        self.claimed_rank = claimed_rank
        self.by_peer = by_peer
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Identity:
    """What all ranks of one job share.

    Attributes:
        key: The job's secret.
        job: 16 random bytes that name this start of the job.
        fingerprint: SHA-256 of the agreed configuration.
        rank: This rank.
    """

    key: bytes
    job: bytes
    fingerprint: bytes
    rank: int


@dataclass(frozen=True, slots=True)
class _Message:
    kind: int
    code: int
    sender: int
    receiver: int
    job: bytes
    fingerprint: bytes
    value: bytes

    def encode(self) -> bytes:
        return _FORMAT.pack(
            _MAGIC,
            _VERSION,
            self.kind,
            self.code,
            self.sender,
            self.receiver,
            self.job,
            self.fingerprint,
            self.value,
        )

    @staticmethod
    def decode(data: bytes) -> _Message:
        if len(data) != MESSAGE_BYTES:
            raise HandshakeError(RefusalReason.NOT_OURS)
        magic, version, *fields = _FORMAT.unpack(data)
        if magic != _MAGIC or version != _VERSION:
            raise HandshakeError(RefusalReason.NOT_OURS)
        return _Message(*fields)


def _message(identity: Identity, kind: _Kind, receiver: int, value: bytes, code: int = 0) -> bytes:
    return _Message(
        kind, code, identity.rank, receiver, identity.job, identity.fingerprint, value
    ).encode()


def _mac(identity: Identity, label: bytes, transcript: bytes) -> bytes:
    return hmac.new(identity.key, label + transcript, hashlib.sha256).digest()


def _require_same_job(identity: Identity, message: _Message) -> None:
    if message.job != identity.job:
        raise HandshakeError(RefusalReason.WRONG_JOB, claimed_rank=message.sender)
    if message.receiver != identity.rank:
        raise HandshakeError(RefusalReason.WRONG_RANK, claimed_rank=message.sender)
    if message.fingerprint != identity.fingerprint:
        raise HandshakeError(RefusalReason.WRONG_CONFIGURATION, claimed_rank=message.sender)


class Connector:
    """The end that connected, to a rank it knows.

    Right:  send(hello()); send(proof(receive())); finish(receive())
    Wrong:  to use the connection before finish() has returned.
    """

    def __init__(self, identity: Identity, peer: int) -> None:
        self._identity = identity
        self._peer = peer
        self._hello = _message(
            identity, _Kind.HELLO_CONNECTOR, peer, secrets.token_bytes(_NONCE_BYTES)
        )
        self._transcript = b""

    def hello(self) -> bytes:
        """The first message."""
        return self._hello

    def proof(self, reply: bytes) -> bytes:
        """The third message, from the second. Raises HandshakeError."""
        self._accept(reply, _Kind.HELLO_ACCEPTOR)
        self._transcript = self._hello + reply
        mac = _mac(self._identity, b"connector", self._transcript)
        return _message(self._identity, _Kind.PROOF_CONNECTOR, self._peer, mac)

    def finish(self, reply: bytes) -> None:
        """Checks the fourth message. Raises HandshakeError."""
        message = self._accept(reply, _Kind.PROOF_ACCEPTOR)
        expected = _mac(self._identity, b"acceptor", self._transcript)
        if not hmac.compare_digest(message.value, expected):
            raise HandshakeError(RefusalReason.WRONG_KEY, claimed_rank=message.sender)

    def _accept(self, data: bytes, kind: _Kind) -> _Message:
        message = _Message.decode(data)
        if message.kind == _Kind.REFUSAL and message.code in set(RefusalReason):
            raise HandshakeError(
                RefusalReason(message.code), claimed_rank=message.sender, by_peer=True
            )
        if message.kind != kind:
            raise HandshakeError(RefusalReason.NOT_OURS, claimed_rank=message.sender)
        _require_same_job(self._identity, message)
        if message.sender != self._peer:
            raise HandshakeError(RefusalReason.WRONG_RANK, claimed_rank=message.sender)
        return message


class Acceptor:
    """The end that was connected to, by it does not know whom.

    Right:  send(hello(receive())); send(proof(receive())); then the peer is `peer`
    Wrong:  to believe `peer` before proof() has returned.

    Args:
        identity: Of this rank.
        expected: The ranks that may connect.
    """

    def __init__(self, identity: Identity, expected: frozenset[int]) -> None:
        self._identity = identity
        self._expected = expected
        self._transcript = b""
        self.peer = -1

    def hello(self, received: bytes) -> bytes:
        """The second message, from the first. Raises HandshakeError."""
        message = self._accept(received, _Kind.HELLO_CONNECTOR)
        if message.sender not in self._expected:
            raise self._refusal(RefusalReason.WRONG_RANK, message)
        self.peer = message.sender
        own = _message(
            self._identity, _Kind.HELLO_ACCEPTOR, self.peer, secrets.token_bytes(_NONCE_BYTES)
        )
        self._transcript = received + own
        return own

    def proof(self, received: bytes) -> bytes:
        """The fourth message, from the third. Raises HandshakeError."""
        message = self._accept(received, _Kind.PROOF_CONNECTOR)
        expected = _mac(self._identity, b"connector", self._transcript)
        if not hmac.compare_digest(message.value, expected) or message.sender != self.peer:
            raise self._refusal(RefusalReason.WRONG_KEY, message)
        mac = _mac(self._identity, b"acceptor", self._transcript)
        return _message(self._identity, _Kind.PROOF_ACCEPTOR, self.peer, mac)

    def _accept(self, data: bytes, kind: _Kind) -> _Message:
        message = _Message.decode(data)
        if message.kind != kind:
            raise HandshakeError(RefusalReason.NOT_OURS, claimed_rank=message.sender)
        try:
            _require_same_job(self._identity, message)
        except HandshakeError as refusal:
            raise self._refusal(refusal.reason, message) from None
        return message

    def _refusal(self, reason: RefusalReason, message: _Message) -> HandshakeError:
        reply = _message(
            self._identity, _Kind.REFUSAL, message.sender, bytes(_NONCE_BYTES), code=reason
        )
        return HandshakeError(reason, claimed_rank=message.sender, reply=reply)


def read_job_key(path: str) -> bytes:
    """The secret in the file that CROSSOVER_JOB_KEY_FILE names: all its bytes, as they are.

    Raises:
        InvalidArgument: The file cannot be read, others may read or write it, or it is short.
    """
    where = f"CROSSOVER_JOB_KEY_FILE={path}"
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read()
    except OSError as error:
        raise InvalidArgument(f"{where}: cannot be read: {error.strerror}") from error
    if mode & stat.S_IRWXO:
        raise InvalidArgument(
            f"{where}: open to every user (mode {mode:03o}); expected 600 or 640, use chmod"
        )
    if len(key) < _MIN_KEY_BYTES:
        raise InvalidArgument(f"{where}: expected at least {_MIN_KEY_BYTES} bytes, got {len(key)}")
    return key
