"""The simulator's step times against values worked out by hand, and the plan made from them."""

from __future__ import annotations

import pytest

import crossover_comm as cc
from crossover_comm.errors import InvalidArgument
from crossover_comm.simulate.method import Method
from crossover_comm.simulate.timing import Cluster, Workload, allreduce_time, gossip_time

WORKLOAD = Workload(model_bytes=120e6, compute_s=0.3, num_segments=3, bucket_bytes=1e9)
PAIR = Cluster(workers=2, bandwidth=1e9, latency_s=0.0)
"""A model takes 0.12 s to its peer."""


def seconds(method: Method, cluster: Cluster = PAIR, overlap: str = "none") -> float:
    return gossip_time(method, WORKLOAD, cluster, overlap=overlap).step_s  # type: ignore[arg-type]


def test_without_overlap_compute_and_transfer_add_up() -> None:
    assert seconds(Method()) == pytest.approx(0.3 + 0.12)


def test_gossip_in_mode_backward_hides_behind_the_whole_step() -> None:
    assert seconds(Method(), overlap="backward") == pytest.approx(0.3)
    slow = Cluster(workers=2, bandwidth=2e8, latency_s=0.0)
    assert seconds(Method(), slow, "backward") == pytest.approx(0.6)


def test_gossip_in_mode_forward_shows_the_first_segment() -> None:
    fast = Cluster(workers=2, bandwidth=2e9, latency_s=0.0)
    assert seconds(Method(), fast, "forward") == pytest.approx(0.3 + 0.02)
    slow = Cluster(workers=2, bandwidth=2e8, latency_s=0.0)
    assert seconds(Method(), slow, "forward") == pytest.approx(0.3 + 0.6 - 0.1 + 0.1 / 3)


def test_gossip_in_mode_fused_shows_the_segment_that_leaves_last() -> None:
    assert seconds(Method(), overlap="fused") == pytest.approx(0.3 + 0.04)
    slow = Cluster(workers=2, bandwidth=2e8, latency_s=0.0)
    assert seconds(Method(), slow, "fused") == pytest.approx(0.3 + 0.6 - 0.2 * 2 / 3)


def test_a_wire_that_changes_with_the_measurement_has_no_predicted_time() -> None:
    with pytest.raises(InvalidArgument, match="wire: expected one of fp32, bf16, fp16, int8, got"):
        seconds(Method(wire="auto"))


def test_a_narrow_wire_pays_for_a_second_round() -> None:
    assert seconds(Method(wire="bf16", rounds_per_step=2)) == pytest.approx(0.3 + 0.12)


def test_a_ring_all_reduce_in_one_bucket_hides_nothing() -> None:
    cluster = Cluster(workers=4, bandwidth=1e9, latency_s=1e-3)
    expected = 0.3 + 6 * 1e-3 + 2 * 3 / 4 * 0.12
    assert allreduce_time(WORKLOAD, cluster).step_s == pytest.approx(expected)


def test_many_buckets_hide_behind_backward_but_for_the_last() -> None:
    workload = Workload(model_bytes=120e6, compute_s=0.3, bucket_bytes=12e6)
    cluster = Cluster(workers=4, bandwidth=1e9, latency_s=0.0)
    assert allreduce_time(workload, cluster).step_s == pytest.approx(0.3 + 0.018)


def test_workers_of_a_host_share_its_card() -> None:
    cluster = Cluster(workers=4, workers_per_host=2, bandwidth=1e9, latency_s=0.0)
    ring = gossip_time(Method(topology="ring"), WORKLOAD, cluster, overlap="none")
    assert ring.card_bytes == pytest.approx(2 * 120e6)
    assert ring.step_s == pytest.approx(0.3 + 0.24)


def test_a_hierarchy_sends_one_model_per_card() -> None:
    cluster = Cluster(workers=8, workers_per_host=4, bandwidth=1e9, local_bandwidth=1e12)
    found = gossip_time(Method(group=4), WORKLOAD, cluster)
    assert found.card_bytes == pytest.approx(120e6)


def test_a_straggler_slows_everybody_in_the_end() -> None:
    cluster = Cluster(workers=4, bandwidth=1e9, latency_s=0.0, stragglers=1, slowdown=2.0)
    assert seconds(Method(), cluster, "backward") == pytest.approx(0.6, rel=0.15)


def test_gossip_absorbs_jitter_that_an_all_reduce_waits_for() -> None:
    cluster = Cluster(workers=32, bandwidth=1e11, jitter=0.2)
    gossip = seconds(Method(), cluster, "backward")
    assert gossip < 0.9 * allreduce_time(WORKLOAD, cluster).step_s


def test_a_group_that_is_no_host_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="group: expected 1 or the 1 workers of a host"):
        gossip_time(Method(group=2), WORKLOAD, PAIR)


def test_the_plan_prefers_what_is_safe_and_then_what_is_fast() -> None:
    options = cc.plan(
        workers=16, workers_per_host=4, model_bytes=100e6, compute_s=0.1, bandwidth=1.25e8
    )
    unsafe = [not option.is_safe for option in options]
    assert unsafe == sorted(unsafe)
    safe = [option.step_s for option in options if option.is_safe]
    assert safe[0] <= 1.02 * min(safe)
    assert options[0].settings["group"] == 4
    assert {option.is_safe for option in options} == {True, False}


def test_the_plan_of_a_fast_network_is_the_all_reduce() -> None:
    options = cc.plan(
        workers=8, model_bytes=1e6, compute_s=1.0, bandwidth=1e11, jitter=0.0, latency_s=1e-6
    )
    assert options[0].name.startswith("all-reduce")


def test_the_plan_names_what_does_not_fit() -> None:
    with pytest.raises(InvalidArgument, match="3 does not divide 8 workers"):
        cc.plan(workers=8, workers_per_host=3, model_bytes=1e6, compute_s=1.0)
