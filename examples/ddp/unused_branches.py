"""A model that uses another branch in each step, and another one on each rank.

torchrun --standalone --nproc-per-node 2 examples/ddp/unused_branches.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 400
BATCH_SIZE = 32
FEATURES = 8
TASKS = 3


class MultiTask(nn.Module):
    """A trunk and one head for each task; a forward goes through one head only."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(TASKS))

    def forward(self, x: Tensor, task: int) -> Tensor:
        prediction: Tensor = self.heads[task](self.trunk(x))
        return prediction.squeeze(1)


def examples(task: int, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (N, FEATURES) and targets (N,): each task is the sine of another direction."""
    directions = torch.randn(TASKS, FEATURES, generator=torch.Generator().manual_seed(7))
    x = torch.randn(count, FEATURES, generator=draws)
    return x, torch.sin(x @ directions[task] / 2)


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(dist.get_rank())
    model = DistributedDataParallel(MultiTask(), find_unused_parameters=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    for _ in range(STEPS):
        task = int(torch.randint(TASKS, (), generator=draws))
        x, targets = examples(task, BATCH_SIZE, draws)
        optimizer.zero_grad()
        F.mse_loss(model(x, task), targets).backward()
        optimizer.step()

    if dist.get_rank() == 0:
        test = torch.Generator().manual_seed(1000)
        losses = []
        with torch.no_grad():
            for task in range(TASKS):
                x, targets = examples(task, 1000, test)
                losses.append(F.mse_loss(model.module(x, task), targets))
        print(f"loss: {torch.stack(losses).mean():.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
