"""Which method to take for a job, with the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from crossover_comm.errors import InvalidArgument
from crossover_comm.simulate.consensus import Setting, steady_distance
from crossover_comm.simulate.method import Method
from crossover_comm.simulate.timing import Cluster, StepTime, Workload, allreduce_time, gossip_time
from crossover_comm.topology import topology_from

__all__ = ["Option", "plan"]

SAFE_DISTANCE = 0.35
"""Consensus distance below which no loss of accuracy was measured at 128 workers; docs/results.md.
"""

INEXACT_MARGIN = 1.02
"""By so much a method whose replicas differ must be faster to stand before an exact one."""

_JUDGED_SIZE = 64
"""Workers above which the distance no longer changes by more than a few percent."""

_JUDGED_STEPS = 120


@dataclass(frozen=True, slots=True)
class Option:
    """One method, judged.

    Attributes:
        name: for people.
        settings: what to choose in `GossipConfig`; empty for an all-reduce.
        step_s: predicted seconds of a step.
        epoch_s: predicted seconds of an epoch, where its number of examples is known.
        card_bytes: through a host's card each way in a step.
        consensus_distance: in units of one worker's noise per step; 0: replicas are equal.
        is_safe: whether that is at most `SAFE_DISTANCE`.
    """

    name: str
    settings: dict[str, object]
    step_s: float
    epoch_s: float | None
    card_bytes: float
    consensus_distance: float
    is_safe: bool

    def as_json(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)


def plan(
    *,
    workers: int,
    model_bytes: float,
    compute_s: float,
    workers_per_host: int = 1,
    bandwidth: float = 1.25e9,
    latency_s: float = 50e-6,
    local_bandwidth: float = 10e9,
    jitter: float = 0.05,
    global_batch: int | None = None,
    examples: int | None = None,
    num_steps: int = 24,
) -> list[Option]:
    """Ranks methods for a job: the safe ones by predicted step time, then the others. An exact
    method stands before an inexact one that is not 2 % faster.

    The time is that of the link model, `crossover_comm.simulate.timing`; the consensus distance is
    measured on the schedule that would run, with one worker's noise per step as its unit. A method
    whose distance is above `SAFE_DISTANCE` may cost accuracy when a worker's batch is small.

    Args:
        workers: number of workers.
        model_bytes: of the parameters in fp32.
        compute_s: seconds of forward, backward and optimizer step of one worker.
        workers_per_host: workers that share a network card; hosts are filled evenly.
        bandwidth: of a card, bytes per second, each way.
        latency_s: of a message.
        local_bandwidth: between workers of a host, bytes per second.
        jitter: standard deviation of the compute time, as a share of it.
        global_batch: examples per step, with `examples` for the time of an epoch.
        examples: in an epoch.
        num_steps: simulated steps, above 4.

    Raises:
        InvalidArgument: a value that no job has.
    """
    if workers % workers_per_host != 0:
        raise InvalidArgument(
            f"workers_per_host: {workers_per_host} does not divide {workers} workers"
        )
    cluster = Cluster(
        workers=workers,
        workers_per_host=workers_per_host,
        bandwidth=bandwidth,
        latency_s=latency_s,
        local_bandwidth=local_bandwidth,
        jitter=jitter,
    )
    workload = Workload(model_bytes=model_bytes, compute_s=compute_s)
    steps_per_epoch = examples / global_batch if examples and global_batch else None
    options = [
        _option(name, settings, time, distance, steps_per_epoch)
        for name, settings, time, distance in _judged(workload, cluster, num_steps)
    ]
    return sorted(options, key=_rank)


def _rank(option: Option) -> tuple[bool, float]:
    margin = INEXACT_MARGIN if option.consensus_distance > 0 else 1.0
    return not option.is_safe, option.step_s * margin


def _judged(
    workload: Workload, cluster: Cluster, num_steps: int
) -> Iterator[tuple[str, dict[str, object], StepTime, float]]:
    ring = allreduce_time(workload, cluster, num_steps=num_steps)
    tree = allreduce_time(workload, cluster, algorithm="tree", num_steps=num_steps)
    yield "all-reduce, ring", {}, ring, 0.0
    yield "all-reduce, tree", {}, tree, 0.0
    if cluster.workers == 1:
        return
    for name, method in _candidates(cluster):
        for overlap in ("backward", "forward"):
            time = gossip_time(method, workload, cluster, overlap=overlap, num_steps=num_steps)
            settings = {**method.describe(), "overlap": overlap}
            distance = consensus_distance(method, cluster.workers, before=overlap == "backward")
            yield f"{name}, {overlap}", settings, time, distance


def _candidates(cluster: Cluster) -> Iterator[tuple[str, Method]]:
    groups = [1]
    if 1 < cluster.workers_per_host < cluster.workers:
        groups.append(cluster.workers_per_host)
    for group in groups:
        suffix = f", groups of {group}" if group > 1 else ""
        yield f"crossover{suffix}", Method(group=group)
        yield (
            f"crossover, bf16, 2 rounds{suffix}",
            Method(group=group, wire="bf16", rounds_per_step=2),
        )


def consensus_distance(method: Method, workers: int, *, before: bool) -> float:
    """Steady-state distance with the method's rounds per step, per coordinate.

    The average of a group's gradients has 1/group of the noise.
    """
    assert method.topology is not None
    size = min(workers // method.group, _JUDGED_SIZE)
    if size == 1:
        return 0.0
    setting = Setting(
        budget=method.rounds_per_step / method.interval,
        order="before" if before else "after",
        num_steps=_JUDGED_STEPS,
        numel=8,
    )
    topology = topology_from(method.topology)
    schedule = topology.schedule(size, setting.seed, setting.num_segments)
    return steady_distance(schedule, setting, cost=1.0) / method.group


def _option(
    name: str,
    settings: dict[str, object],
    time: StepTime,
    distance: float,
    steps_per_epoch: float | None,
) -> Option:
    return Option(
        name=name,
        settings=settings,
        step_s=time.step_s,
        epoch_s=None if steps_per_epoch is None else time.step_s * steps_per_epoch,
        card_bytes=time.card_bytes,
        consensus_distance=distance,
        is_safe=distance <= SAFE_DISTANCE,
    )
