"""The formula of each topology: one rank's row of the mixing matrix, from integers alone.

Row i of W (row = receiver, column = source) lists the peers that rank i receives from with their
weights, in mixing order; the diagonal is what they leave to 1. With one rank every row is empty.
Training draws these rows in the extension; the functions here say what it draws, and the tests hold
the two together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

__all__ = [
    "Row",
    "base2_num_rounds",
    "base2_row",
    "complete_row",
    "crossover_row",
    "crossover_sequential_row",
    "exponential_row",
    "exponential_xor_row",
    "group_crossover_row",
    "mixed_radix_row",
    "nofairness_row",
    "prime_factors",
    "ring_row",
    "shift_row",
    "table_row",
]

Row: TypeAlias = list[tuple[int, float]]
"""(peer, weight) of each peer that a rank receives from, in mixing order."""

_MASK32 = 0xFFFFFFFF


def crossover_row(rank: int, round: int, segment: int, size: int, seed: int) -> Row:
    """Row of `Crossover`: [(p[rank], 1/2)], p a uniform derangement of 0..size-1.

    p = 0..size-1; for i = size-1 down to 1 swap p[i] with p[below(i + 1)]; as soon as a final p[i]
    equals i (p[0] included) start again at i = size-1, with p as it is and the next words.
    below(b) is the high half of the 64-bit product of b and the next word whose product has a low
    half of at least 2^32 mod b. Words are those of Philox4x32-10 with counters
    (block, segment, low, high half of round), block = 0, 1, ..., and key (low, high half of seed).
    Source: Bae et al., Crossover-SGD, arXiv 2012.15198; Salmon et al., SC 2011 (Philox); Lemire,
    TOMACS 2019 (below). The ablation "noseg" takes the row of segment 0 for every segment.
    """
    if size == 1:
        return []
    words = _words(seed, round, segment)
    p = list(range(size))
    place = size - 1
    while place >= 0:
        other = _below(words, place + 1) if place > 0 else 0
        p[place], p[other] = p[other], p[place]
        place = size - 1 if p[place] == place else place - 1
    return [(p[rank], 0.5)]


def nofairness_row(rank: int, round: int, segment: int, size: int, seed: int) -> Row:
    """Row of `Crossover(fair=False)`: [(s[rank] + [s[rank] >= rank], 1/2)].

    s[i] = below(size - 1) for i = 0..size-1 in order, below() as in `crossover_row`: each rank
    draws its source evenly among the others; some are sources several times and some never.
    Source: Bae et al., Crossover-SGD, arXiv 2012.15198 ("nofairness"; "nofaseg" with segment 0).
    """
    if size == 1:
        return []
    words = _words(seed, round, segment)
    drawn = [_below(words, size - 1) for _ in range(size)]
    return [(drawn[rank] + (drawn[rank] >= rank), 0.5)]


def shift_row(rank: int, round: int, segment: int, size: int, seed: int) -> Row:
    """Row of `Shift`: [((rank + s) mod size, 1/2)], s = 1 + below(size - 1).

    below() as in `crossover_row`. Rank r sends to (r - s) mod size. Source: Song et al., EquiTopo,
    arXiv 2210.07881, whose one-peer graphs draw such shifts.
    """
    if size == 1:
        return []
    return [((rank + 1 + _below(_words(seed, round, segment), size - 1)) % size, 0.5)]


def _words(seed: int, round: int, segment: int) -> Iterator[int]:
    for block in itertools.count():
        a, b, c, d = block, segment, round & _MASK32, round >> 32
        key0, key1 = seed & _MASK32, seed >> 32
        for _ in range(10):
            product0, product1 = 0xD2511F53 * a, 0xCD9E8D57 * c
            a, b = (product1 >> 32) ^ b ^ key0, product1 & _MASK32
            c, d = (product0 >> 32) ^ d ^ key1, product0 & _MASK32
            key0, key1 = (key0 + 0x9E3779B9) & _MASK32, (key1 + 0xBB67AE85) & _MASK32
        yield from (a, b, c, d)


def _below(words: Iterator[int], bound: int) -> int:
    product = next(words) * bound
    while product & _MASK32 < 2**32 % bound:
        product = next(words) * bound
    return product >> 32


def crossover_sequential_row(
    rank: int, round: int, segment: int, size: int, seed: int, num_segments: int
) -> Row:
    """Row of `CrossoverSequential`: [(map[rank], 1/2)].

    The map is number round * num_segments + segment of the sequence that numpy's RandomState(seed)
    gives. A map picks its entries i = 0..size-1 in order, by one random_sample() each, evenly among
    the ranks that are unused and not i; but entry size-2 is size-1, without a sample, if that is
    unused. Source: Bae et al., Crossover-SGD, arXiv 2012.15198.
    """
    if size == 1:
        return []
    uniform = np.random.RandomState(seed)
    for _ in range(round * num_segments + segment + 1):
        unused = list(range(size))
        drawn: list[int] = []
        for i in range(size):
            source = size - 1
            if i != size - 2 or size - 1 not in unused:
                choices = [j for j in unused if j != i]
                steps = np.cumsum(np.full(len(choices), 1.0 / len(choices)))
                u = uniform.random_sample()
                source = choices[int(np.searchsorted(steps / steps[-1], u, side="right"))]
            unused.remove(source)
            drawn.append(source)
    return [(drawn[rank], 0.5)]


def exponential_row(rank: int, round: int, segment: int, size: int) -> Row:
    """Row of `Exponential`: [((rank - 2^(k mod L)) mod size, 1/2)], k = round + segment.

    L = ceil(log2 size), so every rank r sends to (r + 2^(k mod L)) mod size. If size = 2^L, L
    rounds give the exact average. Source: Assran et al., SGP, arXiv 1811.10792; Ying et al.,
    arXiv 2110.13363.
    """
    if size == 1:
        return []
    num_phases = (size - 1).bit_length()
    return [((rank - 2 ** ((round + segment) % num_phases)) % size, 0.5)]


def exponential_xor_row(rank: int, round: int, segment: int, size: int) -> Row:
    """Row of `ExponentialXor`: [(rank xor 2^(k mod L), 1/2)], k = round + segment.

    L = ceil(log2 size); idle if the partner would be size or more. If size = 2^L, L rounds give the
    exact average. Source: Nguyen et al., arXiv 2311.01317 (hypercubes).
    """
    if size == 1:
        return []
    peer = rank ^ 2 ** ((round + segment) % (size - 1).bit_length())
    return [(peer, 0.5)] if peer < size else []


def base2_num_rounds(size: int) -> int:
    """Rounds T after which `Base2` has averaged exactly.

    With size = 2^a q, q odd: T = a, and 2 floor(log2 q) + 1 more if q > 1.
    """
    num_even = (size & -size).bit_length() - 1
    odd = size >> num_even
    return num_even + (2 * odd.bit_length() - 1 if odd > 1 else 0)


def base2_row(rank: int, round: int, segment: int, size: int) -> Row:
    """Row of `Base2`: one partner with equal weight on both sides, or none.

    With size = 2^a q, q odd, and k = (round + segment) mod T: for k < a the partner is
    rank xor 2^k, weight 1/2. The rest goes on alike for all ranks of the same rank mod 2^a, on
    nodes c = rank div 2^a, cut into blocks V_1, ..., V_L of sizes 2^p_1 > ... > 2^p_L that sum to
    q. With k' = k - a:

    - k' < p_1: in each V_l the pairs c xor 2^k', c counted from its start, 1/2, while k' < p_l;
    - k' = p_1 + j - 1, j < L: node i of V_(j+1), ..., V_L, counted through, with node i of V_j,
      weight |V_j| / (|V_j| + ... + |V_L|), after which V_j has the mean of all, and so have they;
    - k' = p_1 + j + b, b < p_j, j < L: V_j averages itself again by the pairs c xor 2^b, 1/2.

    Source: Takezawa et al., Beyond Exponential Graph, arXiv 2305.11420.
    """
    num_even = (size & -size).bit_length() - 1
    k = (round + segment) % max(1, base2_num_rounds(size))
    if size == 1:
        return []
    if k < num_even:
        return [(rank ^ 2**k, 0.5)]
    found = _base2_odd(rank >> num_even, k - num_even, size >> num_even)
    if found is None:
        return []
    node, weight = found
    return [(node << num_even | rank & (2**num_even - 1), weight)]


def _base2_odd(node: int, k: int, odd: int) -> tuple[int, float] | None:
    bits = [p for p in reversed(range(odd.bit_length())) if odd >> p & 1]
    starts = [sum(2**p for p in bits[:block]) for block in range(len(bits))]
    own = max(block for block, start in enumerate(starts) if node >= start)
    step = k - bits[0]
    bit = k if step < 0 else step - own - 1
    if step < 0 or own < step:
        within = starts[own] + (node - starts[own] ^ 2**bit)
        return (within, 0.5) if bit < bits[own] else None
    if step == len(bits) - 1:
        return None
    start, behind = starts[step], starts[step + 1]
    weight = 2 ** bits[step] / (odd - start)
    if node >= behind:
        return start + node - behind, weight
    other = behind + node - start
    return (other, weight) if other < odd else None


def prime_factors(size: int) -> list[int]:
    """Ascending, each as often as it divides `size`."""
    factors = []
    for factor in range(2, size + 1):
        while size % factor == 0:
            factors.append(factor)
            size //= factor
    return factors


def mixed_radix_row(rank: int, round: int, segment: int, radices: Sequence[int]) -> Row:
    """Row of `MixedRadix`: the ranks that differ from `rank` in digit d alone, 1/p_d each.

    d = (round + segment) mod D with D digits of radices p_0, ..., p_(D-1), digit 0 the lowest;
    their product is the number of ranks. D rounds give the exact average. Source: Nguyen et al.,
    arXiv 2311.01317 (p-peer hyper-cuboids).
    """
    if not radices:
        return []
    d = (round + segment) % len(radices)
    stride = math.prod(radices[:d])
    first = rank - rank // stride % radices[d] * stride
    group = range(first, first + radices[d] * stride, stride)
    return [(peer, 1.0 / radices[d]) for peer in group if peer != rank]


def group_crossover_row(
    rank: int, round: int, segment: int, size: int, group_size: int, seed: int
) -> Row:
    """Row of `GroupCrossover`: the others of the rank's group, 1/m each for a group of m.

    p = 0..size-1; for i = size-1 down to 1 swap p[i] with p[below(i + 1)], below() as in
    `crossover_row`. p is cut into ceil(size / group_size) runs, the longer ones, by one, first: the
    groups. Source: Ryabinin et al., Moshpit SGD, arXiv 2103.03239 (averages in changing groups).
    """
    words = _words(seed, round, segment)
    p = list(range(size))
    for i in reversed(range(1, size)):
        other = _below(words, i + 1)
        p[i], p[other] = p[other], p[i]
    groups = np.array_split(np.array(p), -(-size // group_size))
    group = next(sorted(g.tolist()) for g in groups if rank in g)
    return [(peer, 1.0 / len(group)) for peer in group if peer != rank]


def ring_row(rank: int, size: int) -> Row:
    """Row of `Ring`: (rank - 1) mod size and (rank + 1) mod size, ascending, weight 1/3 each.

    With size 2: the other rank, 1/2. Source: Lian et al., D-PSGD, arXiv 1705.09056.
    """
    peers = sorted({(rank - 1) % size, (rank + 1) % size} - {rank})
    return [(peer, 1.0 / (len(peers) + 1)) for peer in peers]


def complete_row(rank: int, size: int) -> Row:
    """Row of `Complete`: every other rank, ascending, weight 1/size. Source: the plain mean."""
    return [(peer, 1.0 / size) for peer in range(size) if peer != rank]


def table_row(
    rank: int,
    round: int,
    segment: int,
    tables: Sequence[Sequence[Sequence[tuple[int, float]]]],
    rotate_by_segment: bool,
) -> Row:
    """Row of `Table`: tables[(round + segment * rotate_by_segment) mod len(tables)][rank]."""
    return list(tables[(round + segment * rotate_by_segment) % len(tables)][rank])
