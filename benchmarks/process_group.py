"""All-reduce of torch.distributed between processes of one host: backend "crossover" beside gloo.

    python benchmarks/process_group.py                  # 25 and 100 MB, 2 and 4 processes

Both backends are groups of the same processes and take turns, so that what else the machine does
meets both alike. One time is from a barrier to the return of the slowest rank. Rows are merged into
benchmarks/results/process_group.json; ends with 1 if gloo's median is the smaller one anywhere.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from records import RESULTS, Record, merge

import crossover_comm as cc

BACKENDS = ("crossover", "gloo")
KEY = ("run", "backend", "processes", "megabytes")


def all_reduce_s(tensor: torch.Tensor, group: dist.ProcessGroup) -> float:
    """Seconds of the slowest rank, alike on every rank."""
    dist.barrier(group=group)
    begin = time.perf_counter()
    dist.all_reduce(tensor, group=group)
    slowest = torch.tensor([time.perf_counter() - begin])
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)
    return float(slowest.item())


def measure(rank: int, options: argparse.Namespace, size: int, port: int, rows: Any) -> None:
    """One process: all sizes over both backends in turns."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=120),
    )
    crossover = cc.ProcessGroupOptions(transport=options.transport)
    groups = {
        "crossover": dist.new_group(backend="crossover", pg_options=crossover),
        "gloo": dist.new_group(backend="gloo"),
    }
    for megabytes in options.megabytes:
        tensor = torch.ones(int(megabytes * 1e6 / 4))
        times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
        for repeat in range(options.repeats + 1):
            for backend, group in groups.items():
                tensor.fill_(1.0)
                taken_s = all_reduce_s(tensor, group)
                assert bool((tensor == size).all())
                if repeat > 0:  # the first one touches new memory
                    times[backend].append(taken_s)
        if rank == 0:
            rows.put((megabytes, times))
    dist.destroy_process_group()


def rows_of(options: argparse.Namespace, size: int) -> list[Record]:
    """Runs `size` processes; a row per backend and size of tensor."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=measure, args=(rank, options, size, port, results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"a process ended with {process.exitcode}")
    rows = []
    for _ in options.megabytes:
        megabytes, times = results.get()
        for backend, taken_s in times.items():
            rows.append(
                {
                    "run": options.transport,
                    "backend": backend,
                    "transport": options.transport if backend == "crossover" else "tcp",
                    "processes": size,
                    "megabytes": megabytes,
                    "median_s": median(taken_s),
                    "gigabytes_per_s": megabytes / 1e3 / median(taken_s),
                    "all_s": taken_s,
                }
            )
    return rows


def slower(rows: Sequence[Record]) -> list[Record]:
    """Rows of crossover that are not faster than gloo's of the same run."""
    gloo_s = {
        (row["processes"], row["megabytes"]): row["median_s"]
        for row in rows
        if row["backend"] == "gloo"
    }
    return [
        row
        for row in rows
        if row["backend"] == "crossover"
        and row["median_s"] >= gloo_s[row["processes"], row["megabytes"]]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[25.0, 100.0])
    parser.add_argument("--repeats", type=int, default=11, help="of each backend")
    parser.add_argument("--transport", default="shm", help="of crossover: shm or tcp")
    options = parser.parse_args()
    rows: list[Record] = []
    for size in options.processes:
        rows += rows_of(options, size)
    print("processes      MB  backend    transport  median ms     GB/s")
    for row in rows:
        print(
            f"{row['processes']:9} {row['megabytes']:7g}  {row['backend']:10} "
            f"{row['transport']:9} {1e3 * row['median_s']:10.2f} {row['gigabytes_per_s']:8.2f}"
        )
    merge(RESULTS / "process_group.json", rows, KEY)
    sys.exit(1 if slower(rows) else 0)


if __name__ == "__main__":
    main()
