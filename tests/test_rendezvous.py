"""The ranks meet: media, addresses, keys, and pipes to all peers."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from threads import in_ranks, outcomes

from crossover_comm.agreement import StoreGroup
from crossover_comm.errors import InvalidArgument, TransportError
from crossover_comm.interfaces import Locality, choose_address, interface_address, routed_address
from crossover_comm.rendezvous import Meeting, MeetingPlan, choose_media, meet

HERE = Locality("a", "boot", 1, 2, 1000)
PLAN = MeetingPlan(
    transport="auto", interface=None, master_addr="127.0.0.1", configuration={}, timeout_s=60.0
)


def descriptions(meeting: Meeting) -> list[str | None]:
    return [pipe.describe() if pipe else None for pipe in meeting.pipes]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_on_one_host_every_pair_shares_memory(size: int) -> None:
    meetings = in_ranks(size, lambda group: meet(group, PLAN))
    for rank, meeting in enumerate(meetings):
        assert descriptions(meeting) == [
            None if peer == rank else f"shared memory with rank {peer} (process {os.getpid()})"
            for peer in range(size)
        ]
        assert (meeting.local_rank, meeting.local_size) == (rank, size)


def test_tcp_can_be_forced_and_stays_on_loopback() -> None:
    meetings = in_ranks(3, lambda group: meet(group, replace(PLAN, transport="tcp")))
    for rank, meeting in enumerate(meetings):
        for peer, text in enumerate(descriptions(meeting)):
            if peer != rank:
                assert text is not None
                assert text.startswith(f"tcp rank {peer} (127.0.0.1:")


def test_no_listener_and_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for transport in ("auto", "tcp"):
        plan = replace(PLAN, transport=transport)
        assert len(in_ranks(3, lambda group, plan=plan: meet(group, plan))) == 3  # type: ignore[misc]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_key_file_serves_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    monkeypatch.setenv("CROSSOVER_JOB_KEY_FILE", str(key))
    assert len(in_ranks(2, lambda group: meet(group, PLAN))) == 2


def test_another_key_on_one_rank_ends_set_up_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = iter([b"r" * 32, b"r" * 32, b"w" * 32])
    monkeypatch.setenv("CROSSOVER_JOB_KEY_FILE", str(tmp_path))
    monkeypatch.setattr("crossover_comm.rendezvous.read_job_key", lambda _: next(keys))
    said = outcomes(3, lambda group: meet(group, replace(PLAN, timeout_s=3.0)))
    assert sum("refused this rank: it has another job key" in text for text in said) >= 1
    assert all(text.startswith("TransportError") for text in said)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"timeout_s": 61.0, "configuration": {"timeout": 61.0}}, "timeout: "),
        ({"transport": "tcp"}, 'transport: rank 0 has "auto", rank 1 has "tcp"'),
    ],
)
def test_another_configuration_is_named_on_every_rank(change: dict[str, object], line: str) -> None:
    odd = replace(PLAN, **change)  # type: ignore[arg-type]
    said = outcomes(3, lambda group: meet(group, odd if group.rank == 1 else PLAN))
    assert all(text.startswith("InvalidArgument: init, configuration") for text in said)
    assert all(line in text for text in said)


def test_missing_ranks_are_named() -> None:
    def work(group: StoreGroup) -> None:
        if group.rank == 0:
            meet(group, replace(PLAN, timeout_s=0.2))

    said = outcomes(3, work)[0]
    assert "ranks [1, 2] did not call it within 0.2 s of rank 0" in said


def test_a_rank_that_fails_on_its_way_tells_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(group: StoreGroup) -> None:
        try:
            meet(group, replace(PLAN, interface="no such" if group.rank == 1 else None))
        except InvalidArgument as error:
            group.announce_end(str(error))
            raise

    first, second, third = outcomes(3, work)
    assert second.startswith("InvalidArgument: interface 'no such'")
    assert first == third
    assert "rank 1 will not call it: interface 'no such'" in first


def test_memory_is_shared_within_a_host_and_network_namespace_only() -> None:
    there = replace(HERE, host="b")
    namespace = replace(HERE, network_namespace=9)
    assert choose_media(0, [HERE, HERE, there, namespace], "auto") == {1: "shm", 2: "tcp", 3: "tcp"}
    assert choose_media(3, [HERE, HERE, there, namespace], "auto") == {0: "tcp", 1: "tcp", 2: "tcp"}
    assert choose_media(0, [HERE, HERE], "tcp") == {1: "tcp"}


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (replace(HERE, host="b"), "host a and b"),
        (replace(HERE, boot="x"), "boot boot and x"),
        (replace(HERE, network_namespace=9), "network_namespace 1 and 9"),
        (replace(HERE, pid_namespace=9), "pid_namespace 2 and 9"),
        (replace(HERE, user=0), "user 1000 and 0"),
    ],
)
def test_shared_memory_with_a_remote_peer_is_refused_on_every_rank(
    other: Locality, what: str
) -> None:
    for rank in range(3):
        with pytest.raises(InvalidArgument, match=rf"transport='shm': ranks \[2\] .*\({what}\)"):
            choose_media(rank, [HERE, HERE, other], "shm")


def test_on_one_host_the_address_is_loopback() -> None:
    assert choose_address(None, "node0", one_host=True) == "127.0.0.1"


def test_an_interface_may_be_named_or_given_by_its_address() -> None:
    assert interface_address("lo") == "127.0.0.1"
    assert choose_address("127.0.0.1", None, one_host=False) == "127.0.0.1"


def test_an_unknown_interface_is_refused_with_a_list_of_those_there_are() -> None:
    with pytest.raises(InvalidArgument, match=r"interface 'nope0': .* there are .*lo"):
        interface_address("nope0")
    with pytest.raises(InvalidArgument, match=r"'192.0.2.77': not an address of this host"):
        interface_address("192.0.2.77")


def test_the_route_to_loopback_is_loopback() -> None:
    assert routed_address("127.0.0.1") == "127.0.0.1"
    assert routed_address("no.such.host.invalid") is None


def test_loopback_is_never_given_to_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {"localhost": "127.0.0.1", "192.0.2.1": "10.0.0.4"}
    monkeypatch.setattr("crossover_comm.interfaces.routed_address", routes.get)
    assert choose_address(None, "localhost", one_host=False) == "10.0.0.4"
    routes["192.0.2.1"] = "127.0.0.1"
    with pytest.raises(TransportError, match=rf"host {socket.gethostname()} .*CROSSOVER_INTERFACE"):
        choose_address(None, "localhost", one_host=False)
