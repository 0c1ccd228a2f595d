"""The handshake refuses every stranger: wrong key, replay, reflection, garbage."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from crossover_comm.errors import InvalidArgument
from crossover_comm.handshake import (
    MESSAGE_BYTES,
    Acceptor,
    Connector,
    HandshakeError,
    Identity,
    RefusalReason,
    read_job_key,
)

SEVEN = Identity(key=b"k" * 32, job=b"j" * 16, fingerprint=b"f" * 32, rank=7)
TWO = replace(SEVEN, rank=2)
KIND = 9  # offset of the message's kind: magic, version, kind, code, sender, receiver, ...
SENDER = slice(12, 16)
RECEIVER = slice(16, 20)


def meeting() -> tuple[Connector, Acceptor]:
    """Rank 7 connects to rank 2."""
    return Connector(SEVEN, peer=2), Acceptor(TWO, frozenset({5, 7}))


def refused(error: pytest.ExceptionInfo[HandshakeError]) -> RefusalReason:
    return error.value.reason


def changed(message: bytes, at: int) -> bytes:
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


def test_two_ranks_of_one_job_accept_each_other() -> None:
    connector, acceptor = meeting()
    messages = [connector.hello()]
    messages.append(acceptor.hello(messages[-1]))
    messages.append(connector.proof(messages[-1]))
    messages.append(acceptor.proof(messages[-1]))
    connector.finish(messages[-1])
    assert acceptor.peer == 7
    assert all(len(message) == MESSAGE_BYTES for message in messages)


def test_another_key_is_refused_by_the_acceptor_which_says_so() -> None:
    acceptor = Acceptor(TWO, frozenset({7}))
    connector = Connector(replace(SEVEN, key=b"another key here"), peer=2)
    proof = connector.proof(acceptor.hello(connector.hello()))
    with pytest.raises(HandshakeError) as seen:
        acceptor.proof(proof)
    assert refused(seen) == RefusalReason.WRONG_KEY
    assert seen.value.claimed_rank == 7
    with pytest.raises(HandshakeError) as told:
        connector.finish(seen.value.reply)
    assert refused(told) == RefusalReason.WRONG_KEY
    assert told.value.by_peer


def test_an_acceptor_without_the_key_is_refused_by_the_connector() -> None:
    connector, _ = meeting()
    impostor = Acceptor(replace(TWO, key=b"another key here"), frozenset({7}))
    proof = connector.proof(impostor.hello(connector.hello()))
    forged = bytearray(proof)
    forged[KIND] += 1
    forged[SENDER], forged[RECEIVER] = proof[RECEIVER], proof[SENDER]
    with pytest.raises(HandshakeError) as error:
        connector.finish(bytes(forged))
    assert refused(error) == RefusalReason.WRONG_KEY


def test_the_connectors_own_messages_sent_back_prove_nothing() -> None:
    connector, acceptor = meeting()
    hello = connector.hello()
    with pytest.raises(HandshakeError):
        connector.proof(hello)
    proof = connector.proof(acceptor.hello(hello))
    with pytest.raises(HandshakeError):
        connector.finish(proof)


def test_a_recorded_connection_cannot_be_replayed() -> None:
    connector, acceptor = meeting()
    hello = connector.hello()
    proof = connector.proof(acceptor.hello(hello))
    acceptor.proof(proof)
    again = Acceptor(TWO, frozenset({5, 7}))
    again.hello(hello)
    with pytest.raises(HandshakeError) as error:
        again.proof(proof)
    assert refused(error) == RefusalReason.WRONG_KEY


def test_a_recorded_acceptor_cannot_be_replayed() -> None:
    connector, acceptor = meeting()
    answer = acceptor.hello(connector.hello())
    proof = acceptor.proof(connector.proof(answer))
    another = Connector(SEVEN, peer=2)
    another.proof(answer)
    with pytest.raises(HandshakeError) as error:
        another.finish(proof)
    assert refused(error) == RefusalReason.WRONG_KEY


@pytest.mark.parametrize("at", range(0, MESSAGE_BYTES, 9))
def test_a_changed_byte_in_either_hello_is_refused(at: int) -> None:
    connector, acceptor = meeting()
    with pytest.raises(HandshakeError):
        acceptor.proof(connector.proof(changed(acceptor.hello(connector.hello()), at)))
    connector, acceptor = meeting()
    with pytest.raises(HandshakeError):
        acceptor.proof(connector.proof(acceptor.hello(changed(connector.hello(), at))))


@pytest.mark.parametrize(
    "garbage",
    [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(MESSAGE_BYTES), os.urandom(MESSAGE_BYTES), b"x" * 999],
)
def test_garbage_is_refused_without_an_answer(garbage: bytes) -> None:
    connector, acceptor = meeting()
    with pytest.raises(HandshakeError) as error:
        acceptor.hello(garbage)
    assert refused(error) == RefusalReason.NOT_OURS
    assert error.value.reply == b""
    with pytest.raises(HandshakeError):
        connector.proof(garbage)


@pytest.mark.parametrize(
    ("identity", "peer", "reason"),
    [
        (replace(SEVEN, job=b"another job 0000"), 2, RefusalReason.WRONG_JOB),
        (replace(SEVEN, fingerprint=b"g" * 32), 2, RefusalReason.WRONG_CONFIGURATION),
        (replace(SEVEN, rank=6), 2, RefusalReason.WRONG_RANK),
        (SEVEN, 3, RefusalReason.WRONG_RANK),
    ],
)
def test_a_rank_that_does_not_belong_here_is_told_why(
    identity: Identity, peer: int, reason: RefusalReason
) -> None:
    connector = Connector(identity, peer)
    _, acceptor = meeting()
    with pytest.raises(HandshakeError) as error:
        acceptor.hello(connector.hello())
    assert refused(error) == reason
    with pytest.raises(HandshakeError) as told:
        connector.proof(error.value.reply)
    assert refused(told) == reason
    assert told.value.by_peer


def test_nonces_are_fresh() -> None:
    assert Connector(SEVEN, 2).hello() != Connector(SEVEN, 2).hello()


def key_file(directory: Path, content: bytes, mode: int) -> str:
    path = directory / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_a_private_key_file_is_read_as_it_is(tmp_path: Path, mode: int) -> None:
    content = b"sixteen bytes +\n"
    assert read_job_key(key_file(tmp_path, content, mode)) == content


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"x" * 32, 0o644, r"open to every user \(mode 644\)"),
        (b"x" * 32, 0o602, r"open to every user"),
        (b"x" * 15, 0o600, r"at least 16 bytes, got 15"),
    ],
)
def test_a_bad_key_file_is_refused(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        read_job_key(key_file(tmp_path, content, mode))


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"absent: cannot be read: No such file"):
        read_job_key(str(tmp_path / "absent"))
