"""Measures the steady-state consensus distance of every scheme at equal bytes.

    python benchmarks/consensus.py           # benchmarks/results/consensus.json
    python benchmarks/consensus.py --check   # fails if a whole-model entry is 10 % off

One model is sent per worker and step; `crossover_comm.simulate.consensus` says what is measured and
how rounds are spread that cost a fraction of a model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossover_comm.formulas import Row
from crossover_comm.simulate.consensus import Setting, measure
from crossover_comm.simulate.report import write_json
from crossover_comm.topology import (
    Crossover,
    Exponential,
    GroupCrossover,
    MixedRadix,
    Table,
    Topology,
)

RESULTS = Path(__file__).parent / "results" / "consensus.json"
SIZES = (8, 16, 32, 64)
TOLERANCE = 0.1


def rotation(size: int) -> Topology:
    """Pairs between the two halves of the ranks that turn by one each round (Bagua's shift_one)."""
    half = size // 2
    tables: list[list[Row]] = []
    for turn in range(half):
        pairs = {rank: half + (rank + turn) % half for rank in range(half)}
        pairs |= {peer: rank for rank, peer in pairs.items()}
        tables.append([[(pairs[rank], 0.5)] for rank in range(size)])
    return Table(tables=tables)


def grid(size: int) -> Topology:
    """Two digits, as equal as can be."""
    low = next(p for p in range(int(size**0.5), 0, -1) if size % p == 0)
    return MixedRadix(radices=(low, size // low))


@dataclass(frozen=True, slots=True)
class Scheme:
    """A line of the table of expected distances.

    Attributes:
        expected: at 8, 16, 32, 64 workers; then at 64 with constant noise, if known.
        whole: its rounds cost a whole number of models, or a whole number fit into one.
        setting: what differs from the default of `Setting`.
    """

    name: str
    topology: Callable[[int], Topology]
    expected: tuple[float, ...]
    whole: bool = True
    setting: dict[str, Any] = field(default_factory=dict)


SCHEMES = (
    Scheme("crossover", lambda n: Crossover(), (0.65, 0.82, 0.91, 0.955, 2.86)),
    Scheme("one-peer exponential", lambda n: Exponential(), (0.50, 0.68, 0.81, 0.89, 2.25)),
    # the last one by dense algebra over all directions; an earlier measurement had 4.83
    Scheme("pairs that turn by one", rotation, (0.62, 1.30, 2.64, 5.06, 5.37)),
    Scheme("groups of 4", lambda n: GroupCrossover(4), (0.49, 0.64, 0.72, 0.76, 1.67), False),
    Scheme("groups of 8", lambda n: GroupCrossover(8), (0.37, 0.52, 0.59, 0.63, 1.09), False),
    Scheme("two-digit grid", grid, (0.47, 0.56, 0.61, 0.61, 0.88), False),
    Scheme(
        "crossover, bf16",
        lambda n: Crossover(),
        (0.20, 0.26, 0.30, 0.31, 0.52),
        setting={"wire": "bf16"},
    ),
    Scheme(
        "groups of 4, bf16",
        lambda n: GroupCrossover(4),
        (0.10, 0.16, 0.19, 0.21, 0.28),
        False,
        {"wire": "bf16"},
    ),
    Scheme(
        "crossover, mixed before the step",
        lambda n: Crossover(),
        (1.53, 1.75, 1.87, 1.94, 5.79),
        setting={"order": "before"},
    ),
)


def rows(schemes: tuple[Scheme, ...], sizes: tuple[int, ...] = SIZES) -> Iterator[dict[str, Any]]:
    """Expected and measured distance of each scheme at each size, then with constant noise."""
    for scheme in schemes:
        wanted = dict(zip((*SIZES, "64, constant noise"), scheme.expected, strict=True))
        for column, expected in wanted.items():
            fixed = isinstance(column, str)
            size = SIZES[-1] if isinstance(column, str) else column
            if size not in sizes:
                continue
            setting = Setting(fixed_noise=fixed, **scheme.setting)
            measured = measure(scheme.topology(size), size, setting).distance
            yield {
                "scheme": scheme.name,
                "workers": column,
                "expected": expected,
                "measured": round(measured, 4),
                "whole": scheme.whole,
            }


def is_off(row: dict[str, Any]) -> bool:
    """Whether an entry of whole models is further than `TOLERANCE` from what is expected."""
    return bool(row["whole"]) and abs(row["measured"] / row["expected"] - 1) > TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if one is off")
    options = parser.parse_args()
    total = len(SCHEMES) * (len(SIZES) + 1)
    found = list(tqdm(rows(SCHEMES), total=total, unit="entry"))
    off = [row for row in found if is_off(row)]
    for row in off:
        print(
            f"{row['scheme']}, {row['workers']} workers: {row['measured']}, not {row['expected']}"
        )
    if not options.check:
        write_json(RESULTS, "python benchmarks/consensus.py", found)
    return int(bool(off))


if __name__ == "__main__":
    sys.exit(main())
