"""How int8 blocks should round: consensus noise and drift of the mean by each rule.

    python benchmarks/int8_rounding.py

Replicas are one vector of weights apart by noise, as training leaves them; each step adds fresh
noise to every worker and mixes once by the crossover topology in difference form. Writes
benchmarks/results/int8_rounding.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from crossover_comm.simulate.report import circumstances
from crossover_comm.simulate.wires import quantized
from crossover_comm.topology import Crossover
from crossover_comm.wires import BLOCK_NUMEL

RESULT = Path(__file__).parent / "results" / "int8_rounding.json"

WORKERS = 32
NUMEL = 4096
STEPS = 400
SKIPPED = 100
NOISES = (1e-1, 1e-2, 1e-3)
"""Standard deviation of what a step adds to a weight; weights are standard normal."""

Rule = Callable[[Tensor, torch.Generator], Tensor]


def exact(x: Tensor, _: torch.Generator) -> Tensor:
    return x


def nearest(x: Tensor, _: torch.Generator) -> Tensor:
    return quantized(x, "int8")


def stochastic(x: Tensor, generator: torch.Generator) -> Tensor:
    """Up or down in proportion to the distance, by the scale of the nearest rule."""
    blocks = x.view(len(x), -1, BLOCK_NUMEL)
    scale = blocks.abs().amax(dim=2, keepdim=True) / 127.0
    chance = torch.rand(blocks.shape, generator=generator, dtype=x.dtype)
    return ((blocks / scale + chance).floor() * scale).view_as(x)


def run(rule: Rule, noise: float, *, keeps_residual: bool, seed: int) -> tuple[float, float]:
    """Root mean square distance from the mean in units of `noise`, and the mean's relative drift
    from the sum of what steps have added."""
    generator = torch.Generator().manual_seed(seed)
    schedule = Crossover().schedule(WORKERS, seed, 1)
    shared = torch.randn(NUMEL, generator=generator)
    x = shared.expand(WORKERS, NUMEL).contiguous()
    mean = x.double().mean(dim=0)
    residual = torch.zeros_like(x)
    total = 0.0
    for step in range(STEPS):
        change = noise * torch.randn(x.shape, generator=generator)
        x += change
        mean += change.double().mean(dim=0)
        wanted = x + residual if keeps_residual else x
        sent = rule(wanted, generator)
        if keeps_residual:
            residual = wanted - sent
        peers = [row[0][0] for row in schedule.rows(step, 0)]
        x += 0.5 * (sent[peers] - sent)
        if step >= SKIPPED:
            total += float((x - x.mean(dim=0)).square().mean())
    distance = (total / (STEPS - SKIPPED)) ** 0.5 / noise
    drift = float((x.double().mean(dim=0) - mean).norm() / mean.norm())
    return distance, drift


def main() -> None:
    torch.set_num_threads(1)
    rules: dict[str, tuple[Rule, bool]] = {
        "fp32": (exact, False),
        "int8, nearest": (nearest, False),
        "int8, stochastic": (stochastic, False),
        "int8, nearest, residual": (nearest, True),
        "int8, stochastic, residual": (stochastic, True),
    }
    rows = []
    for noise in NOISES:
        for name, (rule, keeps_residual) in rules.items():
            found = [run(rule, noise, keeps_residual=keeps_residual, seed=s) for s in range(3)]
            distance = sum(d for d, _ in found) / len(found)
            drift = max(d for _, d in found)
            rows.append({"rule": name, "noise": noise, "distance": distance, "drift": drift})
            print(f"noise {noise:<6} {name:28} distance {distance:8.3f} drift {drift:.1e}")
    content = {
        "command": "python benchmarks/int8_rounding.py",
        "versions": circumstances(),
        "setting": {"workers": WORKERS, "numel": NUMEL, "steps": STEPS, "skipped": SKIPPED},
        "rows": rows,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
