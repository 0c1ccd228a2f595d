"""Connections are made with the right peers and nobody else."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from crossover_comm.errors import TransportError
from crossover_comm.handshake import Connector, Identity
from crossover_comm.links import Endpoint, Link, connect_all, listen

LONG_S = 60.0
SHORT_S = 0.3
ZERO = Identity(key=b"k" * 32, job=b"j" * 16, fingerprint=b"f" * 32, rank=0)
ONE = replace(ZERO, rank=1)
NOBODY: frozenset[int] = frozenset()


@contextmanager
def rank_0_expecting(
    ranks: set[int], timeout_s: float = LONG_S, *, unix: bool = False
) -> Iterator[tuple[Endpoint, Future[dict[int, Link]]]]:
    """Rank 0 listens in a thread; where it listens, and what it will have."""
    wanted = (
        Endpoint(f"crossover_comm-test-{secrets.token_hex(8)}", 0)
        if unix
        else Endpoint("127.0.0.1", -1)
    )
    listener, endpoint = listen(wanted)
    with listener, ThreadPoolExecutor(1) as pool:
        links = pool.submit(connect_all, ZERO, [listener], frozenset(ranks), {}, timeout_s)
        yield endpoint, links
        for link in links.result().values() if not links.exception() else ():
            link.close()


def connect(identity: Identity, endpoint: Endpoint, timeout_s: float = LONG_S) -> Link:
    return connect_all(identity, [], NOBODY, {0: endpoint}, timeout_s)[0]


@pytest.mark.parametrize("unix", [False, True])
def test_a_link_carries_bytes_both_ways(unix: bool) -> None:
    with rank_0_expecting({1}, unix=unix) as (endpoint, links):
        mine = connect(ONE, endpoint)
        theirs = links.result()[1]
        for sender, receiver in ((mine, theirs), (theirs, mine)):
            sender.socket.setblocking(True)
            sender.socket.sendall(b"after the handshake")
            receiver.socket.setblocking(True)
            assert receiver.socket.recv(100) == b"after the handshake"
        mine.close()


def test_a_tcp_link_is_labelled_with_rank_and_address() -> None:
    with rank_0_expecting({1}) as (endpoint, links):
        mine = connect(ONE, endpoint)
        assert mine.label == f"rank 0 (127.0.0.1:{endpoint.port})"
        assert links.result()[1].label.startswith("rank 1 (127.0.0.1:")
        assert mine.process_fd == -1
        mine.close()


def test_a_unix_link_knows_its_peers_process() -> None:
    with rank_0_expecting({1}, unix=True) as (endpoint, links):
        mine = connect(ONE, endpoint)
        theirs = links.result()[1]
        assert mine.label == f"rank 0 (process {os.getpid()})"
        assert theirs.process_fd >= 0
        process_fd = mine.take_process_fd()
        mine.close()
        os.close(process_fd)


def test_a_running_event_loop_is_not_disturbed() -> None:
    import asyncio

    async def in_a_notebook(endpoint: Endpoint) -> Link:
        return connect(ONE, endpoint)

    with rank_0_expecting({1}) as (endpoint, links):
        asyncio.run(in_a_notebook(endpoint)).close()
        assert set(links.result()) == {1}


def end_of(stranger: socket.socket) -> bytes:
    """What the stranger receives before it is hung up on."""
    received = b""
    try:
        while part := stranger.recv(4096):
            received += part
    except ConnectionResetError:
        pass
    return received


def test_strangers_are_refused_and_logged_once_and_set_up_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="crossover_comm")
    with rank_0_expecting({1}) as (endpoint, links):
        address = (endpoint.address, endpoint.port)
        for _ in range(3):
            with socket.create_connection(address) as scanner:
                scanner.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
                assert end_of(scanner) == b""
        with socket.create_connection(address) as hasty:
            hasty.shutdown(socket.SHUT_WR)
            assert end_of(hasty) == b""
        connect(ONE, endpoint).close()
        assert set(links.result()) == {1}
    texts = [record.getMessage() for record in caplog.records]
    assert sum("it does not speak this protocol" in text for text in texts) == 1
    assert all(text.startswith("refused a connection from 127.0.0.1:") for text in texts)
    assert len(texts) == 2


def test_a_silent_client_delays_nobody() -> None:
    with (
        rank_0_expecting({1}) as (endpoint, links),
        socket.create_connection((endpoint.address, endpoint.port)),
    ):
        connect(ONE, endpoint).close()
        assert set(links.result()) == {1}


def test_a_peer_that_hangs_up_without_a_word_is_tried_again() -> None:
    listener, endpoint = listen(Endpoint("127.0.0.1", -1))
    with listener, ThreadPoolExecutor(2) as pool:
        mine = pool.submit(connect, ONE, endpoint)
        listener.setblocking(True)
        listener.accept()[0].close()
        listener.setblocking(False)
        theirs = pool.submit(connect_all, ZERO, [listener], frozenset({1}), {}, LONG_S)
        mine.result().close()
        theirs.result()[1].close()


def test_a_client_that_stops_in_the_middle_delays_nobody() -> None:
    with (
        rank_0_expecting({1}) as (endpoint, links),
        socket.create_connection((endpoint.address, endpoint.port)) as half,
    ):
        half.sendall(Connector(ONE, 0).hello()[:50])
        connect(ONE, endpoint).close()
        assert set(links.result()) == {1}


def test_a_wrong_key_is_refused_on_both_ends_and_the_right_rank_still_comes_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with rank_0_expecting({1}) as (endpoint, links):
        with pytest.raises(TransportError, match=r"rank 0 at .* refused this rank: it has another"):
            connect(replace(ONE, key=b"another key here"), endpoint)
        connect(ONE, endpoint).close()
        assert set(links.result()) == {1}
    assert "another job key" in caplog.text


def test_if_the_right_rank_never_comes_the_wrong_key_is_told() -> None:
    with rank_0_expecting({1, 2}, SHORT_S) as (endpoint, links):
        with pytest.raises(TransportError):
            connect(replace(ONE, key=b"another key here"), endpoint)
        with pytest.raises(TransportError) as error:
            links.result()
    text = str(error.value)
    assert text.startswith("rank 0: after 0.3 s ranks [1, 2] did not connect to this rank")
    assert "refused for another job key: rank 1 from 127.0.0.1:" in text


def test_a_rank_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = Endpoint("127.0.0.1", mute.getsockname()[1])
        with pytest.raises(TransportError, match=r"rank 1: after 0.3 s ranks \[0\] did not answer"):
            connect(ONE, endpoint, SHORT_S)


def test_a_port_nobody_listens_on_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = Endpoint("127.0.0.1", closed.getsockname()[1])
    with pytest.raises(
        TransportError, match=r"no connection to rank 0 at 127.0.0.1:\d+: .*refused"
    ):
        connect(ONE, endpoint)


def test_one_rank_cannot_come_in_twice() -> None:
    with rank_0_expecting({1, 2}) as (endpoint, links):
        first = connect(ONE, endpoint)
        with pytest.raises(TransportError, match="not the rank that was expected"):
            connect(ONE, endpoint)
        connect(replace(ZERO, rank=2), endpoint).close()
        assert set(links.result()) == {1, 2}
        first.close()
