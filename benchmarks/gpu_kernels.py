"""Bandwidth of the pack and mix kernels beside a copy and beside torch doing the same.

    python benchmarks/gpu_kernels.py --program build/tests/gpu/gpu_kernels_bench

The kernels and the copy are timed by the program, torch here, all in one run on one GPU. Bytes are
counted as moved: a copy and a pack read and write each element once, a mix reads and writes the
tensor and reads the message. Writes all numbers as JSON; ends with 1 if a large segment is below
90 % of the copy's bandwidth, or if torch is faster anywhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

WARMUPS = 5
RUNS = 30
LARGE_BYTES = 16 << 20
SHARE_OF_COPY = 0.9

Record = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One segment: its tensors' numbers of elements and its two types, by torch's names."""

    name: str
    dtype: str
    wire: str
    numels: tuple[int, ...]

    def line(self) -> str:
        """As the program reads it."""
        return " ".join([self.name, self.dtype, self.wire, *map(str, self.numels)])


def resnet50_numels() -> tuple[int, ...]:
    """The 161 tensors of ResNet-50 with 1000 classes."""
    numels = [64 * 3 * 7 * 7, 64, 64]
    width_in = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            numels += [width_in * width, width, width, 9 * width * width, width, width]
            numels += [4 * width * width, 4 * width, 4 * width]
            if block == 0:
                numels += [width_in * 4 * width, 4 * width, 4 * width]
            width_in = 4 * width
    return (*numels, 1000 * width_in, 1000)


def transformer_numels(width: int = 1024, layers: int = 20, vocabulary: int = 16384) -> list[int]:
    """A decoder of about 268 million parameters, 1 GB in float32."""
    block = [width, width, 3 * width * width, 3 * width, width * width, width, width, width]
    block += [4 * width * width, 4 * width, 4 * width * width, width]
    return [vocabulary * width, *block * layers, width, width]


def shapes() -> list[Shape]:
    models: dict[str, Sequence[int]] = {
        "one-16MiB": (4 << 20,),
        "one-64MiB": (16 << 20,),
        "resnet50": resnet50_numels(),
        "transformer-1GB": transformer_numels(),
    }
    types = (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))
    return [Shape(name, *pair, tuple(numels)) for name, numels in models.items() for pair in types]


def run_program(program: Path, segments: Sequence[Shape]) -> list[Record]:
    lines = "\n".join(shape.line() for shape in segments)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def median_ms(call: Callable[[], object]) -> float:
    times = []
    for run in range(WARMUPS + RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if run >= WARMUPS:
            times.append(begin.elapsed_time(end))
    return float(median(times))


def torch_times(shape: Shape) -> dict[str, float]:
    """Milliseconds of each way to pack and to mix that torch offers."""
    dtype, wire = getattr(torch, shape.dtype), getattr(torch, shape.wire)
    tensors = [torch.randn(numel, device="cuda", dtype=dtype) for numel in shape.numels]
    message = torch.zeros(sum(shape.numels), device="cuda", dtype=wire)
    views = list(message.split(list(shape.numels)))

    def cat() -> Tensor:
        return torch.cat(tensors).to(wire)

    def mix(xs: list[Tensor], ms: list[Tensor]) -> None:
        for x, m in zip(xs, ms, strict=True):
            x.add_(m.to(x.dtype) - x.to(wire).to(x.dtype), alpha=0.5)

    def mix_foreach() -> None:
        theirs = [view.to(dtype) for view in views] if wire != dtype else views
        torch._foreach_lerp_(tensors, theirs, 0.5)

    times = {
        "pack_cat_ms": median_ms(cat),
        "pack_foreach_copy_ms": median_ms(lambda: torch._foreach_copy_(views, tensors)),
        "mix_foreach_lerp_ms": median_ms(mix_foreach),
    }
    # A graph over every tensor of a large model compiles for minutes and says nothing more.
    if len(tensors) <= len(resnet50_numels()):
        compiled_pack, compiled_mix = torch.compile(cat), torch.compile(mix)
        times["pack_compiled_ms"] = median_ms(compiled_pack)
        times["mix_compiled_ms"] = median_ms(lambda: compiled_mix(tensors, views))
    torch.compiler.reset()
    return times


def judged(record: Record, times: dict[str, float]) -> Record:
    """The record with torch's times and what falls short."""
    bytes_moved = record["numel"] * getattr(torch, record["dtype"]).itemsize
    short = []
    for what in ("pack", "mix"):
        slow_share = record[f"{what}_gb_s"] < SHARE_OF_COPY * record["copy_gb_s"]
        if bytes_moved >= LARGE_BYTES and slow_share and record["segment"] != "resnet50":
            short.append(f"{what} is below {SHARE_OF_COPY:.0%} of the copy")
        rivals = {name: ms for name, ms in times.items() if name.startswith(what)}
        short += [f"{name} is faster" for name, ms in rivals.items() if ms < record[f"{what}_ms"]]
    return {**record, "torch": times, "falls_short": short}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--program", type=Path, required=True, help="gpu_kernels_bench")
    parser.add_argument("--output", type=Path, default=Path("gpu_kernels.json"))
    options = parser.parse_args()
    segments = shapes()
    measured = run_program(options.program, segments)
    records = [
        judged(record, torch_times(shape)) for shape, record in zip(segments, measured, strict=True)
    ]
    options.output.write_text(json.dumps(records, indent=2) + "\n")
    print(f"{'segment':>16} {'types':>18} {'copy':>7} {'pack':>7} {'mix':>7} GB/s")
    for record in records:
        types = f"{record['dtype']}/{record['wire']}"
        speeds = " ".join(f"{record[f'{what}_gb_s']:7.0f}" for what in ("copy", "pack", "mix"))
        print(f"{record['segment']:>16} {types:>18} {speeds}  {'; '.join(record['falls_short'])}")
    return 1 if any(record["falls_short"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
