"""A compiled transformer that learns to add neighbouring numbers modulo 5.

torchrun --standalone --nproc-per-node 2 examples/ddp/compiled_transformer.py
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 200
BATCH_SIZE = 32
LENGTH = 6
MODULUS = 5


class Transformer(nn.Module):
    """Numbers (N, T) below MODULUS -> logits of the sums of neighbours (N, T, MODULUS)."""

    def __init__(self, width: int = 32, depth: int = 1) -> None:
        super().__init__()
        self.number = nn.Embedding(MODULUS, width)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, MODULUS)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.number(numbers) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def loss_on(model: nn.Module, count: int, draws: torch.Generator) -> Tensor:
    """Of the sums of each number and the one before it, in `count` random sequences."""
    numbers = torch.randint(MODULUS, (count, LENGTH), generator=draws)
    sums = (numbers + numbers.roll(1, dims=1)) % MODULUS
    return F.cross_entropy(model(numbers).flatten(0, 1), sums.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    backend = parser.parse_args().backend
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(1 + dist.get_rank())
    model = DistributedDataParallel(torch.compile(Transformer(), backend=backend))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_on(model, BATCH_SIZE, draws).backward()
        optimizer.step()

    if dist.get_rank() == 0:
        with torch.no_grad():
            loss = loss_on(model.module, BATCH_SIZE, torch.Generator().manual_seed(0))
        print(f"loss: {loss:.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
