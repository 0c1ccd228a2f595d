"""The benchmarks' scripts run, and count and file what they measure rightly; no time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import exchange
import memory
import netns
import overhead
import pytest
from hosts_run import Setting, steps_on
from overlap import with_hidden_share
from records import merge
from simulated_compute import factor
from spawn import free_port
from step_methods import why_unavailable
from stragglers import with_throughput

from crossover_comm.segments import cut

METHODS = ("compute", "ddp", "crossover/backward/fp32", "crossover/none/bf16")


def test_every_method_trains_and_sends_what_it_should() -> None:
    reason = netns.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    setting = Setting(METHODS, steps=3, blocks=2, widths=(64, 128, 64), batch_size=2)
    with netns.shaped_hosts(2, None) as hosts:
        rows = {row["method"]: row for row in steps_on(hosts, setting, free_port())}
    assert tuple(rows) == METHODS
    models = {name: row["payload_sent_bytes"] / row["model_bytes"] for name, row in rows.items()}
    assert models == dict(zip(METHODS, (0.0, 0.0, 1.0, 0.5), strict=True))
    assert rows["ddp"]["interface_sent_bytes"] > rows["ddp"]["model_bytes"]
    num_recorded = 2 * setting.blocks * (setting.steps - 1)
    assert [len(row["steps_ms"]) for row in rows.values()] == [num_recorded] * len(METHODS)


def test_rows_of_a_second_call_replace_those_of_the_same_key(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    merge(file, [{"hosts": 2, "step_s": 1.0}, {"hosts": 4, "step_s": 2.0}], ("hosts",))
    merge(file, [{"hosts": 4, "step_s": 3.0}, {"hosts": 8, "step_s": 4.0}], ("hosts",))
    rows = json.loads(file.read_text())["rows"]
    assert [(row["hosts"], row["step_s"]) for row in rows] == [(2, 1.0), (4, 3.0), (8, 4.0)]


def test_rows_of_another_machine_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    merge(file, [{"hosts": 2}], ("hosts",))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "machine": {**content["machine"], "cores": -1}}))
    merge(file, [{"hosts": 4}], ("hosts",))
    assert [row["hosts"] for row in json.loads(file.read_text())["rows"]] == [4]


def test_jitter_makes_about_one_step_in_ten_longer_and_a_straggler_every_step_of_rank_0() -> None:
    jitter = [factor("jitter", rank, step) for rank in range(8) for step in range(500)]
    assert set(jitter) == {1.0, 1.5}
    assert 0.08 < jitter.count(1.5) / len(jitter) < 0.12
    assert [factor("straggler", rank, 3) for rank in range(3)] == [1.5, 1.0, 1.0]
    assert {factor("none", rank, step) for rank in range(8) for step in range(8)} == {1.0}


def test_hidden_share_is_0_for_mode_none_and_1_for_a_step_as_short_as_compute() -> None:
    times = {"compute": 1.0, "crossover/none/fp32": 3.0, "crossover/backward/fp32": 1.5}
    rows = [{"method": method, "step_s": step_s} for method, step_s in times.items()]
    assert [row.get("hidden") for row in with_hidden_share(rows)] == [None, 0.0, 0.75]


def test_throughput_is_a_share_of_steps_that_only_compute() -> None:
    assert with_throughput([{"mean_step_s": 0.125}], 0.1)[0]["throughput"] == pytest.approx(0.8)


def test_memory_targets_are_four_segments_and_one_model_in_wire_format() -> None:
    model = memory.NUM_LAYERS * memory.SEGMENT_BYTES
    assert model == pytest.approx(400e6, rel=0.01)
    assert memory.target_bytes("crossover/none/fp32") == model // 4
    assert memory.target_bytes("crossover/backward/bf16") == model // 4 + model // 2


def test_a_method_that_this_version_does_not_know_says_so() -> None:
    assert why_unavailable("compute") is None
    assert "sideways" in str(why_unavailable("crossover/sideways/fp32"))


def test_a_tiny_model_has_as_many_parameters_as_asked_for_and_a_segment_per_block() -> None:
    for num_parameters, num_blocks in ((161, 18), (1000, 111)):
        model = overhead.tiny_model(num_parameters)
        parameters = dict(model.named_parameters())
        assert len(parameters) == num_parameters
        assert max(p.numel() for p in parameters.values()) == overhead.WIDTH**2
        assert len(cut(model, parameters, "blocks")) == num_blocks + 1


def test_overhead_is_the_median_difference_from_the_loop_alone_less_mixing() -> None:
    alone = (1.0, 3.0, 9.0)
    turns = [
        {m: dict.fromkeys(overhead.FIGURES, a + extra * (m != "alone")) for m in overhead.METHODS}
        for a, extra in zip(alone, (0.5, 0.25, 4.0), strict=True)
    ]
    mixed = {"segments": 2, "mix_s": {"crossover/none/fp32": 0.125}}
    rows = {row["method"]: row for row in overhead.summary(turns, mixed, 161)}
    assert rows["alone"]["step_s"] == 3.0
    assert rows["unwrapped"]["extra_step_s"] == 0.5
    assert rows["crossover/none/fp32"]["overhead_s"] == 0.5 - 0.125


def test_an_exchange_is_judged_by_how_many_times_faster_it_is_than_each_peer() -> None:
    place = {"transport": "shm", "ranks": 2, "bytes": 25_000_000}
    seconds = {"floor": 3.0, "crossover": 2.0, "gloo": 8.0}
    rows = [{**place, "method": method, "p50_s": time_s} for method, time_s in seconds.items()]
    rows += [{**row, "transport": "tcp"} for row in rows]
    passes = {"memcpy": 1.0, "pack": 2.0, "loop": 3.0, "mix": 1.0}
    found = {row["what"]: row["ratio"] for row in exchange.ratios(rows, passes)}
    assert found == {
        "shm, 2 ranks, 25 MB: floor / crossover": 1.5,
        "shm, 2 ranks, 25 MB: gloo / crossover": 4.0,
        "tcp, 2 ranks, 25 MB: gloo / crossover": 4.0,
        "one core, 100 MB: memcpy / pack": 0.5,
        "one core, 100 MB: loop / mix": 3.0,
    }
