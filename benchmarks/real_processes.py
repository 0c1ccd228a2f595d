"""Trains what docs/results.md recommends by real processes, beside the simulation of the same runs.

    python benchmarks/real_processes.py --workers 64                # what is missing
    python benchmarks/real_processes.py --workers 32 --seeds 2

Each worker is a process with an engine of its own; they exchange over shared memory. A run and its
simulation share data, start, batches and draws, so they differ by the rounding of sums alone. Kept
in benchmarks/results/studies/processes.json, which grows by each call.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from study_cells import CANDIDATES, TASKS
from torch._C._distributed_c10d import FileStore

import crossover_comm as cc
from crossover_comm.simulate.method import Method, Recipe
from crossover_comm.simulate.report import circumstances
from crossover_comm.simulate.tasks import Data, task_named
from crossover_comm.simulate.training import Batches, train

RESULTS = Path(__file__).parent / "results" / "studies" / "processes.json"
CHOICE = "two digits, bf16"
TIMEOUT_S = 300.0

Row = dict[str, Any]
Job = tuple[str, str, Recipe, int]
"""Label, task, recipe, seed."""


def gossip_config(method: Method, seed: int) -> cc.GossipConfig:
    """The library's configuration of a simulated method."""
    if method.topology is None:
        return cc.GossipConfig(groups="world", overlap="none")
    return cc.GossipConfig(
        topology=method.topology,
        overlap="none" if method.order == "after" else "backward",
        wire=method.wire,
        seed=seed,
        rounds_per_step=method.rounds_per_step,
    )


def train_here(job: Job, rank: int, size: int) -> dict[str, float]:
    """One training on this rank; what it returns counts on rank 0 alone."""
    label, task_name, recipe, seed = job
    task = task_named(task_name)
    torch.manual_seed(seed)
    model = cc.DistributedDataParallel(
        task.model(), gossip=gossip_config(CANDIDATES[label](size), seed)
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.factor)
    data = task.data(seed)
    batches = Batches(len(data.inputs), recipe.global_batch, size, seed)
    for _ in range(recipe.steps):
        chosen = batches.next()[rank]
        loss = F.cross_entropy(model(data.inputs[chosen]), data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    distance = cc.consensus_distance(model)
    with cc.averaged(model):
        outcome = judge(model, data) if rank == 0 else {}
    return {**outcome, "final_distance": distance}


@torch.no_grad()
def judge(model: torch.nn.Module, data: Data) -> dict[str, float]:
    logits = model(data.test_inputs)
    hits = (logits.argmax(dim=1) == data.test_labels).double().mean()
    loss = F.cross_entropy(logits, data.test_labels)
    return {"accuracy": 100.0 * float(hits), "loss": float(loss)}


def worker(rank: int, size: int, store: str, jobs: list[Job], outcomes: Any) -> None:
    torch.set_num_threads(1)
    cc.init(rank=rank, size=size, store=FileStore(store, size), timeout=TIMEOUT_S, transport="shm")
    for job in jobs:
        began = cc.counters()["payload_sent_bytes"]
        began_s = time.monotonic()
        outcome = train_here(job, rank, size)
        if rank == 0:
            outcome["seconds"] = time.monotonic() - began_s
            outcome["sent_bytes"] = cc.counters()["payload_sent_bytes"] - began
            outcomes.put((job, outcome))
    cc.shutdown()


def run(jobs: list[Job], size: int) -> Iterator[tuple[Job, dict[str, float]]]:
    """The outcomes, as they come, of all jobs by `size` processes forked from this one."""
    forking = multiprocessing.get_context("fork")
    outcomes = forking.Queue()
    store = f"/dev/shm/real-processes-{os.getpid()}"
    workers = [
        forking.Process(target=worker, args=(rank, size, store, jobs, outcomes), daemon=True)
        for rank in range(size)
    ]
    for process in workers:
        process.start()
    try:
        for _ in jobs:
            yield next_outcome(outcomes, workers)
        for process in workers:
            process.join(TIMEOUT_S)
        require_order(workers, ended=True)
    finally:
        for process in workers:
            process.kill()
        Path(store).unlink(missing_ok=True)


def next_outcome(outcomes: Any, workers: list[Any]) -> tuple[Job, dict[str, float]]:
    while True:
        try:
            found: tuple[Job, dict[str, float]] = outcomes.get(timeout=1.0)
            return found
        except queue.Empty:
            require_order(workers, ended=False)


def require_order(workers: list[Any], *, ended: bool) -> None:
    """Raises if a worker has failed, or (`ended`) goes on."""
    fine = (0,) if ended else (0, None)
    failed = [rank for rank, process in enumerate(workers) if process.exitcode not in fine]
    if failed:
        raise RuntimeError(f"ranks {failed} did not end in order")


def row_of(job: Job, size: int) -> Row:
    label, task, recipe, _ = job
    return {
        "study": "processes",
        "label": label,
        "task": task,
        "workers": size,
        "recipe": asdict(recipe),
    }


def row_in(rows: list[Row], wanted: Row) -> Row:
    """The row that says the same but for its outcomes; added where there is none."""
    for row in rows:
        if {k: row[k] for k in wanted} == wanted:
            return row
    rows.append({**wanted, "outcomes": {}, "simulated": {}})
    return rows[-1]


def simulated(job: Job, size: int) -> dict[str, float | None]:
    label, task, recipe, seed = job
    outcome = train(task_named(task), CANDIDATES[label](size), recipe, workers=size, seed=seed)
    return outcome.as_json()


def save(rows: list[Row], command: str) -> None:
    content = {"command": command, "versions": circumstances(), "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5, help="0 .. seeds - 1")
    parser.add_argument("--tasks", nargs="+", default=[task for task, _, _ in TASKS])
    parser.add_argument("--methods", nargs="+", default=[CHOICE], choices=CANDIDATES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    recipes = {task: recipe for task, recipe, _ in TASKS}
    jobs: list[Job] = [
        (label, task, recipes[task], seed)
        for task in options.tasks
        for label in options.methods
        for seed in range(options.seeds)
    ]
    size = options.workers
    known = [str(job[3]) in row_in(rows, row_of(job, size))["outcomes"] for job in jobs]
    todo = [job for job, is_known in zip(jobs, known, strict=True) if not is_known]
    for job, outcome in run(todo, size) if todo else ():
        row = row_in(rows, row_of(job, size))
        row["outcomes"][str(job[3])] = outcome
        row["simulated"][str(job[3])] = simulated(job, size)
        print(*job[:2], "seed", job[3], outcome, row["simulated"][str(job[3])], flush=True)
        save(rows, f"python benchmarks/real_processes.py --workers {size}")


if __name__ == "__main__":
    main()
