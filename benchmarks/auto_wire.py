"""What wire="auto" leaves between replicas, beside fixed wires of the same budget.

    python benchmarks/auto_wire.py

Replicas are one vector of weights apart by noise, as training leaves them; each step adds fresh
noise to every worker and mixes by the crossover topology. The noise is constant, or falls as a
learning rate does. Writes benchmarks/results/auto_wire.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import torch

from crossover_comm import _C
from crossover_comm.simulate.auto_mixing import AnyMixer, AutoMixer
from crossover_comm.simulate.mixing import Mixer
from crossover_comm.simulate.report import circumstances
from crossover_comm.topology import Crossover

RESULT = Path(__file__).parent / "results" / "auto_wire.json"

WORKERS = 32
NUMEL = 4096
STEPS = 200
SKIPPED = 50
SEEDS = range(5)
SEGMENTS = [(0, NUMEL)]


def fixed(wire: str, rounds: int) -> Callable[[_C.Schedule], AnyMixer]:
    return lambda s: Mixer(_C.repeated_schedule(s, rounds), SEGMENTS, wire)  # type: ignore[arg-type]


def auto(budget: float) -> Callable[[_C.Schedule], AnyMixer]:
    return lambda s: AutoMixer(s, SEGMENTS, budget)


METHODS = {
    "bf16": fixed("bf16", 1),
    "int8, 2 rounds": fixed("int8", 2),
    "auto, 0.52": auto(0.52),
    "fp32": fixed("fp32", 1),
    "bf16, 2 rounds": fixed("bf16", 2),
    "int8, 4 rounds": fixed("int8", 4),
    "auto, 1.04": auto(1.04),
}

NOISES: dict[str, Callable[[float], float]] = {
    "0.1": lambda done: 1e-1,
    "0.01": lambda done: 1e-2,
    "0.001": lambda done: 1e-3,
    "0.1 to 0.0001": lambda done: 1e-1 * 10 ** (-3 * done),
}
"""Standard deviation of what a step adds, over the share of steps that are done; weights are
standard normal."""


def run(make: Callable[[_C.Schedule], AnyMixer], noise: str, seed: int) -> tuple[float, float]:
    """Distance from the mean in units of the step's noise, root of the mean over weights, geometric
    mean over steps; fp32 models sent per step."""
    generator = torch.Generator().manual_seed(seed)
    mixer = make(Crossover().schedule(WORKERS, seed, 1))
    x = torch.randn(NUMEL, generator=generator).expand(WORKERS, NUMEL).contiguous()
    logarithms = []
    for step in range(STEPS):
        scale = NOISES[noise](step / STEPS)
        x += scale * torch.randn(x.shape, generator=generator)
        mixer.mix(x, step)
        distance = float((x - x.mean(dim=0)).square().mean().sqrt())
        if step >= SKIPPED:
            logarithms.append(math.log(distance / scale))
    return math.exp(fmean(logarithms)), mixer.mean_models_sent()


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for noise in NOISES:
        for name, make in METHODS.items():
            found = [run(make, noise, seed) for seed in SEEDS]
            distances = [distance for distance, _ in found]
            row = {
                "method": name,
                "noise": noise,
                "distance": fmean(distances),
                "standard_error": stdev(distances) / len(distances) ** 0.5,
                "models_sent": fmean(sent for _, sent in found),
            }
            rows.append(row)
            print(row, flush=True)
    content = {
        "command": "python benchmarks/auto_wire.py",
        "versions": circumstances(),
        "setting": {
            "workers": WORKERS,
            "numel": NUMEL,
            "steps": STEPS,
            "skipped": SKIPPED,
            "seeds": len(SEEDS),
        },
        "rows": rows,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
