"""One worker: trains DigitsNet by one method. Started by torchrun:

torchrun --standalone --nproc-per-node 4 examples/digits/train.py --method crossover --output runs
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from data import digits
from devices import choose_device
from methods import METHODS, Method
from model import DigitsNet
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm

Batches = DataLoader[tuple[Tensor, ...]]


@dataclass(slots=True)
class Record:
    """What one worker saw; one entry per epoch but for `step_s`, one per step."""

    method: str
    rank: int
    size: int
    bytes_source: str
    loss: list[float] = field(default_factory=list)
    local_accuracy: list[float] = field(default_factory=list)
    averaged_accuracy: list[float] = field(default_factory=list)
    consensus_distance: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    sent_bytes_per_step: float = 0.0


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode again afterwards."""
    model.eval()
    with torch.no_grad():
        yield
    model.train()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of `images` (N, 1, 8, 8) that the model classifies as `labels` (N,)."""
    with evaluation(model):
        return float((model(images).argmax(dim=1) == labels).double().mean())


def train_epoch(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    schedule: OneCycleLR,
    bar: tqdm[None],
) -> tuple[float, list[float]]:
    """An ordinary loop; returns the mean loss and the seconds of each step."""
    losses, step_s = [], []
    device = next(model.parameters()).device
    for images, labels in batches:
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        schedule.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        step_s.append(time.perf_counter() - started)
        losses.append(float(loss.detach()))
        bar.update()
    return fmean(losses), step_s


def train(method: Method, options: argparse.Namespace) -> Record:
    device = choose_device(options.device)
    rank, size = method.start(device)
    training_set, test_images, test_labels = digits()
    test_images, test_labels = test_images.to(device), test_labels.to(device)
    torch.manual_seed(options.seed)
    model = method.wrap(DigitsNet().to(device))
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(
        training_set, size, rank, seed=options.seed
    )
    batches = DataLoader(training_set, options.batch_size, sampler=sampler, drop_last=True)
    num_steps = options.epochs * len(batches)
    optimizer = torch.optim.SGD(
        model.parameters(), options.learning_rate, momentum=0.9, weight_decay=5e-4
    )
    schedule = OneCycleLR(optimizer, options.learning_rate, total_steps=num_steps)
    record = Record(method.name, rank, size, method.bytes_source)
    with tqdm(total=num_steps, desc=f"{method.name:>9}", unit="step", disable=rank != 0) as bar:
        for epoch in range(options.epochs):
            sampler.set_epoch(epoch)
            loss, step_s = train_epoch(model, batches, optimizer, schedule, bar)
            record.loss.append(loss)
            record.step_s += step_s
            record.local_accuracy.append(accuracy(model, test_images, test_labels))
            record.consensus_distance.append(method.consensus_distance(model))
            with method.averaged(model):
                record.averaged_accuracy.append(accuracy(model, test_images, test_labels))
    record.sent_bytes_per_step = method.sent_bytes_per_step(model, num_steps)
    method.stop()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the model and the batches")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=32, help="per worker")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="peak of the one cycle")
    parser.add_argument("--output", type=Path, required=True, help="folder for rank<R>.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = train(METHODS[options.method](), options)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"rank{record.rank}.json"
    path.write_text(json.dumps(asdict(record)))


if __name__ == "__main__":
    main()
