"""Where the exchange of a training step lies on a GPU's timeline.

    python benchmarks/gpu_timeline.py --output timeline

Starts two ranks, one of which records some steps by torch's profiler. Leaves trace.json, for
chrome://tracing or Perfetto, and timeline.json: for each step the time of kernels of the exchange
(NCCL's, pack and mix), how much of it ran while others did, and which calls of CUDA waited or
allocated. Ends with 1 if the exchange has no kernels or a step allocates through our calls.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

EXCHANGE = ("nccl", "packlaunch", "mixlaunch")
"""In the names of its kernels; the latter two are the types of their arguments."""
WAITING_CALLS = (
    "cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost",
    "cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize",
)  # fmt: skip
WARMUPS = 10
STEPS = 10

Event = dict[str, Any]
"""One of a trace: "cat", "name", "ts" and "dur" in microseconds."""
Interval = tuple[float, float]


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points of time in disjoint intervals, in order."""
    result: list[Interval] = []
    for begin, end in sorted(intervals):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def common_us(a: Sequence[Interval], b: Sequence[Interval]) -> float:
    """Time that lies in both of two merged lists."""
    return sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for begin, end in a
        for other_begin, other_end in b
    )


def summary(events: Sequence[Event], num_steps: int) -> dict[str, Any]:
    """What the trace of `num_steps` steps shows, times in microseconds per step."""
    kernels = [e for e in events if e.get("cat") == "kernel"]
    ours = [e for e in kernels if any(word in e["name"].lower() for word in EXCHANGE)]
    own_ids = {id(e) for e in ours}
    spans = {
        is_ours: merged(
            (e["ts"], e["ts"] + e["dur"]) for e in kernels if (id(e) in own_ids) == is_ours
        )
        for is_ours in (True, False)
    }
    exchange_us = sum(end - begin for begin, end in spans[True])
    calls = Counter(e["name"] for e in events if e.get("cat") == "cuda_runtime")
    return {
        "steps": num_steps,
        "exchange_kernels_per_step": len(ours) / num_steps,
        "exchange_us": exchange_us / num_steps,
        "hidden_us": common_us(spans[True], spans[False]) / num_steps,
        "compute_us": sum(end - begin for begin, end in spans[False]) / num_steps,
        "waiting_calls": {name: calls[name] for name in WAITING_CALLS if calls[name]},
    }


def train(output: Path) -> None:
    """A worker; rank 0 leaves trace.json."""
    import crossover_comm as cc
    from crossover_comm.nccl import shared_gpu_environment

    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        os.environ.update(shared_gpu_environment(int(os.environ["RANK"])))
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    width = 2048
    layers = [layer for _ in range(8) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = cc.DistributedDataParallel(nn.Sequential(*layers).cuda())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(256, width, device="cuda")

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        torch.cuda.synchronize()

    steps(WARMUPS)
    if cc.rank() == 0:
        with torch.profiler.profile() as profile:
            steps(STEPS)
        profile.export_chrome_trace(str(output / "trace.json"))
    else:
        steps(STEPS)
    cc.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("timeline"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.worker:
        train(options.output)
        return 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={options.ranks}", __file__, "--worker"]
    subprocess.run([*command, f"--output={options.output}"], check=True)
    events = json.loads((options.output / "trace.json").read_text())["traceEvents"]
    found = summary(events, STEPS)
    (options.output / "timeline.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    allocates = any(name in found["waiting_calls"] for name in ("cudaMalloc", "cudaHostAlloc"))
    return 1 if found["exchange_kernels_per_step"] == 0 or allocates else 0


if __name__ == "__main__":
    sys.exit(main())
