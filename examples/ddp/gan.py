"""A generative adversarial network: two wrapped models and two optimizers in one loop.

torchrun --standalone --nproc-per-node 2 examples/ddp/gan.py
"""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 300
BATCH_SIZE = 64
NOISE = 4


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with a leaky ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def real_points(count: int, draws: torch.Generator) -> Tensor:
    """Points of a noisy circle of radius 1, float32 (N, 2)."""
    angles = 2 * torch.pi * torch.rand(count, generator=draws)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    return circle + 0.05 * torch.randn(count, 2, generator=draws)


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Of two samples of points (N, 2): 0 where their distributions are equal."""
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(1 + dist.get_rank())
    generator = DistributedDataParallel(perceptron(NOISE, 32, 32, 2))
    critic = DistributedDataParallel(perceptron(2, 32, 32, 1))
    adam = {"lr": 2e-3, "betas": (0.5, 0.99)}
    generator_optimizer = torch.optim.Adam(generator.parameters(), **adam)  # type: ignore[arg-type]
    critic_optimizer = torch.optim.Adam(critic.parameters(), **adam)  # type: ignore[arg-type]

    for _ in range(STEPS):
        real = real_points(BATCH_SIZE, draws)
        fake = generator(torch.randn(BATCH_SIZE, NOISE, generator=draws))

        critic_optimizer.zero_grad()
        verdicts = critic(torch.cat([real, fake.detach()]))
        truth = torch.cat([torch.ones(BATCH_SIZE, 1), torch.zeros(BATCH_SIZE, 1)])
        F.binary_cross_entropy_with_logits(verdicts, truth).backward()
        critic_optimizer.step()

        generator_optimizer.zero_grad()
        F.softplus(-critic(fake)).mean().backward()
        generator_optimizer.step()

    if dist.get_rank() == 0:
        test = torch.Generator().manual_seed(0)
        with torch.no_grad():
            fake = generator.module(torch.randn(2000, NOISE, generator=test))
        print(f"loss: {energy_distance(real_points(2000, test), fake):.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
