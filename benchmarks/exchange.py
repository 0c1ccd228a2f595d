"""Exchange and mix of one tensor on this host: gossip_perf beside its peers, in one run.

    make bench-cpp                      # builds the programs, into build/bench
    python benchmarks/exchange.py       # benchmarks/results/exchange.json, exchange_targets.json

What is measured, each the median time until a tensor is averaged with a neighbour's:

    floor       memory_floor: plain loops that read the neighbour's tensor out of shared memory
    crossover   gossip_perf: exchange into an inbox, then mix
    mpi         Open MPI's sendrecv, then a plain averaging loop; left out where mpicc is missing
    gloo        torch's gloo isend and irecv, then x.add_(y).mul_(0.5)
    all-reduce  torch's gloo all-reduce, then a division: an average over all ranks, not one peer
    memcpy, loop, pack, mix   one core: a copy, x = 0.5 (x + y), and the engine's kernels

Every process uses one thread. Prints ratios beside their targets.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from records import RESULTS, Record, call, machine

from crossover_comm.simulate.report import circumstances

ROOT: Final = Path(__file__).parent.parent
CASES: Final = (("shm", 2, 100_000_000), ("shm", 2, 25_000_000), ("shm", 4, 100_000_000))
TCP_CASES: Final = (("tcp", 2, 100_000_000), ("tcp", 2, 25_000_000))
TARGETS: Final = (
    ("shm", 2, "floor", 1.2),
    ("shm", 2, "mpi", 3.0),
    ("shm", 2, "gloo", 5.0),
    ("shm", 4, "floor", 1.0),
    ("tcp", 2, "gloo", 1.3),
)
KERNEL_TARGET: Final = 0.9
KERNELS: Final = {
    "memcpy": "memcpy_floats/100000000",
    "loop": "average_floats/100000000",
    "pack": "pack_floats/float32/100000000",
    "mix": "mix_floats/float32/100000000",
}
METHODS: Final = ("floor", "crossover", "mpi", "gloo", "all-reduce")
WARMUP: Final = 3


def run(command: Sequence[str | Path], **environment: str) -> str:
    """The output of a program.

    Raises:
        RuntimeError: It has failed; with what it said.
    """
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def floor(programs: Path, ranks: int, num_bytes: int, rounds: int) -> float:
    """Seconds of memory_floor."""
    line = run([programs / "memory_floor", str(ranks), str(num_bytes), str(rounds)])
    return float(json.loads(line)["p50_s"])


def gossip(programs: Path, case: tuple[str, int, int], rounds: int) -> float:
    """Seconds of a round of gossip_perf."""
    transport, ranks, num_bytes = case
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        options = {"-t": transport, "-r": ranks, "-b": num_bytes, "-n": rounds}
        flags = [str(part) for item in options.items() for part in item]
        run([programs / "gossip_perf", *flags, "-j", table])
        row = json.loads(table.read_text())["sizes"][0]
    if row["wrong"] != 0:
        raise RuntimeError(f"gossip_perf: {row['wrong']} wrong elements")
    return float(row["p50_s"])


def mpi(case: tuple[str, int, int], rounds: int) -> float | None:
    """Seconds of Open MPI's exchange; None where there is none to measure."""
    transport, ranks, num_bytes = case
    if shutil.which("mpicc") is None or shutil.which("mpirun") is None:
        return None
    layer = {"shm": "self,vader", "tcp": "self,tcp"}[transport]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "mpi_exchange"
        run(["mpicc", "-O3", "-march=native", ROOT / "csrc/bench/mpi_exchange.c", "-o", program])
        flags = ["--allow-run-as-root", "--oversubscribe", "--mca", "btl", layer, "-n", str(ranks)]
        line = run(["mpirun", *flags, program, str(num_bytes), str(rounds)])
    return float(json.loads(line)["p50_s"])


def gloo(method: str, ranks: int, num_bytes: int, rounds: int) -> float:
    """Seconds of a round of torch's gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--as-rank", method, "--bytes", str(num_bytes), "--rounds", str(rounds)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"gloo, {method}: a rank has failed; its message stands above")
    return float(outputs[0])


def gloo_rank(method: str, num_bytes: int, rounds: int) -> float:
    """Called on each rank; the median time of a round."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    own = torch.full((num_bytes // 4,), float(rank))
    other = torch.empty_like(own)
    times = []
    for _ in range(WARMUP + rounds):
        dist.barrier()
        began_s = time.perf_counter()
        if method == "all-reduce":
            dist.all_reduce(own)
            own.div_(size)
        else:
            works = [dist.isend(own, (rank + 1) % size), dist.irecv(other, (rank - 1) % size)]
            for work in works:
                assert work is not None
                work.wait()
            own.add_(other).mul_(0.5)
        times.append(time.perf_counter() - began_s)
    dist.destroy_process_group()
    return statistics.median(times[WARMUP:])


def kernels(programs: Path) -> dict[str, float]:
    """Seconds of one pass of each loop over 100 MB, on one core."""
    names = "|".join(f"^{name}$" for name in KERNELS.values())
    text = run(
        [programs / "kernels_bench", f"--benchmark_filter={names}", "--benchmark_format=json"]
    )
    unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3}
    times = {row["name"]: row for row in json.loads(text)["benchmarks"]}
    return {
        kernel: times[name]["real_time"] * unit[times[name]["time_unit"]]
        for kernel, name in KERNELS.items()
    }


def measure(method: str, programs: Path, case: tuple[str, int, int], rounds: int) -> float | None:
    """Seconds of a round; None where the method is not there."""
    _, ranks, num_bytes = case
    if method == "floor":
        return floor(programs, ranks, num_bytes, rounds)
    if method == "mpi":
        return mpi(case, rounds)
    if method in ("gloo", "all-reduce"):
        return gloo(method, ranks, num_bytes, max(3, rounds // 3))
    return gossip(programs, case, rounds)


def rows(programs: Path, rounds: int) -> Iterator[Record]:
    """One of each case and method, peers beside each other."""
    for case in (*CASES, *TCP_CASES):
        place = dict(zip(("transport", "ranks", "bytes"), case, strict=True))
        for method in METHODS:
            seconds = measure(method, programs, case, rounds)
            if seconds is not None:
                rate = case[2] / seconds / 1e9
                yield {**place, "method": method, "p50_s": seconds, "gb_per_s": rate}


def ratios(measured: Sequence[Record], passes: dict[str, float]) -> list[Record]:
    """Each target beside what was measured: how many times faster than that peer."""
    found: list[Record] = []
    times = {(r["transport"], r["ranks"], r["bytes"], r["method"]): r["p50_s"] for r in measured}
    for transport, ranks, num_bytes in (*CASES, *TCP_CASES):
        for target_transport, target_ranks, peer, target in TARGETS:
            theirs = times.get((transport, ranks, num_bytes, peer))
            if (target_transport, target_ranks) != (transport, ranks) or theirs is None:
                continue
            ratio = theirs / times[transport, ranks, num_bytes, "crossover"]
            what = f"{transport}, {ranks} ranks, {num_bytes // 1_000_000} MB: {peer} / crossover"
            found.append({"what": what, "ratio": ratio, "target": target})
    for kernel, plain in (("pack", "memcpy"), ("mix", "loop")):
        what = f"one core, 100 MB: {plain} / {kernel}"
        found.append(
            {"what": what, "ratio": passes[plain] / passes[kernel], "target": KERNEL_TARGET}
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=Path, default=ROOT / "build/bench")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        seconds = gloo_rank(options.as_rank, options.bytes, options.rounds)
        if os.environ["RANK"] == "0":
            print(seconds)
        return 0
    passes = kernels(options.programs)
    measured = list(rows(options.programs, options.rounds))
    judged = ratios(measured, passes)
    about = {"command": call(), "versions": circumstances(), "machine": machine()}
    for name, found in (("exchange", measured), ("exchange_targets", judged)):
        content = {**about, "one_core_s": passes, "rows": found}
        (options.output / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    for row in judged:
        verdict = "met" if row["ratio"] >= row["target"] else "missed"
        print(f"{row['what']}: {row['ratio']:.2f} (target {row['target']}, {verdict})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
