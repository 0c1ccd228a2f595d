"""What rounding a mix into bf16 parameters does, by each rule: to their mean, and to a training.

    python benchmarks/bf16_parameters.py

First replicas are bf16 weights around shared ones; rounds of the crossover topology bring them
together, nothing else changes them. Then a small model is trained in pure bf16: its parameters are
rounded to nearest after each step, as torch's optimizers do, and by the rule after each mix. Writes
benchmarks/results/bf16_parameters.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from crossover_comm.simulate.method import Method, Recipe
from crossover_comm.simulate.mixing import Mixer
from crossover_comm.simulate.replicas import Replicas
from crossover_comm.simulate.report import circumstances
from crossover_comm.simulate.rules import Stepper
from crossover_comm.simulate.tasks import task_named
from crossover_comm.simulate.training import Batches
from crossover_comm.topology import Crossover

RESULT = Path(__file__).parent / "results" / "bf16_parameters.json"

WORKERS = 32
NUMEL = 4096
ROUNDS = 200
SPREADS = (1e-1, 1e-2, 1e-3)
"""Standard deviation of the replicas around the shared weights, which are standard normal."""

RECIPE = Recipe(steps=60, global_batch=512, learning_rate=0.3)
SEEDS = range(8)

Rule = Callable[[Tensor, torch.Generator], Tensor]


def nearest(x: Tensor, _: torch.Generator) -> Tensor:
    return x.to(torch.bfloat16).float()


def stochastic(x: Tensor, generator: torch.Generator) -> Tensor:
    """Up with the chance that keeps the expectation."""
    chance = torch.randint(0, 1 << 16, x.shape, generator=generator, dtype=torch.int32)
    return ((x.view(torch.int32) + chance) & ~0xFFFF).view(torch.float32)


def exact(x: Tensor, _: torch.Generator) -> Tensor:
    """Only the mix: what is added is rounded again by the step."""
    return x


def drift(rule: Rule, spread: float, seed: int) -> float:
    """The mean's root mean square drift, in steps of bf16 at each weight."""
    generator = torch.Generator().manual_seed(seed)
    schedule = Crossover().schedule(WORKERS, seed, 1)
    shared = torch.randn(NUMEL, generator=generator)
    x = nearest(shared + spread * torch.randn(WORKERS, NUMEL, generator=generator), generator)
    before = x.double().mean(dim=0)
    for round in range(ROUNDS):
        peers = [row[0][0] for row in schedule.rows(round, 0)]
        x = rule(x + 0.5 * (x[peers] - x), generator)
    step = torch.exp2(before.abs().log2().floor() - 7)
    return float(((x.double().mean(dim=0) - before) / step).square().mean().sqrt())


class RoundedMixer(Mixer):
    """Mixes over bf16 and rounds the outcome by a rule, of what was rounded to nearest before."""

    rule: Rule
    generator: torch.Generator

    def mix(self, x: Tensor, round: int) -> None:
        x.copy_(nearest(x, self.generator))
        super().mix(x, round)
        x.copy_(self.rule(x, self.generator))


def train(rule: Rule, seed: int) -> tuple[float, float]:
    """Accuracy (%) and loss of the workers' average model on the test."""
    torch.manual_seed(seed)
    task = task_named("digits")
    replicas = Replicas(task.model(), WORKERS, torch.device("cpu"))
    replicas.x.copy_(nearest(replicas.x, torch.Generator()))
    data = task.data(seed)
    schedule = Crossover().schedule(WORKERS, seed, len(replicas.segments))
    mixer = RoundedMixer(schedule, replicas.segments, "bf16")
    mixer.rule, mixer.generator = rule, torch.Generator().manual_seed(seed)
    stepper = Stepper(Method(wire="bf16"), RECIPE, replicas.x, mixer, replicas.tensors)
    batches = Batches(len(data.inputs), RECIPE.global_batch, WORKERS, seed)
    for step in range(RECIPE.steps):
        chosen = batches.next()
        gradients, _ = replicas.gradients(replicas.x, data.inputs[chosen], data.labels[chosen])
        stepper.step(step, gradients)
    mean = replicas.x.mean(dim=0, keepdim=True)
    accuracy, loss = replicas.evaluate(mean, data.test_inputs, data.test_labels)
    return 100.0 * float(accuracy[0]), float(loss[0])


def main() -> None:
    torch.set_num_threads(1)
    rules: dict[str, Rule] = {"nearest": nearest, "stochastic": stochastic, "not rounded": exact}
    rows = []
    for name, rule in rules.items():
        drifts = {
            str(spread): fmean(drift(rule, spread, seed) for seed in range(3)) for spread in SPREADS
        }
        trained = [train(rule, seed) for seed in SEEDS]
        rows.append(
            {
                "rule": name,
                "drifts": drifts,
                "accuracies": [accuracy for accuracy, _ in trained],
                "losses": [loss for _, loss in trained],
            }
        )
        print(rows[-1], flush=True)
    content = {
        "command": "python benchmarks/bf16_parameters.py",
        "versions": circumstances(),
        "setting": {"workers": WORKERS, "numel": NUMEL, "rounds": ROUNDS, "steps": RECIPE.steps},
        "rows": rows,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
