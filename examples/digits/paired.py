"""Compares crossover with DDP over paired seeds: 95 % t-intervals of the difference in accuracy.

Each seed trains twice with four worker processes, from the same model and the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from launch import NUM_WORKERS, WorkerRecord, run_workers
from report import LABELS
from scipy.stats import t as student_t

import crossover_comm

ROOT = Path(__file__).resolve().parents[2]
MEASURES = {
    "averaged": "averaged model",
    "mean_local": "mean of local models",
}


def measures(records: list[WorkerRecord]) -> dict[str, float]:
    """Final test accuracies of one run, in percent."""
    return {
        "averaged": 100 * records[0]["averaged_accuracy"][-1],
        "mean_local": 100 * fmean(record["local_accuracy"][-1] for record in records),
    }


def interval(differences: list[float]) -> tuple[float, float]:
    """Two-sided 95 % confidence interval of the mean, by Student's t."""
    half = student_t.ppf(0.975, len(differences) - 1) * stdev(differences)
    half /= math.sqrt(len(differences))
    return fmean(differences) - half, fmean(differences) + half


def compare(num_seeds: int, *options: str) -> list[dict[str, Any]]:
    """Runs both methods for every seed and prints a line for each."""
    seeds = []
    for seed in range(num_seeds):
        result: dict[str, Any] = {"seed": seed}
        for method in LABELS:
            with tempfile.TemporaryDirectory() as folder:
                records = run_workers(method, Path(folder), f"--seed={seed}", *options)
            result[method] = measures(records)
        seeds.append(result)
        cells = (
            f"{name} {result['crossover'][key]:.2f} - {result['ddp'][key]:.2f}"
            for key, name in MEASURES.items()
        )
        print(f"seed {seed}: crossover - DDP: {'; '.join(cells)}", flush=True)
    return seeds


def summary(seeds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean difference (points) and its interval for each measure, printed and returned."""
    result = {}
    for key, name in MEASURES.items():
        differences = [seed["crossover"][key] - seed["ddp"][key] for seed in seeds]
        low, high = interval(differences)
        result[key] = {"mean": fmean(differences), "interval_95": [low, high]}
        print(
            f"test accuracy, {name}: crossover - DDP = {fmean(differences):+.2f} points, "
            f"95 % interval [{low:+.2f}, {high:+.2f}], {len(seeds)} paired seeds"
        )
    return result


def circumstances() -> dict[str, Any]:
    """What is needed to repeat the figures; never a host name."""
    return {
        "command": f"python examples/digits/paired.py {' '.join(sys.argv[1:])}".strip(),
        "versions": {
            "crossover_comm": crossover_comm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count()},
        "workers": NUM_WORKERS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8, help="number of paired seeds, at least 2")
    parser.add_argument("--epochs", type=int, default=20)
    default = ROOT / "benchmarks" / "results" / "digits_paired.json"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds: an interval needs at least 2 seeds, got {options.seeds}")
    seeds = compare(options.seeds, f"--epochs={options.epochs}")
    result = {**circumstances(), "unit": "percent", "differences": summary(seeds), "seeds": seeds}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
