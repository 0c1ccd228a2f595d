"""Training between hosts on slow links: network namespaces with one rank each, over shaped TCP."""

from __future__ import annotations

import os
from pathlib import Path

import netns
import pytest
from dense_cases import OVERLAPS, Case, Run, dense_states, joined, load_runs, run_case, save_runs
from ranks import assert_states_close
from spawn import ROOT, free_port, start_ranks

import crossover_comm as cc

NUM_HOSTS = 4
RATE = "200mbit"
CASES = [
    Case("crossover", cc.GossipConfig(overlap=overlap), widths=(64, 384, 384, 32), num_steps=6)
    for overlap in OVERLAPS
]
"""Trainings of 0.7 MB models."""
MAX_OVERHEAD = 0.1
"""Of TCP and IP headers and acknowledgements. An all-reduce would add half a model and more."""


def worker(folder: str) -> None:
    """Trains every case; leaves load_runs' answer and the interface's bytes in `folder`."""
    with joined("tcp"):
        runs = {}
        for case in CASES:
            cc.barrier()
            before = netns.interface_bytes()
            runs[case.name] = run_case(case)
            cc.barrier()
            after = netns.interface_bytes()
            runs[case.name]["interface"] = [b - a for a, b in zip(before, after, strict=True)]
        save_runs(runs, folder)


def environment_of(host: netns.Host, port: int) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return {
        **host.environment(NUM_HOSTS, port),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """By rank and case, what the hosts came to."""
    reason = netns.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp("hosts")
    port = free_port()
    with (
        netns.shaped_hosts(NUM_HOSTS, RATE) as hosts,
        start_ranks(
            worker,
            NUM_HOSTS,
            str(folder),
            env_of=lambda rank: environment_of(hosts[rank], port),
            command_prefix=lambda rank: hosts[rank].command_prefix,
        ) as ranks,
    ):
        for result in ranks.wait():
            assert result.exit_code == 0, result.stderr
    return load_runs(folder, "tcp", NUM_HOSTS)


def test_hosts_on_slow_links_train_as_the_dense_reference(runs: list[Run]) -> None:
    for case in CASES:
        for own, wanted in zip(runs, dense_states(case, NUM_HOSTS), strict=True):
            assert_states_close(own[case.name]["state"], wanted)


def test_the_interface_moves_one_model_a_round_and_no_more_than_tcp_adds(
    runs: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    for case in CASES:
        model_bytes = 4 * sum(p.numel() for p in case.replicas(NUM_HOSTS)[0].parameters())
        for rank, own in enumerate(runs):
            counted = own[case.name]["counters"]
            for way, moved in zip(("sent", "received"), own[case.name]["interface"], strict=True):
                payload = counted[f"payload_{way}_bytes"]
                wire = counted[f"wire_{way}_bytes"]
                with capsys.disabled():
                    print(
                        f"\n{case.name}, rank {rank}, {way}: payload {payload}, wire {wire}, "
                        f"interface {moved} bytes",
                        end="",
                    )
                assert payload == case.num_steps * model_bytes
                assert wire <= moved <= wire * (1 + MAX_OVERHEAD)
