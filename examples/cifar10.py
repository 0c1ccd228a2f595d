"""A small residual network on CIFAR-10, with momentum SGD and one cycle of the learning rate.

    torchrun --standalone --nproc-per-node 4 examples/cifar10.py --data /datasets/cifar
`--data` is where torchvision keeps (or puts) CIFAR-10; `--synthetic 512` runs on random images.
"""

from __future__ import annotations

import argparse

import torch
from image_training import Images, Loop, add_options, device, fit, synthetic, updates_per_epoch
from resnet import ResNet
from torch.optim.lr_scheduler import OneCycleLR

import crossover_comm as cc

CLASSES = 10


def cifar10(root: str) -> tuple[Images, Images]:
    """Training and test images of 32x32, the former shifted and flipped by chance."""
    from torchvision import datasets, transforms  # type: ignore[import-not-found, unused-ignore]

    final = [
        transforms.ToTensor(),
        transforms.Normalize((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    ]
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    train, test = (
        datasets.CIFAR10(root, is_train, transforms.Compose(steps), download=True)
        for is_train, steps in ((True, [*augment, *final]), (False, final))
    )
    return train, test


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_options(parser)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128, help="per worker")
    parser.add_argument("--learning-rate", type=float, default=0.4, help="peak")
    parser.add_argument("--depths", type=int, nargs=4, default=[2, 2, 2, 2], help="of the stages")
    parser.add_argument("--width", type=int, default=32, help="of the first stage")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    cc.init()
    loop = Loop(options.epochs, options.batch_size, device(), loaders=options.loaders)
    if options.data:
        train, test = cifar10(options.data)
    else:
        train = test = synthetic(options.synthetic or 512, 32, CLASSES, 0)
    torch.manual_seed(options.seed)
    inner = ResNet(CLASSES, options.depths, options.width, small_images=True).to(loop.device)
    model = cc.DistributedDataParallel(inner, gossip=options.gossip)
    optimizer = torch.optim.SGD(
        model.parameters(), options.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    total = options.epochs * updates_per_epoch(train, loop)
    schedule = OneCycleLR(optimizer, options.learning_rate, total_steps=total)
    fit(model, optimizer, schedule, train, test, loop)
    cc.shutdown()


if __name__ == "__main__":
    main()
