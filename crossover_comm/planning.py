"""Which method to take for a job, with the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from crossover_comm.config import Overlap
from crossover_comm.errors import InvalidArgument
from crossover_comm.simulate import theory
from crossover_comm.simulate.method import Method
from crossover_comm.simulate.timing import Cluster, StepTime, Workload, allreduce_time, gossip_time
from crossover_comm.topology import GroupCrossover, MixedRadix

__all__ = ["Option", "plan"]

SAFE_DISTANCE = 0.2
"""Consensus distance up to which methods count as exact. At 128 workers 0.1 cost nothing measurable
on two small tasks, 0.3 about half a point on the more sensitive one; docs/results.md.
"""

INEXACT_MARGIN = 1.02
"""By so much a method whose replicas differ must be faster to stand before an exact one."""

_MOST_GROUPED = 256
"""Workers, or hosts, up to which random groups and digits are candidates."""


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
    that of theory, with one worker's noise per step as its unit: mixing before the step adds
    (n - 1)/n to it, and the mean gradient of a host of g workers has 1/g of the noise. A method
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
    overlaps: tuple[Overlap, ...] = ("backward", "forward")
    for name, method, after in _candidates(cluster):
        size = cluster.workers // method.group
        for overlap in overlaps:
            time = gossip_time(method, workload, cluster, overlap=overlap, num_steps=num_steps)
            before = (size - 1) / size if overlap == "backward" else 0.0
            settings = {**method.describe(), "overlap": overlap}
            yield f"{name}, {overlap}", settings, time, (after + before) / method.group


def _candidates(cluster: Cluster) -> Iterator[tuple[str, Method, float]]:
    """Name, method and its consensus distance among the racers that gossip, mixed after the step.

    Groups and digits are left out where drawing them for every worker would take too long.
    """
    groups = [1]
    if 1 < cluster.workers_per_host < cluster.workers:
        groups.append(cluster.workers_per_host)
    for group in groups:
        size = cluster.workers // group
        suffix = f", hosts of {group}" if group > 1 else ""
        pairs = theory.pairwise_contraction(size)
        yield f"crossover{suffix}", Method(group=group), theory.independent_distance(size, pairs)
        twice = Method(group=group, wire="bf16", rounds_per_step=2)
        distance = theory.independent_distance(size, pairs, cost=0.5)
        yield f"crossover, bf16, 2 rounds{suffix}", twice, distance
        if size > _MOST_GROUPED:
            continue
        if size % 4 == 0:
            fours = Method(group=group, topology=GroupCrossover(4), wire="bf16")
            distance = theory.independent_distance(size, theory.group_contraction(size, 4))
            yield f"groups of 4, bf16{suffix}", fours, distance
        low = next(p for p in range(int(size**0.5), 0, -1) if size % p == 0)
        if low > 1:
            radices = (low, size // low)
            digits = Method(group=group, topology=MixedRadix(radices=radices), wire="bf16")
            distance = theory.mixed_radix_distance(radices)
            yield f"digits {low} x {size // low}, bf16{suffix}", digits, distance


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
