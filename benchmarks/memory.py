"""Peak resident memory of each mode beyond the unwrapped script's.

    python benchmarks/memory.py

Two ranks of this host train a 400 MB model of 16 equal segments for three steps with plain SGD: as
it is and in every mode, each in processes of their own. The peak is the kernel's VmHWM, shared
memory included. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import resource
from typing import Final

import torch
from local_ranks import outputs_of_ranks
from records import RESULTS, Record, merge
from step_methods import available
from torch import nn

import crossover_comm as cc

WIDTH: Final = 2500
NUM_LAYERS: Final = 16
SEGMENT_BYTES: Final = 4 * WIDTH * (WIDTH + 1)
NUM_STEPS: Final = 3
METHODS: Final = (
    "compute",
    "crossover/none/fp32",
    "crossover/forward/fp32",
    "crossover/fused/fp32",
    "crossover/backward/fp32",
    "crossover/backward/bf16",
    "crossover/backward/int8",
)
WIRE_BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
KEY: Final = ("transport", "method")


def train(method: str, transport: str) -> int:
    """Called on each rank; the process's peak in bytes."""
    torch.set_num_threads(1)
    cc.init(transport=transport)
    model: nn.Module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_LAYERS)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if method != "compute":
        _, overlap, wire = method.split("/")
        config = cc.GossipConfig(overlap=overlap, wire=wire)  # type: ignore[arg-type]
        model = cc.DistributedDataParallel(model, gossip=config)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        model(torch.randn(8, WIDTH)).square().mean().backward()
        optimizer.step()
    cc.synchronize()
    cc.shutdown()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_bytes(method: str, transport: str, num_ranks: int) -> int:
    """The larger peak of the ranks of one run.

    Raises:
        RuntimeError: A rank has failed; its own message stands above.
    """
    arguments = ["--transport", transport, "--as-rank", method]
    outputs = outputs_of_ranks(__file__, arguments, num_ranks)
    return max(int(json.loads(output)) for output in outputs)


def target_bytes(method: str) -> int:
    """What the mode may take: four segments, and the model in wire format but for mode none."""
    _, overlap, wire = method.split("/")
    inbox = NUM_LAYERS * SEGMENT_BYTES * WIRE_BYTES[wire] // 4
    return 4 * SEGMENT_BYTES + (0 if overlap == "none" else inbox)


def measure(methods: list[str], transport: str, num_ranks: int) -> list[Record]:
    alone = peak_bytes("compute", transport, num_ranks)
    rows: list[Record] = [{"transport": transport, "method": "compute", "peak_bytes": alone}]
    for method in methods:
        peak = peak_bytes(method, transport, num_ranks)
        own = {"transport": transport, "method": method, "peak_bytes": peak}
        rows.append({**own, "extra_bytes": peak - alone, "target_bytes": target_bytes(method)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, help="see step_methods.py")
    parser.add_argument("--transport", choices=("shm", "tcp"), default="shm")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank is not None:
        print(train(options.as_rank, options.transport))
        return
    methods = [name for name in available(options.methods) if name != "compute"]
    rows = measure(methods, options.transport, options.ranks)
    merge(RESULTS / "memory.json", rows, KEY)
    for row in rows:
        line = f"{row['method']:28} peak {row['peak_bytes'] / 1e6:8.1f} MB"
        if "extra_bytes" in row:
            line += f", beyond the script {row['extra_bytes'] / 1e6:8.1f} MB"
            line += f" (target {row['target_bytes'] / 1e6:.0f})"
        print(line)


if __name__ == "__main__":
    main()
