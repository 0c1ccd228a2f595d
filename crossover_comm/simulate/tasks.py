"""Small models on real data, each trained in seconds by many virtual workers.

A task makes the data and the model from a seed: the seed also draws the split, so fresh seeds are
judged on fresh test examples.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from crossover_comm.errors import InvalidArgument

__all__ = ["TASKS", "Data", "Task", "task_named"]

TEST_IMAGES = 450
CONTEXT = 8
VOCABULARY = 96
"""Printable ASCII and the end of a line; every other character is a blank."""


@dataclass(frozen=True, slots=True)
class Data:
    """Inputs (examples, ...) and labels (examples,) int64, for training and for the test."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> Data:
        """The same on another device."""
        return Data(
            self.inputs.to(device),
            self.labels.to(device),
            self.test_inputs.to(device),
            self.test_labels.to(device),
        )


@dataclass(frozen=True, slots=True)
class Task:
    """A model and its data.

    Attributes:
        model: Makes the model from torch's global generator; returns logits (N, classes).
        data: Makes the data of a seed.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[int], Data]


class CharacterModel(nn.Module):
    """The `CONTEXT` characters before (N, CONTEXT) -> logits of the next (N, VOCABULARY).

    Source: Bengio et al., "A neural probabilistic language model", JMLR 2003.
    """

    def __init__(self, embedded: int = 8, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, embedded)
        self.hidden = nn.Linear(CONTEXT * embedded, width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, characters: Tensor) -> Tensor:
        embedded = self.embedding(characters).flatten(1)
        logits: Tensor = self.head(torch.relu(self.hidden(embedded)))
        return logits


def digits_model() -> nn.Module:
    """Images (N, 64) -> logits (N, 10), by two hidden layers."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def digits_data(seed: int) -> Data:
    """scikit-learn's bundled handwritten digits, 1347 for training and 450 for the test."""
    images, labels = _digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return Data(images[train], labels[train], images[test], labels[test])


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16
    return images, torch.tensor(bunch.target, dtype=torch.int64)


def characters_data(seed: int, num_train: int = 65_536, num_test: int = 4_096) -> Data:
    """Windows into the standard library's sources; the test's lie in a part of their own."""
    text = _characters()
    generator = torch.Generator().manual_seed(seed)
    part = len(text) // 16
    held_out = int(torch.randint(16, (1,), generator=generator)) * part
    rest = torch.cat([text[:held_out], text[held_out + part :]])
    return Data(
        *_windows(rest, num_train, generator),
        *_windows(text[held_out : held_out + part], num_test, generator),
    )


@cache
def _characters() -> Tensor:
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(module.read_bytes() for module in modules)
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    codes = torch.where(codes == ord("\n"), ord(" ") + VOCABULARY - 1, codes)
    is_known = (codes >= ord(" ")) & (codes < ord(" ") + VOCABULARY)
    return torch.where(is_known, codes - ord(" "), 0)


def _windows(text: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(text) - CONTEXT, (count,), generator=generator)
    window = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return window[:, :-1], window[:, -1]


TASKS = {
    task.name: task
    for task in (
        Task("digits", digits_model, digits_data),
        Task("characters", CharacterModel, characters_data),
    )
}


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        InvalidArgument: there is none.
    """
    if name not in TASKS:
        raise InvalidArgument(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]
