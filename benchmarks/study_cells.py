"""What the studies compare: every training of every study, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from crossover_comm.formulas import exponential_row
from crossover_comm.simulate.method import Method, Recipe, allreduce
from crossover_comm.topology import AllReduce, Crossover, GroupCrossover, MixedRadix, Table

VALIDATION_SEEDS = range(1000, 1004)
"""On which learning rates and the configuration are chosen."""

FRESH_SEEDS = range(8)
"""On which everything is reported."""

DIGITS = Recipe(steps=60, global_batch=512, learning_rate=0.3)
CHARACTERS = Recipe(steps=120, global_batch=1024, learning_rate=0.5, weight_decay=0.0)
"""Few steps at a large rate: where a small model feels the workers' disagreement."""

TASKS = (("digits", DIGITS, FRESH_SEEDS), ("characters", CHARACTERS, range(5)))
"""(task, recipe, seeds)"""

EPOCH_EXAMPLES = 1347
BATCH_EPOCHS = 20


@dataclass(frozen=True, slots=True)
class Cell:
    """One method in one setting, to be trained from each of some seeds."""

    study: str
    label: str
    task: str
    method: Method
    recipe: Recipe
    workers: int
    seeds: range


def sgp(size: int) -> Method:
    """Stochastic gradient push as published: one peer, all segments in the same phase.

    Its graph is doubly stochastic in synchronous training, so push-sum's weights stay 1.
    """
    phases = (size - 1).bit_length()
    tables = [[exponential_row(rank, k, 0, size) for rank in range(size)] for k in range(phases)]
    return Method(topology=Table(tables=tables))


METHODS: dict[str, Callable[[int], Method]] = {
    "all-reduce": lambda size: allreduce(),
    "crossover": lambda size: Method(),
    "SGP": sgp,
    "D-PSGD, ring": lambda size: Method(topology="ring", order="before"),
    "hierarchy, 8 groups": lambda size: Method(group=size // 8),
    "noseg": lambda size: Method(topology=Crossover(segmentwise=False)),
    "nofairness": lambda size: Method(topology=Crossover(fair=False)),
    "nofaseg": lambda size: Method(topology=Crossover(segmentwise=False, fair=False)),
    "local SGD, 8 steps": lambda size: Method(topology=AllReduce(), interval=8),
}


def workers_cells() -> Iterator[Cell]:
    """Accuracy against the number of workers at a fixed global batch.

    An all-reduce is the same computation for every number of workers.
    """
    for task, recipe, seeds in TASKS:
        for label, make in METHODS.items():
            sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
            if label == "all-reduce":
                sizes = (8,)
            elif label.startswith("hierarchy"):
                sizes = sizes[1:]
            for size in sizes:
                yield Cell("workers", label, task, make(size), recipe, size, seeds)


def batch_cells() -> Iterator[Cell]:
    """Every learning rate of every method at each batch, epochs fixed, 16 workers."""
    for batch in (128, 256, 512, 1024):
        steps = BATCH_EPOCHS * EPOCH_EXAMPLES // batch
        for rate in (0.1, 0.2, 0.3, 0.4, 0.6, 0.8):
            recipe = replace(DIGITS, steps=steps, global_batch=batch, learning_rate=rate)
            for label in ("all-reduce", "crossover", "SGP", "hierarchy, 8 groups"):
                yield Cell("batch", label, "digits", METHODS[label](16), recipe, 16, FRESH_SEEDS)


def two_digits(size: int) -> Method:
    """Exact averages along one digit of the ranks and then the other, in half a model's bytes."""
    return Method(topology=MixedRadix(radices=(8, size // 8)), wire="bf16")


CANDIDATES: dict[str, Callable[[int], Method]] = {
    "all-reduce": lambda size: allreduce(),
    "crossover": lambda size: Method(),
    "exponential": lambda size: Method(topology="exponential"),
    "crossover, bf16, 2 rounds": lambda size: Method(wire="bf16", rounds_per_step=2),
    "exponential, bf16, 2 rounds": lambda size: Method(
        topology="exponential", wire="bf16", rounds_per_step=2
    ),
    "groups of 4, bf16": lambda size: Method(topology=GroupCrossover(4), wire="bf16"),
    "groups of 8, bf16": lambda size: Method(topology=GroupCrossover(8), wire="bf16"),
    "two digits, bf16": two_digits,
    "crossover, bf16, momentum exchanged": lambda size: Method(
        wire="bf16", momentum_rule="exchanged"
    ),
    "crossover, quasi-global momentum": lambda size: Method(momentum_rule="quasi-global"),
    "crossover, DecentLaM": lambda size: Method(momentum_rule="decentlam"),
    "exponential xor, DecentLaM": lambda size: Method(
        topology="exponential-xor", momentum_rule="decentlam"
    ),
}
"""At most one fp32 model sent per worker and step, but for the all-reduce."""

FINALISTS = (
    "all-reduce",
    "crossover",
    "crossover, bf16, 2 rounds",
    "exponential, bf16, 2 rounds",
    "groups of 4, bf16",
    "two digits, bf16",
)
"""What is tried on fresh seeds and on the second task."""


def parity_cells() -> Iterator[Cell]:
    """The candidates on validation seeds; the finalists on fresh seeds and on the second task."""
    for study, labels, (task, recipe, seeds) in (
        ("validation", tuple(CANDIDATES), ("digits", DIGITS, VALIDATION_SEEDS)),
        ("parity", FINALISTS, TASKS[0]),
        ("parity", FINALISTS, TASKS[1]),
    ):
        for label in labels:
            for size in (8,) if label == "all-reduce" else (64, 128):
                yield Cell(study, label, task, CANDIDATES[label](size), recipe, size, seeds)


WIRES: dict[str, Callable[[int], Method]] = {
    "all-reduce": lambda size: allreduce(),
    "fp32": lambda size: Method(),
    "bf16, 2 rounds": lambda size: Method(wire="bf16", rounds_per_step=2),
    "fp16, 2 rounds": lambda size: Method(wire="fp16", rounds_per_step=2),
    "int8, 4 rounds": lambda size: Method(wire="int8", rounds_per_step=4),
    "auto, 1.04": lambda size: Method(wire="auto", wire_budget=1.04),
    "bf16": lambda size: Method(wire="bf16"),
    "int8, 2 rounds": lambda size: Method(wire="int8", rounds_per_step=2),
    "auto, 0.52": lambda size: Method(wire="auto", wire_budget=0.52),
    "int8": lambda size: Method(wire="int8"),
}
"""Crossover over each wire: as many rounds as one fp32 model pays for, as half of one does, and
int8 alone."""


def wires_cells() -> Iterator[Cell]:
    """Accuracy over each type on the wire."""
    for label, make in WIRES.items():
        for size in (8,) if label == "all-reduce" else (64, 128):
            yield Cell("wires", label, "digits", make(size), DIGITS, size, FRESH_SEEDS)


STUDIES: dict[str, Callable[[], Iterator[Cell]]] = {
    "parity": parity_cells,
    "workers": workers_cells,
    "batch": batch_cells,
    "wires": wires_cells,
}
