"""Closed forms that the simulator must meet; n workers, D as in `simulate.consensus`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from crossover_comm.simulate.method import Order

__all__ = [
    "exponential_distance",
    "fixed_noise_distance",
    "group_contraction",
    "independent_distance",
    "mixed_radix_distance",
    "pairwise_contraction",
    "ring_contraction",
]


def pairwise_contraction(n: int) -> float:
    """(n - 2) / (2 (n - 1)): W = (I + P) / 2 with P a derangement, isotropic replicas.

    ||Pi W||_F^2 = n/2 - 1 for every P without a fixed point or a swapped pair, and in the mean over
    uniform derangements and shifts whatever the replicas.
    """
    return (n - 2) / (2 * (n - 1)) if n > 1 else 0.0


def group_contraction(n: int, m: int) -> float:
    """(n - m) / (m (n - 1)): exact averages in n / m random groups of m."""
    return (n - m) / (m * (n - 1)) if n > 1 else 0.0


def ring_contraction(n: int) -> float:
    """(n / 3 - 1) / (n - 1): both neighbours of a ring of at least 3, weights 1/3."""
    return (n / 3 - 1) / (n - 1)


def independent_distance(
    n: int, contraction: float, *, cost: float = 1.0, budget: float = 1.0, order: Order = "after"
) -> float:
    """D of independent rounds that each shrink E ||Pi x||^2 by `contraction`.

    V <- V + (n - 1) / n in each step, V <- contraction V in each round; the mean of V over steps.
    With one round a step V = (n - 1) / n c / (1 - c) ("after") or (n - 1) / n / (1 - c) ("before");
    crossover so has (n - 1) (n - 2) / n^2 and 2 (n - 1)^2 / n^2.
    """
    noise = (n - 1) / n
    value = total = 0.0
    round, num_steps = 0, 4000
    for step in range(1, num_steps + 1):
        value += noise if order == "after" else 0.0
        while (round + 1) * cost <= step * budget + 1e-9:
            value *= contraction
            round += 1
        value += noise if order == "before" else 0.0
        total += value if step > num_steps // 2 else 0.0
    return total / (num_steps - num_steps // 2)


def fixed_noise_distance(n: int) -> float:
    """D of crossover where each worker's noise is one constant draw: r (1 + 2 r) (n - 1) / n.

    r = (n - 2) / n. E Pi W is the same c Pi as E W' Pi W, hence E <Pi x, e> / n = r (n - 1) / n.
    """
    r = (n - 2) / n
    return r * (1 + 2 * r) * (n - 1) / n


def exponential_distance(n: int) -> float:
    """(n - 1 - log2 n) / n: one-peer exponential, n a power of two, one round a step, "after".

    After k rounds noise is averaged over 2^k workers: the sum over k of 2^-k - 1 / n.
    """
    return (n - 1 - (n.bit_length() - 1)) / n


def mixed_radix_distance(radices: Sequence[int]) -> float:
    """D of exact averages along one digit after the other, one round a step, "after".

    Noise is averaged over a digit's ranks in its first round and over all digits so far in the
    later ones; the mean over the digit that comes first of sum_k 1 / (p_1 ... p_k) - 1 / n.
    """
    n = prod(radices)
    total = 0.0
    for first in range(len(radices)):
        turned = [*radices[first:], *radices[:first]]
        total += sum(1 / prod(turned[:k]) - 1 / n for k in range(1, len(radices) + 1))
    return total / len(radices)
