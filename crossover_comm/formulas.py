"""The formula of each topology: one rank's row of the mixing matrix, from integers alone.

Row i of W (row = receiver, column = source) lists the peers that rank i receives from with their
weights, in mixing order; the diagonal is what they leave to 1. With one rank every row is empty.
Training draws these rows in the extension; the functions here say what it draws, and the tests hold
the two together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

__all__ = [
    "Row",
    "complete_row",
    "crossover_row",
    "crossover_sequential_row",
    "exponential_row",
    "ring_row",
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
    TOMACS 2019 (below).
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
