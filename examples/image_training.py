"""What the image examples share: data, an accumulated step, evaluation, the training loop."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset
from tqdm import tqdm

import crossover_comm as cc

Images = Dataset[tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Loop:
    """How an example trains.

    Attributes:
        epochs: passes over the data.
        batch_size: images per worker and micro-batch.
        device: of model and images.
        accumulation: micro-batches per update.
        label_smoothing: of the training loss.
        loaders: processes that load images.
    """

    epochs: int
    batch_size: int
    device: torch.device
    accumulation: int = 1
    label_smoothing: float = 0.0
    loaders: int = 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every image example."""
    parser.add_argument("--data", help="folder of the images; see the text above")
    parser.add_argument("--synthetic", type=int, metavar="N", help="N random images instead")
    parser.add_argument("--gossip", default="crossover", help="preset of crossover_comm")
    parser.add_argument("--loaders", type=int, default=4, help="processes that load images")
    parser.add_argument("--seed", type=int, default=0)


def device() -> torch.device:
    """This worker's GPU, if there are any."""
    if torch.cuda.is_available():
        torch.cuda.set_device(cc.local_rank())
        return torch.device("cuda", cc.local_rank())
    return torch.device("cpu")


def synthetic(count: int, size: int, classes: int, seed: int) -> Images:
    """Random images with random labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    return TensorDataset(images, torch.randint(classes, (count,), generator=generator))


def updates_per_epoch(data: Images, loop: Loop) -> int:
    """Optimizer updates that one worker makes in an epoch; what is left over is dropped."""
    images = len(cast(Sized, data)) // cc.size()
    return images // (loop.batch_size * loop.accumulation)


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    train: Images,
    test: Images,
    loop: Loop,
) -> None:
    """Trains, and prints the accuracy of the workers' averaged model after each epoch."""
    sampler: DistributedSampler[Any] = DistributedSampler(train, cc.size(), cc.rank())
    batches = DataLoader(
        train,
        loop.batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=loop.loaders,
        pin_memory=loop.device.type == "cuda",
    )
    scaler = torch.amp.GradScaler(enabled=loop.device.type == "cuda")
    updates = updates_per_epoch(train, loop)
    for epoch in range(loop.epochs):
        sampler.set_epoch(epoch)
        stream = iter(batches)
        with tqdm(range(updates), unit="update", disable=cc.rank() != 0) as bar:
            for _ in bar:
                loss = update(model, optimizer, scaler, stream, loop)
                schedule.step()
                bar.set_postfix(loss=f"{loss:.3f}")
        with cc.averaged(model):
            share = accuracy(model, test, loop)
        if cc.rank() == 0:
            print(f"epoch {epoch + 1}: test accuracy of the averaged model {100 * share:.2f} %")


def update(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Iterator[Any],
    loop: Loop,
) -> float:
    """One optimizer step on the mean gradient of some micro-batches; returns the mean loss."""
    optimizer.zero_grad()
    total = torch.zeros((), device=loop.device)
    for _ in range(loop.accumulation):
        images, labels = (part.to(loop.device, non_blocking=True) for part in next(batches))
        with mixed_precision(loop):
            logits = model(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=loop.label_smoothing)
        scaler.scale(loss / loop.accumulation).backward()
        total += loss.detach() / loop.accumulation
    scaler.step(optimizer)
    scaler.update()
    return float(total)


def mixed_precision(loop: Loop) -> contextlib.AbstractContextManager[Any]:
    """float16 arithmetic on GPUs."""
    return torch.autocast("cuda", enabled=loop.device.type == "cuda")


def accuracy(model: nn.Module, data: Images, loop: Loop) -> float:
    """Share of the images that the model classifies as labelled; each worker judges all."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=loop.device)
    with torch.no_grad(), mixed_precision(loop):
        for images, labels in DataLoader(data, 4 * loop.batch_size, num_workers=loop.loaders):
            found = model(images.to(loop.device)).argmax(dim=1)
            right += (found == labels.to(loop.device)).sum()
    model.train()
    return float(right) / len(cast(Sized, data))
