"""How fast a topology averages, and how far apart it lets noisy workers drift at equal bytes.

Workers hold independent standard normal coordinates; Pi removes their mean over the workers.

- `contraction`: E ||Pi W x||^2 / ||Pi x||^2 of a round, x isotropic.
- `exact_after`: rounds from the start until the replicas are equal to rounding, if ever.
- `distance`: D = (1/n) sum_i |x_i - mean|^2 per coordinate in the steady state of x <- W (x + e)
  (order "after") or x <- W x + e ("before"), e standard normal, fresh for every worker and step, or
  one constant draw per worker for data that differ (``fixed_noise``). Averaged over the steps.

Equal bytes: so many rounds that every worker sends `budget` models per step in the mean. Round
number k (from 1) happens in the first step t (from 1) with t * budget >= k * cost - 1e-9, where
cost is the models that a worker sends in a round. So a topology of cost 3/2 mixes twice in three
steps, and one of cost 1/2 twice in a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from crossover_comm import _C
from crossover_comm.config import Wire
from crossover_comm.simulate import theory
from crossover_comm.simulate.method import Order
from crossover_comm.simulate.mixing import Mixer
from crossover_comm.topology import (
    AllReduce,
    Complete,
    Crossover,
    Exponential,
    ExponentialXor,
    GroupCrossover,
    Ring,
    Shift,
    Topology,
    topology_from,
)

__all__ = ["Consensus", "contraction", "exact_after", "measure", "steady_distance"]

EXACT = 1e-12
"""A round that leaves less of the squared distance than this made the replicas equal; one that only
contracts never leaves so little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured; see the module's text."""

    budget: float = 1.0
    order: Order = "after"
    wire: Wire = "fp32"
    fixed_noise: bool = False
    num_steps: int = 400
    num_segments: int = 4
    numel: int = 32
    """Coordinates of each segment; each segment has draws of its own."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Consensus:
    """One topology at one size; theory is None where no closed form is known."""

    topology: str
    size: int
    models_per_round: float
    contraction: float
    contraction_theory: float | None
    exact_after: int | None
    distance: float
    distance_theory: float | None

    def as_json(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)


def measure(
    topology: str | Topology,
    size: int,
    setting: Setting | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Consensus:
    """Everything about one topology at one size; `tick` is called once per simulated step."""
    setting = setting or Setting()
    resolved = topology_from(topology)
    schedule = resolved.schedule(size, setting.seed, setting.num_segments)
    cost = _mixer(schedule, setting).mean_models_sent()
    expected = _contraction_theory(resolved, size)
    return Consensus(
        topology=resolved.name,
        size=size,
        models_per_round=cost,
        contraction=contraction(schedule, setting),
        contraction_theory=expected,
        exact_after=exact_after(schedule, setting),
        distance=steady_distance(schedule, setting, cost, tick),
        distance_theory=_distance_theory(resolved, size, setting, cost),
    )


def _contraction_theory(topology: Topology, size: int) -> float | None:
    is_power = size & (size - 1) == 0
    match topology:
        case Crossover(fair=True) | Shift():
            return theory.pairwise_contraction(size)
        case Exponential() | ExponentialXor() if is_power:
            return theory.pairwise_contraction(size)
        case GroupCrossover(group_size=m) if size % m == 0:
            return theory.group_contraction(size, m)
        case Ring() if size > 2:
            return theory.ring_contraction(size)
        case Complete() | AllReduce():
            return 0.0
    return None


def _distance_theory(topology: Topology, size: int, setting: Setting, cost: float) -> float | None:
    contraction = _contraction_theory(topology, size)
    if setting.fixed_noise:
        return None
    match topology:
        case Exponential() | ExponentialXor():
            known = contraction is not None and (cost, setting.order) == (setting.budget, "after")
            return theory.exponential_distance(size) if known else None
        case Ring():
            return None
    if contraction is None:
        return None
    return theory.independent_distance(
        size, contraction, cost=cost, budget=setting.budget, order=setting.order
    )


def contraction(schedule: _C.Schedule, setting: Setting) -> float:
    """Mean over rounds of the factor of the squared distance, from isotropic replicas."""
    generator = torch.Generator().manual_seed(setting.seed)
    mixer = _mixer(schedule, setting)
    before = after = 0.0
    for round in range(32):
        x = _normal(schedule.size, setting, generator)
        before += _squared_distance(x)
        mixer.mix(x, round)
        after += _squared_distance(x)
    return after / before if before else 0.0


def exact_after(schedule: _C.Schedule, setting: Setting) -> int | None:
    """Rounds until replicas that start apart are equal, at most 4 log2(size) + 4; None: not yet."""
    x = _normal(schedule.size, setting, torch.Generator().manual_seed(setting.seed))
    mixer = Mixer(schedule, _segments(setting))
    before = _squared_distance(x)
    for round in range(4 * (schedule.size - 1).bit_length() + 4):
        mixer.mix(x, round)
        after = _squared_distance(x)
        if after < EXACT * before:
            return round + 1
        before = after
    return None


def steady_distance(
    schedule: _C.Schedule,
    setting: Setting,
    cost: float,
    tick: Callable[[], object] = lambda: None,
) -> float:
    """D of the module's text. `cost`: models that a worker sends in a round."""
    generator = torch.Generator().manual_seed(setting.seed + 1)
    mixer = _mixer(schedule, setting)
    x = torch.zeros_like(fixed := _normal(schedule.size, setting, generator))
    total = 0.0
    round = 0
    num_skipped = setting.num_steps // 4
    for step in range(1, setting.num_steps + 1):
        noise = fixed if setting.fixed_noise else _normal(schedule.size, setting, generator)
        if setting.order == "after":
            x += noise
        while (round + 1) * cost <= step * setting.budget + 1e-9:
            mixer.mix(x, round)
            round += 1
        if setting.order == "before":
            x += noise
        if step > num_skipped:
            total += _squared_distance(x)
        tick()
    return total / (setting.num_steps - num_skipped)


def _segments(setting: Setting) -> list[tuple[int, int]]:
    return [(k * setting.numel, (k + 1) * setting.numel) for k in range(setting.num_segments)]


def _mixer(schedule: _C.Schedule, setting: Setting) -> Mixer:
    return Mixer(schedule, _segments(setting), setting.wire)


def _normal(size: int, setting: Setting, generator: torch.Generator) -> Tensor:
    shape = size, setting.num_segments * setting.numel
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _squared_distance(x: Tensor) -> float:
    return float((x - x.mean(dim=0)).square().mean())
