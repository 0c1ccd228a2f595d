"""A language model with gradient accumulation, clipping, warm-up and a checkpoint.

torchrun --standalone --nproc-per-node 2 examples/ddp/language_model.py
"""

from __future__ import annotations

import contextlib
import sysconfig
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 60
MICRO_BATCHES = 4
MICRO_BATCH_SIZE = 8
CONTEXT = 32
VOCABULARY = 256  # bytes


class LanguageModel(nn.Module):
    """Byte indices (N, T) -> logits of each next byte (N, T, 256)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.recurrence = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        logits: Tensor = self.head(self.recurrence(self.token(text))[0])
        return logits


def standard_library_text(max_bytes: int = 200_000) -> Tensor:
    """Modules of the standard library, joined in order of name: int64 (N,)."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(module.read_bytes() for module in modules)[:max_bytes]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def loss_on(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    """Mean cross-entropy per byte of the windows at `starts`, in nats."""
    windows = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def save_and_reload(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A checkpoint written by rank 0 and read by all, as a job that starts again would."""
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(shared)
    path = Path(shared[0]) / "checkpoint.pt"
    if dist.get_rank() == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    dist.barrier()
    checkpoint = torch.load(path, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    dist.barrier()


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    text = standard_library_text()
    training, validation = text[:-20_000], text[-20_000:]
    draws = torch.Generator().manual_seed(dist.get_rank())

    model = DistributedDataParallel(LanguageModel())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=STEPS)

    for step in range(STEPS):
        optimizer.zero_grad()
        for micro_batch in range(MICRO_BATCHES):
            is_last = micro_batch == MICRO_BATCHES - 1
            starts = torch.randint(len(training) - CONTEXT, (MICRO_BATCH_SIZE,), generator=draws)
            with contextlib.nullcontext() if is_last else model.no_sync():
                (loss_on(model, training, starts) / MICRO_BATCHES).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        schedule.step()
        if step == STEPS // 2:
            save_and_reload(model, optimizer)

    if dist.get_rank() == 0:
        with torch.no_grad():
            starts = torch.arange(0, len(validation) - CONTEXT - 1, CONTEXT)
            print(f"loss: {loss_on(model.module, validation, starts):.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
