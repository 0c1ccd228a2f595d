"""Many replicas of one model as one matrix: a row per worker, a column per parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from crossover_comm.segments import cut, trainable_parameters

__all__ = ["Replicas"]


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    shape: torch.Size
    begin: int
    end: int


class Replicas:
    """Replicas of `model`, all starting from its parameters.

    The columns are the model's segments in model order, as the library cuts them.

    Attributes:
        x: (workers, parameters) float32.
        segments: columns [begin, end) of each segment.
        tensors: columns [begin, end) and number of dimensions of each parameter.
    """

    def __init__(self, model: nn.Module, workers: int, device: torch.device) -> None:
        self.model = model.to(device)
        self.places: list[_Place] = []
        self.segments: list[tuple[int, int]] = []
        values = []
        offset = 0
        for segment in cut(model, trainable_parameters(model), "blocks"):
            first = offset
            for name, p in zip(segment.tensors, segment.parameters, strict=True):
                self.places.append(_Place(name, p.shape, offset, offset + p.numel()))
                values.append(p.detach().flatten())
                offset += p.numel()
            self.segments.append((first, offset))
        self.x = torch.cat(values).repeat(workers, 1)
        self._loss = vmap(self._one_loss, randomness="different")

    @property
    def tensors(self) -> list[tuple[int, int, int]]:
        return [(place.begin, place.end, len(place.shape)) for place in self.places]

    def gradients(self, x: Tensor, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each worker's gradient of the mean cross-entropy of its own batch.

        Args:
            x: (workers, parameters), where the gradients are taken.
            inputs: (workers, batch, ...).
            labels: (workers, batch) int64.

        Returns:
            Gradients (workers, parameters); losses (workers,).
        """
        leaves = {p.name: self._part(x, p).detach().requires_grad_() for p in self.places}
        losses = self._loss(leaves, inputs, labels)
        parts = torch.autograd.grad(losses.sum(), list(leaves.values()))
        return torch.cat([part.flatten(1) for part in parts], dim=1), losses.detach()

    @torch.no_grad()
    def evaluate(self, x: Tensor, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy and mean cross-entropy (nats) of each row of `x`, both (rows,) float64."""
        accuracies, losses = [], []
        for row in x:
            logits = functional_call(
                self.model,
                {p.name: row[p.begin : p.end].view(p.shape) for p in self.places},
                inputs,
            )
            accuracies.append((logits.argmax(dim=1) == labels).double().mean())
            losses.append(F.cross_entropy(logits, labels).double())
        return torch.stack(accuracies), torch.stack(losses)

    def _part(self, x: Tensor, place: _Place) -> Tensor:
        return x[:, place.begin : place.end].reshape(len(x), *place.shape)

    def _one_loss(self, parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(self.model, parameters, (inputs,))
        return F.cross_entropy(logits, labels)

    @staticmethod
    def distance(x: Tensor) -> float:
        """Root of the workers' mean squared distance to their average."""
        return math.sqrt(float((x - x.mean(dim=0)).double().square().sum() / len(x)))
