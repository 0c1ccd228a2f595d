"""Images with automatic mixed precision and an average of the weights (EMA).

torchrun --standalone --nproc-per-node 2 examples/ddp/image_classification.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS = 6
TEST_IMAGES = 297


def digits() -> tuple[TensorDataset, tuple[Tensor, Tensor]]:
    """scikit-learn's handwritten digits, float32 (N, 1, 8, 8): a training set, and test images."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(bunch.target)
    training = TensorDataset(images[:-TEST_IMAGES], labels[:-TEST_IMAGES])
    return training, (images[-TEST_IMAGES:], labels[-TEST_IMAGES:])


def network() -> nn.Sequential:
    """A small convolutional classifier of ten digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    training, (test_images, test_labels) = digits()
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(training, seed=0)
    loader = DataLoader(training, batch_size=25, sampler=sampler, drop_last=True)

    replica = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = DistributedDataParallel(replica)
    ema = AveragedModel(model.module, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            ema.update_parameters(model.module)

    if dist.get_rank() == 0:
        ema.eval()
        with torch.no_grad():
            print(f"loss: {F.cross_entropy(ema(test_images), test_labels):.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
