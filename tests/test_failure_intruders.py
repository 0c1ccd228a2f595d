"""Strangers at the doors of a job: refused, logged once, and the training takes no notice."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from failing import Training, await_signal, block_signal, init_together
from spawn import RankResult, run_ranks, start_ranks

import crossover_comm as cc
from crossover_comm import links, rendezvous
from crossover_comm.handshake import Connector, Identity
from crossover_comm.links import Endpoint

SIZE = 3
LISTEN = "0A"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
REASONS = (
    "it closed the connection during the handshake",
    "it does not speak this protocol",
    "it has another job key (see CROSSOVER_JOB_KEY_FILE)",
    "it kept silent for 0.3 s",
)


def visit(address: tuple[str, int]) -> socket.socket:
    """A port scanner, a client that resets, one that talks nonsense; the silent one, who stays."""
    socket.create_connection(address).close()
    with socket.create_connection(address) as rude:
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    for nonsense in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20, os.urandom(1 << 14), bytes(4096)):
        with socket.create_connection(address) as talker:
            try:
                talker.sendall(nonsense)
                talker.shutdown(socket.SHUT_WR)
                talker.settimeout(1.0)
                talker.recv(4096)
            except OSError:  # hung up on, or ignored
                continue
    return socket.create_connection(address)


def try_another_key(identity: Identity, peer: int, address: tuple[str, int]) -> None:
    connector = Connector(replace(identity, key=os.urandom(32)), peer)
    with socket.create_connection(address) as stranger:
        stranger.sendall(connector.hello())
        stranger.sendall(connector.proof(stranger.recv(4096)))
        assert stranger.recv(4096), "a refusal"


def connect_after_strangers(
    identity: Identity,
    listeners: list[socket.socket],
    expected: frozenset[int],
    targets: Mapping[int, Endpoint],
    timeout_s: float,
) -> dict[int, links.Link]:
    """What rank 2 does in place of connect_all: everybody else is held up until it comes."""
    if int(os.environ["RANK"]) == 2:
        for peer, endpoint in targets.items():
            address = (endpoint.address, endpoint.port)
            for _ in range(2):
                silent = visit(address)
                try_another_key(identity, peer, address)
                with silent:
                    assert silent.recv(1) == b"", "hung up on in the end"
    return links.connect_all(identity, listeners, expected, targets, timeout_s)


def listening_ports() -> Iterator[int]:
    """Ports of this process, whoever opened them."""
    own = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTEN and f"socket:[{fields[9]}]" in own:
            yield int(fields[1].partition(":")[2], 16)


def train_beside_strangers() -> None:
    block_signal()
    with (
        mock.patch.object(rendezvous, "connect_all", connect_after_strangers),
        mock.patch.object(links, "_HANDSHAKE_TIMEOUT_S", 0.3),
    ):
        init_together(transport="tcp")
    disturbed = Training()
    disturbed.run(10)
    print("ports", *listening_ports(), flush=True)
    if cc.rank() == 0:
        await_signal()
    disturbed.run(10)
    assert cc.allreduce(torch.ones(1), average=False).item() == SIZE
    undisturbed = Training()
    undisturbed.run(20)
    for given, wanted in zip(disturbed.weights, undisturbed.weights, strict=True):
        assert torch.equal(given, wanted)


@pytest.fixture(scope="module")
def visited() -> list[RankResult]:
    """Strangers come while the ranks meet, and to every open port while they train."""
    with start_ranks(train_beside_strangers, SIZE) as ranks:
        ports = [ranks.wait_for_line(rank, "ports").split()[1:] for rank in range(SIZE)]
        assert ports[0], "rank 0 holds the store"
        silent = [visit(("127.0.0.1", int(port))) for of_rank in ports for port in of_rank]
        ranks.send_signal(0, signal.SIGUSR1)
        results = ranks.wait()
        for client in silent:
            client.close()
    return results


def test_training_beside_strangers_gives_the_same_bits(visited: list[RankResult]) -> None:
    for result in visited:
        assert result.exit_code == 0, result.stderr


def test_each_kind_of_stranger_is_logged_once(visited: list[RankResult]) -> None:
    for result in visited[:2]:
        for reason in REASONS:
            pattern = rf"^refused a connection from 127\.0\.0\.1:\d+: {re.escape(reason)}$"
            assert len(re.findall(pattern, result.stderr, re.MULTILINE)) == 1, result.stderr
    assert "refused" not in visited[2].stderr


def init_with_own_key() -> None:
    init_together(timeout=8)


def test_another_job_key_on_one_rank_is_an_error_on_every_rank(tmp_path: Path) -> None:
    def key_of(rank: int) -> dict[str, str]:
        file = tmp_path / f"key of rank {rank}"
        file.touch(mode=0o600)
        file.write_bytes(bytes([rank == 1]) * 32)
        return {"CROSSOVER_JOB_KEY_FILE": str(file)}

    results = run_ranks(init_with_own_key, SIZE, env_of=key_of, check=False)
    assert [result.exit_code for result in results] == [1, 1, 1]
    assert re.search(r"refused for another job key: rank 1 from process \d+", results[0].stderr)
    for result in results[1:]:
        assert "rank: it has another job key (see CROSSOVER_JOB_KEY_FILE)" in result.stderr
