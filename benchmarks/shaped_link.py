"""Step times over slow links: compute alone, crossover and torch's DDP, in one run.

    python benchmarks/shaped_link.py --hosts 4 --rate 200mbit

One rank per network namespace (see netns.py; needs root and iproute2), TCP between them, a 25 MB
MLP with batches of 64 samples per rank, mode "backward". Prints a table with the bytes by the
engine's count and by the interface's, and writes all numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import netns
import torch

import crossover_comm as cc

HERE = Path(__file__).resolve().parent

Record = dict[str, Any]


def measure(options: argparse.Namespace) -> list[list[Record]]:
    """By rank, one record per method.

    Raises:
        RuntimeError: A rank has failed; its own message stands above.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        netns.shaped_hosts(options.hosts, options.rate) as hosts,
    ):
        command = [sys.executable, str(HERE / "shaped_link_worker.py"), "--output", folder]
        command += ["--steps", str(options.steps), "--blocks", str(options.blocks)]
        code = netns.run_on(hosts, command, options.port)
        if code != 0:
            raise RuntimeError(f"a rank ended with {code}")
        files = [Path(folder) / f"rank{rank}.json" for rank in range(options.hosts)]
        return [json.loads(file.read_text()) for file in files]


def summarize(by_rank: list[list[Record]]) -> list[Record]:
    """For each method the median step time of all ranks, and mean bytes per rank and step."""
    rows = []
    for records in zip(*by_rank, strict=True):
        step_s = [s for record in records for s in record["step_s"]]
        moved = {
            name: sum(record["moved_bytes"][name] for record in records) / len(step_s)
            for name in records[0]["moved_bytes"]
        }
        rows.append(
            {"method": records[0]["method"], "median_step_s": statistics.median(step_s), **moved}
        )
    return rows


def table(rows: list[Record], model_bytes: int) -> str:
    """The summary as text; bytes as multiples of one fp32 model."""
    lines = [
        "                        median step   sent per rank and step, in fp32 models",
        "                                 ms     payload    engine's wire    interface",
    ]
    for row in rows:
        counters = ("payload", "wire", "interface")
        payload, wire, interface = (row[f"{c}_sent_bytes"] / model_bytes for c in counters)
        lines.append(
            f"{row['method']:22} {1000 * row['median_step_s']:12.1f} "
            f"{payload:11.3f} {wire:16.3f} {interface:12.3f}"
        )
    return "\n".join(lines)


def floor_s(model_bytes: int, rate: str) -> float | None:
    """How long one fp32 model takes on the bare link; None if `rate` is not in bits per second."""
    match = re.fullmatch(r"([0-9.]+)([kmg]?)bit", rate.lower())
    if match is None:
        return None
    factor = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}[match[2]]
    return 8 * model_bytes / (float(match[1]) * factor)


def surroundings(options: argparse.Namespace) -> Record:
    """What a reader needs to judge the numbers and to repeat them."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "command": (
            f"python benchmarks/shaped_link.py --hosts {options.hosts} --rate {options.rate} "
            f"--steps {options.steps} --blocks {options.blocks}"
        ),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {
            "crossover_comm": cc.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "kernel": platform.release().partition("-")[0],
        },
        "machine": {
            "cores": os.cpu_count(),
            "cpu": cpu[1] if cpu else platform.machine(),
            "load_average_before": os.getloadavg(),
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", default="200mbit", help="of each link, as tc writes it")
    parser.add_argument("--steps", type=int, default=10, help="of each method in each block")
    parser.add_argument("--blocks", type=int, default=3, help="turns that each method takes")
    parser.add_argument("--port", type=int, default=29500, help="of rank 0's store")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for JSON")
    options = parser.parse_args()
    reason = netns.why_unavailable()
    if reason is not None:
        parser.error(reason)
    return options


def main() -> None:
    options = _options()
    report = surroundings(options)
    by_rank = measure(options)
    rows = summarize(by_rank)
    model_bytes = by_rank[0][0]["model_bytes"]
    floor = floor_s(model_bytes, options.rate)
    print(table(rows, model_bytes))
    if floor is not None:
        print(f"{'one fp32 model, bare link':24}{1000 * floor:11.1f}")
    report |= {"model_bytes": model_bytes, "link_floor_s": floor, "summary": rows}
    report["by_rank"] = by_rank
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"shaped_link-{options.hosts}x{options.rate}.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(f"all numbers: {os.path.relpath(file)}")


if __name__ == "__main__":
    netns.end_on_sigterm()
    main()
