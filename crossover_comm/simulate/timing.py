"""Predicts the time of a step from a model of links and workers.

A message of b bytes takes latency + b / rate, where the rate of a host's card is shared evenly by
all messages of a phase that pass it in the busier direction, and a message within a host takes the
local rate. Workers wait only for those whose messages they need (a max-plus recursion over steps),
in the order of the overlap mode:

- ``"none"``: post after the step, wait at once;
- ``"forward"``: post after the step; segments arrive one after the other and each is awaited where
  forward needs it;
- ``"fused"``: segments are posted one after the other while backward yields them, the one that
  forward needs first as the last;
- ``"backward"``: post when forward begins, wait before the step.

An all-reduce waits for everybody. It is cut into buckets that start as backward yields them, so all
but the last bucket may hide behind backward. Ring: 2 (n - 1) messages of b / n in a row per bucket,
the ring passing each card once; tree: 2 log2 n messages in a row, 2 b through each card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from crossover_comm.config import Overlap
from crossover_comm.errors import InvalidArgument
from crossover_comm.simulate.draws import Phase, draw
from crossover_comm.simulate.method import Method
from crossover_comm.topology import topology_from
from crossover_comm.wires import MODEL_SHARE, WIRES

__all__ = ["Cluster", "StepTime", "Workload", "allreduce_time", "gossip_time"]

Times: TypeAlias = npt.NDArray[np.float64]
Algorithm: TypeAlias = Literal["ring", "tree"]

WARM_UP_STEPS = 4
_NUMEL = 1 << 20
"""Elements that stand for a segment: only the shares of its slices matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Workers and links.

    Args:
        workers: number of workers.
        workers_per_host: that share a host's card.
        bandwidth: of a host's card, bytes per second, each way.
        latency_s: of a message.
        local_bandwidth: between workers of a host, bytes per second for each.
        jitter: standard deviation of a step's compute time, as a share of it (log-normal).
        stragglers: workers that are always slower.
        slowdown: their factor.

    Raises:
        InvalidArgument: a value that no cluster has.
    """

    workers: int
    workers_per_host: int = 1
    bandwidth: float = 1.25e9
    latency_s: float = 50e-6
    local_bandwidth: float = 10e9
    jitter: float = 0.0
    stragglers: int = 0
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.workers_per_host < 1:
            raise InvalidArgument(
                f"workers, workers_per_host: expected at least 1, got {self.workers} and "
                f"{self.workers_per_host}"
            )
        if self.bandwidth <= 0 or self.local_bandwidth <= 0:
            raise InvalidArgument(
                f"bandwidth, local_bandwidth: expected above 0 bytes per second, got "
                f"{self.bandwidth} and {self.local_bandwidth}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The model and its arithmetic.

    Args:
        model_bytes: of the parameters in fp32.
        compute_s: forward, backward and optimizer step of one worker.
        forward_share: of compute_s; backward has the rest.
        num_segments: of the model, of equal size here.
        bucket_bytes: of an all-reduce, torch DDP's 25 MiB by default.
    """

    model_bytes: float
    compute_s: float
    forward_share: float = 1 / 3
    num_segments: int = 8
    bucket_bytes: float = 25 * 2**20


@dataclass(frozen=True, slots=True)
class StepTime:
    """Prediction for one method.

    Attributes:
        step_s: mean seconds of a step.
        compute_s: mean seconds of one worker's compute, jitter included.
        card_bytes: that pass a host's card each way in a step.
    """

    step_s: float
    compute_s: float
    card_bytes: float

    def as_json(self) -> dict[str, float]:
        """For a file."""
        return asdict(self)


def allreduce_time(
    workload: Workload,
    cluster: Cluster,
    *,
    algorithm: Algorithm = "ring",
    num_steps: int = 40,
    seed: int = 0,
) -> StepTime:
    """All-reduce of the gradients of all workers, overlapped with backward."""
    compute = _compute_times(workload, cluster, num_steps, seed)
    exposed, sent = _allreduce(workload, cluster, cluster.workers, algorithm)
    ends = compute.max(axis=1) + exposed
    return StepTime(float(ends[WARM_UP_STEPS:].mean()), float(compute.mean()), sent)


def gossip_time(
    method: Method,
    workload: Workload,
    cluster: Cluster,
    *,
    overlap: Overlap = "backward",
    num_steps: int = 40,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> StepTime:
    """Gossip by the method's topology, drawn from the schedule that the engine runs.

    With ``method.group`` g > 1, each host's g workers average gradients among themselves first,
    and members with the same index gossip their shares of the model.

    Raises:
        InvalidArgument: the method has no topology, or its group is not a host's workers.
    """
    if method.topology is None:
        raise InvalidArgument("topology: gossip needs one; allreduce_time is for all-reduce")
    if method.group not in (1, cluster.workers_per_host):
        raise InvalidArgument(
            f"group: expected 1 or the {cluster.workers_per_host} workers of a host, got "
            f"{method.group}"
        )
    compute = _compute_times(workload, cluster, num_steps, seed)
    inner = 0.0
    if method.group > 1:
        compute = compute.reshape(num_steps, -1, method.group).max(axis=2)
        inner = _inner_time(workload, cluster)
    race = _Race(method, workload, cluster, seed)
    starts = np.zeros(compute.shape[1])
    ends = []
    for step in range(num_steps):
        starts = race.step(starts, compute[step] + inner, step, overlap)
        ends.append(starts.mean())
        tick()
    step_s = (ends[-1] - ends[WARM_UP_STEPS - 1]) / (num_steps - WARM_UP_STEPS)
    return StepTime(float(step_s), float(compute.mean()), race.card_bytes / num_steps)


class _Race:
    """Who waits for whom; a racer is a worker, or a group that acts as one."""

    def __init__(self, method: Method, workload: Workload, cluster: Cluster, seed: int) -> None:
        assert method.topology is not None
        self._method = method
        self._workload = workload
        self._cluster = cluster
        size = cluster.workers // method.group
        per_host = max(1, cluster.workers_per_host // method.group)
        self._hosts = np.arange(size) // per_host
        topology = topology_from(method.topology)
        self._schedule = topology.schedule(size, seed, workload.num_segments)
        if method.wire == "auto":
            raise InvalidArgument(f"wire: expected one of {', '.join(WIRES)}, got 'auto'")
        share = MODEL_SHARE[method.wire]
        self._segment_bytes = workload.model_bytes * share / workload.num_segments
        self.card_bytes = 0.0

    def step(self, starts: Times, compute: Times, step: int, overlap: Overlap) -> Times:
        """When each racer begins its next step, given when it began this one."""
        mixes = (step + 1) % self._method.interval == 0
        if not mixes:
            return starts + compute
        mixing = step // self._method.interval
        if overlap == "backward":
            return np.maximum(starts + compute, self._exchanged(starts, mixing))
        ends = starts + compute
        forward = self._workload.forward_share * self._workload.compute_s
        num_segments = self._workload.num_segments
        if overlap == "fused":
            backward = self._workload.compute_s - forward
            posted = ends - backward * (num_segments - 1) / num_segments
            arrived = self._exchanged(posted, mixing)
            return np.maximum(arrived, ends + (arrived - posted) / num_segments)
        arrived = self._exchanged(ends, mixing)
        if overlap == "none":
            return arrived
        first = ends + (arrived - ends) / num_segments
        return np.maximum(first, arrived + forward / num_segments - forward)

    def _exchanged(self, ready: Times, mixing: int) -> Times:
        """When all segments of all the step's rounds have arrived."""
        for r in range(self._method.rounds_per_step):
            round = mixing * self._method.rounds_per_step + r
            programs = [
                draw(self._schedule, round, segment, _NUMEL)
                for segment in range(self._workload.num_segments)
            ]
            for phases in zip_longest(*programs, fillvalue=[]):
                ready = self._phase(ready, phases)
        return ready

    def _phase(self, ready: Times, phases: Sequence[Phase]) -> Times:
        """All segments' messages of a phase are in flight together and share the cards."""
        size = len(ready)
        card_in, card_out = np.zeros(self._hosts[-1] + 1), np.zeros(self._hosts[-1] + 1)
        local = np.zeros(size)
        pairs = []
        for phase in phases:
            for exchange in phase:
                to = np.repeat(exchange.ranks, exchange.peers.shape[1])
                source = exchange.peers.ravel()
                num_bytes = self._segment_bytes * (exchange.end - exchange.begin) / _NUMEL
                weighs = np.where(exchange.weights.ravel() > 0, num_bytes, 0.0)
                crosses = self._hosts[to] != self._hosts[source]
                np.add.at(card_in, self._hosts[to], weighs * crosses)
                np.add.at(card_out, self._hosts[source], weighs * crosses)
                np.add.at(local, to, weighs * ~crosses)
                pairs.append((to, source, crosses))
        self.card_bytes += float(max(card_in.mean(), card_out.mean()))
        after = ready + local / self._cluster.local_bandwidth
        for to, source, crosses in pairs:
            busy = np.maximum(card_in[self._hosts[to]], card_out[self._hosts[source]])
            transfer = np.where(crosses, busy / self._cluster.bandwidth, 0.0)
            arrival = ready[source] + self._cluster.latency_s + transfer
            np.maximum.at(after, to, arrival)
            np.maximum.at(after, to, ready[to] + transfer)
        return after


def _compute_times(workload: Workload, cluster: Cluster, num_steps: int, seed: int) -> Times:
    """Seconds, (steps, workers)."""
    generator = np.random.default_rng(seed)
    shape = num_steps, cluster.workers
    times = np.full(shape, workload.compute_s)
    if cluster.jitter:
        sigma = math.sqrt(math.log1p(cluster.jitter**2))
        times *= generator.lognormal(-0.5 * sigma**2, sigma, shape)
    times[:, : cluster.stragglers] *= cluster.slowdown
    return times


def _allreduce(
    workload: Workload, cluster: Cluster, size: int, algorithm: Algorithm
) -> tuple[float, float]:
    """Seconds that do not hide behind backward, and bytes through a card each way."""
    if size == 1:
        return 0.0, 0.0
    crosses = size > cluster.workers_per_host
    rate = cluster.bandwidth if crosses else cluster.local_bandwidth
    buckets = max(1, math.ceil(workload.model_bytes / workload.bucket_bytes))
    if algorithm == "ring":
        hops, share = 2 * (size - 1), 2 * (size - 1) / size
    else:
        hops, share = 2 * (size - 1).bit_length(), 2.0
    whole = buckets * hops * cluster.latency_s + share * workload.model_bytes / rate
    backward = (1.0 - workload.forward_share) * workload.compute_s
    hidden = backward * (buckets - 1) / buckets
    exposed = max(whole / buckets, whole - hidden)
    return exposed, share * workload.model_bytes if crosses else 0.0


def _inner_time(workload: Workload, cluster: Cluster) -> float:
    """Exposed average of gradients within a host, and the gathering of the mixed shares."""
    size = cluster.workers_per_host
    exposed, _ = _allreduce(workload, cluster, size, "ring")
    gather = (size - 1) / size * workload.model_bytes / cluster.local_bandwidth
    return exposed + gather + (size - 1) * cluster.latency_s
