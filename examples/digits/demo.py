"""Trains a small residual network on handwritten digits with four workers, by crossover and by DDP.

Same seeds, same data, same number of steps; prints a table and saves a plot.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from launch import NUM_WORKERS, run_workers
from report import LABELS, plot, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=NUM_WORKERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    options = parser.parse_args()
    started = time.monotonic()
    runs = {}
    for method, label in LABELS.items():
        print(f"-- {label}: starting {options.workers} workers", flush=True)
        runs[method] = run_workers(
            method,
            options.output / method,
            f"--seed={options.seed}",
            f"--epochs={options.epochs}",
            f"--device={options.device}",
            workers=options.workers,
        )
    path = options.output / "digits.png"
    plot(runs, path)
    print(f"\n{table(runs)}\n\nplot: {path}   ({time.monotonic() - started:.0f} s in all)")


if __name__ == "__main__":
    main()
