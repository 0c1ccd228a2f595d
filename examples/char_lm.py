"""A small transformer language model on the source text of Python's standard library.

Alone, or with as many workers as wanted:
    python examples/char_lm.py
    torchrun --standalone --nproc-per-node 4 examples/char_lm.py --steps 300
"""

from __future__ import annotations

import argparse
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import crossover_comm as cc

VOCABULARY = 256  # bytes


class CharLM(nn.Module):
    """Byte indices (N, T), T <= context -> logits of each next byte (N, T, 256)."""

    def __init__(self, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        x = self.token(text) + self.position[:length]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(x))
        return logits


def standard_library_text(max_bytes: int) -> Tensor:
    """The standard library's top-level modules, joined in order of name: uint8 (<= max_bytes,)."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(module.read_bytes() for module in modules)[:max_bytes]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and next bytes, int64 (N, context) each, of the windows at `starts` (N,)."""
    window = text[starts[:, None] + torch.arange(context + 1)].long()
    return window[:, :-1], window[:, 1:]


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy per byte, in nats."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def validation_loss(model: nn.Module, text: Tensor, context: int) -> float:
    """Loss over 32 windows spread evenly over `text`."""
    starts = torch.linspace(0, len(text) - context - 1, 32).long()
    model.eval()
    with torch.no_grad():
        loss = float(loss_of(model, *windows(text, starts, context)))
    model.train()
    return loss


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8, help="windows per worker and step")
    parser.add_argument("--context", type=int, default=64, help="bytes per window")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--gossip", default="crossover", help="preset of crossover_comm")
    parser.add_argument("--max-bytes", type=int, default=4_000_000, help="of text to read")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(model: nn.Module, text: Tensor, options: argparse.Namespace) -> None:
    """Each worker draws its own windows; rank 0 shows the progress."""
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.steps
    )
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + cc.rank())
    last_start = len(text) - options.context - 1
    with tqdm(range(options.steps), unit="step", disable=cc.rank() != 0) as bar:
        for _ in bar:
            starts = torch.randint(last_start, (options.batch_size,), generator=generator)
            optimizer.zero_grad()
            loss = loss_of(model, *windows(text, starts, options.context))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    cc.init()
    torch.manual_seed(options.seed)
    model: nn.Module = CharLM(options.width, options.depth, options.heads, options.context)
    model = cc.DistributedDataParallel(model, gossip=options.gossip)
    text = standard_library_text(options.max_bytes)
    held_out = len(text) // 20
    train(model, text[:-held_out], options)

    local = validation_loss(model, text[-held_out:], options.context)
    distance = cc.consensus_distance(model)
    with cc.averaged(model):
        averaged = validation_loss(model, text[-held_out:], options.context)
    print(f"rank {cc.rank()}: validation loss of the local model {local:.3f} nats per byte")
    if cc.rank() == 0:
        bits = averaged / math.log(2)
        print(f"averaged model of {cc.size()}: {averaged:.3f} nats ({bits:.2f} bits) per byte")
        print(f"consensus distance {distance:.3e}")
    cc.shutdown()


if __name__ == "__main__":
    main()
