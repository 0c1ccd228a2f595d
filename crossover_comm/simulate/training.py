"""Trains a real small model by many virtual workers in one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from crossover_comm.errors import InvalidArgument
from crossover_comm.simulate.auto_mixing import AnyMixer, AutoMixer
from crossover_comm.simulate.method import Method, Recipe
from crossover_comm.simulate.mixing import Mixer
from crossover_comm.simulate.replicas import Replicas
from crossover_comm.simulate.rules import Stepper
from crossover_comm.simulate.tasks import Data, Task
from crossover_comm.topology import topology_from

__all__ = ["Batches", "Outcome", "train"]

_JUDGED_WORKERS = 8
"""Local models that are evaluated, evenly chosen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one training ended.

    Attributes:
        accuracy: test accuracy of the workers' average model, in percent.
        loss: its cross-entropy on the test, in nats.
        local_accuracy: mean over local models.
        local_loss: mean over local models.
        consensus_distance: root of the mean squared distance to the average, mean over steps.
        training_loss: mean over the last tenth of the steps.
        models_sent: per worker and step, the mean over workers, in fp32 models.
    """

    accuracy: float
    loss: float
    local_accuracy: float
    local_loss: float
    consensus_distance: float
    training_loss: float
    models_sent: float

    def as_json(self) -> dict[str, float | None]:
        """For a file; None where a diverged training left no finite value."""
        values = asdict(self).items()
        return {name: round(v, 6) if math.isfinite(v) else None for name, v in values}


def train(
    task: Task,
    method: Method,
    recipe: Recipe,
    *,
    workers: int,
    seed: int,
    device: str = "cpu",
    tick: Callable[[], object] = lambda: None,
) -> Outcome:
    """One training. The seed draws data, model, batches and topology; all methods share them.

    A group that averages its gradients exactly is one replica with the group's batch, and so are
    all workers of an all-reduce. No task has batch norm, so this is no approximation.

    Args:
        tick: called once per step, for a progress bar.

    Raises:
        InvalidArgument: workers do not fit groups or batch.
    """
    replicas_count = _num_replicas(method, recipe, workers)
    torch_device = torch.device(device)
    torch.manual_seed(seed)
    replicas = Replicas(task.model(), replicas_count, torch_device)
    data = task.data(seed).to(torch_device)
    mixer = _mixer(method, replicas, seed)
    stepper = Stepper(method, recipe, replicas.x, mixer, replicas.tensors)
    batches = Batches(len(data.inputs), recipe.global_batch, replicas_count, seed)
    distances, losses = [], []
    for step in range(recipe.steps):
        chosen = batches.next().to(torch_device)
        gradients, loss = replicas.gradients(replicas.x, data.inputs[chosen], data.labels[chosen])
        stepper.step(step, gradients)
        losses.append(loss.mean())
        distances.append(Replicas.distance(replicas.x))
        tick()
    sent = _models_sent(method, recipe, workers, mixer)
    return _outcome(replicas, data, torch.stack(losses), distances, sent)


class Batches:
    """Global batches without replacement, in an order drawn anew for each epoch."""

    def __init__(self, num_examples: int, global_batch: int, workers: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed + 1_000_003)
        self._num_examples = num_examples
        self._shape = (workers, global_batch // workers)
        self._left = torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        """Indices, (workers, batch of a worker)."""
        wanted = self._shape[0] * self._shape[1]
        while len(self._left) < wanted:
            epoch = torch.randperm(self._num_examples, generator=self._generator)
            self._left = torch.cat([self._left, epoch])
        chosen, self._left = self._left[:wanted], self._left[wanted:]
        return chosen.view(self._shape)


def _num_replicas(method: Method, recipe: Recipe, workers: int) -> int:
    if workers % method.group != 0:
        raise InvalidArgument(f"group: {method.group} does not divide {workers} workers")
    if recipe.global_batch % workers != 0:
        raise InvalidArgument(
            f"global_batch: {workers} workers do not divide {recipe.global_batch}"
        )
    return 1 if method.topology is None else workers // method.group


def _mixer(method: Method, replicas: Replicas, seed: int) -> AnyMixer | None:
    size = len(replicas.x)
    if method.topology is None or size == 1:
        return None
    schedule = topology_from(method.topology).schedule(size, seed, len(replicas.segments))
    if method.wire == "auto":
        return AutoMixer(schedule, replicas.segments, method.wire_budget)
    return Mixer(schedule, replicas.segments, method.wire)


def _models_sent(method: Method, recipe: Recipe, workers: int, mixer: AnyMixer | None) -> float:
    """Mean over steps and workers; a ring all-reduce moves 2 (n - 1) / n models.

    In a group each member gossips its own 1/g of the model, beside the all-reduce of gradients.
    """
    exact = 2.0 * (workers - 1) / workers
    if mixer is None:
        return exact
    share = mixer.mean_models_sent() * method.rounds_per_step / method.interval / method.group
    share *= 2.0 if method.momentum_rule == "exchanged" else 1.0
    share += 2.0 * (method.group - 1) / method.group
    if method.exact_every:
        share += exact / method.exact_every
    return share + exact * method.warm_up_steps / recipe.steps


def _outcome(
    replicas: Replicas, data: Data, losses: Tensor, distances: list[float], sent: float
) -> Outcome:
    x = replicas.x
    judged = torch.linspace(0, len(x) - 1, min(len(x), _JUDGED_WORKERS)).long()
    rows = torch.cat([x.mean(dim=0, keepdim=True), x[judged.to(x.device)]])
    accuracy, loss = replicas.evaluate(rows, data.test_inputs, data.test_labels)
    tail = max(1, len(losses) // 10)
    return Outcome(
        accuracy=100.0 * float(accuracy[0]),
        loss=float(loss[0]),
        local_accuracy=100.0 * float(accuracy[1:].mean()),
        local_loss=float(loss[1:].mean()),
        consensus_distance=sum(distances) / len(distances),
        training_loss=float(losses[-tail:].mean()),
        models_sent=sent,
    )
