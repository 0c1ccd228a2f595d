"""ResNet-50 on ImageNet by the recipe of Crossover-SGD: a batch of 86,016 and more, with LARS.

The paper's setting, 8 workers with 256 images each and 42 micro-batches per update:
    torchrun --nproc-per-node 8 examples/imagenet.py --data /datasets/imagenet
`--data` holds train/ and val/ with a folder per class and needs torchvision; `--synthetic 512` runs
on random images. Learning rate, warm-up and accumulation are those of the largest published study;
at --accumulation 48, 64, 80 the batch is 98,304, 131,072, 163,840.
"""

from __future__ import annotations

import argparse

import torch
from image_training import Images, Loop, add_options, device, fit, synthetic, updates_per_epoch
from resnet import ResNet

import crossover_comm as cc
from crossover_comm.optim import LARS, WarmUpPolynomial

CLASSES = 1000
WARM_UP_SHARE = 36 / 90
FLOOR_SHARE = 2 / 90


def folders(root: str) -> tuple[Images, Images]:
    """Training and validation images of 224x224 with the usual augmentation."""
    from torchvision import datasets, transforms  # type: ignore[import-not-found, unused-ignore]

    normal = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    augment = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    centre = [transforms.Resize(256), transforms.CenterCrop(224)]
    train, test = (
        datasets.ImageFolder(
            f"{root}/{name}", transforms.Compose([*steps, transforms.ToTensor(), normal])
        )
        for name, steps in (("train", augment), ("val", centre))
    )
    return train, test


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_options(parser)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=256, help="per worker and micro-batch")
    parser.add_argument("--accumulation", type=int, default=42, help="micro-batches per update")
    parser.add_argument("--learning-rate", type=float, default=11.0, help="peak")
    parser.add_argument("--depths", type=int, nargs=4, default=[3, 4, 6, 3], help="of the stages")
    parser.add_argument("--width", type=int, default=64, help="of the first stage")
    parser.add_argument("--image-size", type=int, default=224, help="of synthetic images")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    cc.init()
    loop = Loop(
        epochs=options.epochs,
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        label_smoothing=0.1,
        loaders=options.loaders,
        device=device(),
    )
    if options.data:
        train, test = folders(options.data)
    else:
        train = test = synthetic(options.synthetic or 512, options.image_size, CLASSES, 0)
    torch.manual_seed(options.seed)
    model = ResNet(CLASSES, options.depths, options.width).to(loop.device)
    cc.broadcast_parameters(model)
    optimizer = LARS(model.parameters(), options.learning_rate, momentum=0.96, weight_decay=5e-5)
    optimizer = cc.DistributedOptimizer(optimizer, model, gossip=options.gossip)
    total = options.epochs * updates_per_epoch(train, loop)
    schedule = WarmUpPolynomial(
        optimizer,
        total=total,
        warm_up=round(WARM_UP_SHARE * total),
        at_floor=round(FLOOR_SHARE * total),
    )
    fit(model, optimizer, schedule, train, test, loop)
    cc.shutdown()


if __name__ == "__main__":
    main()
