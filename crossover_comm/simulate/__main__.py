"""Command line: ``python -m crossover_comm.simulate {consensus,accuracy,time}``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean, stdev

from tqdm import tqdm

from crossover_comm.config import OVERLAPS, WIRES
from crossover_comm.errors import InvalidArgument
from crossover_comm.simulate.consensus import Setting, measure
from crossover_comm.simulate.method import MOMENTUM_RULES, ORDERS, Method, Recipe
from crossover_comm.simulate.report import plot_lines, table, write_json
from crossover_comm.simulate.tasks import TASKS, task_named
from crossover_comm.simulate.timing import Cluster, Workload, allreduce_time, gossip_time
from crossover_comm.simulate.training import Outcome, train
from crossover_comm.topology import GroupCrossover, MixedRadix, Topology, topology_from

Rows = list[dict[str, object]]


def consensus(options: argparse.Namespace) -> Rows:
    """Contraction, exactness and distance of each topology at each size."""
    setting = Setting(
        budget=options.budget,
        order=options.order,
        wire=options.wire,
        fixed_noise=options.fixed_noise,
        num_steps=options.steps,
        seed=options.seed,
    )
    cells = [(topology, size) for topology in options.topology for size in options.workers]
    with tqdm(total=len(cells) * options.steps, unit="step", disable=options.quiet) as bar:
        found = [(name, measure(_topology(name), n, setting, bar.update)) for name, n in cells]
    return [{**result.as_json(), "topology": name} for name, result in found]


def accuracy(options: argparse.Namespace) -> Rows:
    """A real small model by each topology at each number of workers, mean over seeds."""
    task = task_named(options.task)
    recipe = Recipe(
        steps=options.steps,
        global_batch=options.global_batch,
        learning_rate=options.learning_rate,
        momentum=options.momentum,
        lars=options.lars,
    )
    cells = [(name, size) for name in options.topology for size in options.workers]
    rows: Rows = []
    num_steps = len(cells) * options.seeds * options.steps
    with tqdm(total=num_steps, unit="step", disable=options.quiet) as bar:
        for name, size in cells:
            method = _remedied(_method(name, options), options)
            outcomes = [
                train(
                    task,
                    method,
                    recipe,
                    workers=size,
                    seed=options.seed + k,
                    device=options.device,
                    tick=bar.update,
                )
                for k in range(options.seeds)
            ]
            columns = {f.name: [getattr(o, f.name) for o in outcomes] for f in fields(Outcome)}
            means = {name: fmean(column) for name, column in columns.items()}
            accuracies = columns["accuracy"]
            error = stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else 0.0
            rows.append({"topology": name, "size": size, "standard_error": error, **means})
    return rows


def time(options: argparse.Namespace) -> Rows:
    """Step time of ring and tree all-reduce and of each topology at each number of workers."""
    workload = Workload(model_bytes=options.model_mb * 1e6, compute_s=options.compute_ms * 1e-3)
    rows: Rows = []
    for size in tqdm(options.workers, unit="size", disable=options.quiet):
        cluster = Cluster(
            workers=size,
            workers_per_host=options.workers_per_host,
            bandwidth=options.gbit * 1.25e8,
            latency_s=options.latency_us * 1e-6,
            local_bandwidth=options.local_gbit * 1.25e8,
            jitter=options.jitter,
            stragglers=options.stragglers,
            slowdown=options.slowdown,
        )
        for algorithm in ("ring", "tree"):
            found = allreduce_time(
                workload, cluster, algorithm=algorithm, num_steps=options.steps, seed=options.seed
            )
            rows.append({"topology": f"all-reduce, {algorithm}", "size": size, **found.as_json()})
        for name in options.topology:
            found = gossip_time(
                _method(name, options),
                workload,
                cluster,
                overlap=options.overlap,
                num_steps=options.steps,
                seed=options.seed,
            )
            rows.append({"topology": name, "size": size, **found.as_json()})
    return rows


def _topology(text: str) -> Topology:
    """A topology's name, or ``group-crossover:4``, or ``mixed-radix:8x16``."""
    name, _, argument = text.partition(":")
    numbers = [int(part) if part.isdecimal() else 0 for part in argument.split("x") if argument]
    if name == "group-crossover" and len(numbers) == 1:
        return GroupCrossover(numbers[0])
    if name == "mixed-radix" and numbers:
        return MixedRadix(radices=tuple(numbers))
    return topology_from(text)


def _method(topology: str, options: argparse.Namespace) -> Method:
    return Method(
        topology=None if topology == "allreduce" else _topology(topology),
        order="before" if options.overlap == "backward" else "after",
        wire=options.wire,
        rounds_per_step=options.rounds_per_step,
        group=options.group,
    )


def _remedied(method: Method, options: argparse.Namespace) -> Method:
    names = (
        "wire_budget",
        "interval",
        "momentum_rule",
        "exact_every",
        "slow_momentum",
        "warm_up_steps",
    )
    return replace(method, **{name: getattr(options, name) for name in names})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crossover_comm.simulate",
        description="Which topology and method to take, from the schedules that the engine runs.",
    )
    commands = parser.add_subparsers(required=True, dest="command")
    _add_consensus(commands.add_parser("consensus", help=consensus.__doc__))
    _add_accuracy(commands.add_parser("accuracy", help=accuracy.__doc__))
    _add_time(commands.add_parser("time", help=time.__doc__))
    for name, run, y in (
        ("consensus", consensus, "distance"),
        ("accuracy", accuracy, "accuracy"),
        ("time", time, "step_s"),
    ):
        command = commands.choices[name]
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--json", type=Path, help="file to write the rows to")
        command.add_argument("--plot", type=Path, help=f"PNG of {y} over workers to save")
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        command.set_defaults(run=run, y=y)
    return parser


def _add_workers(parser: argparse.ArgumentParser, topologies: list[str], sizes: list[int]) -> None:
    parser.add_argument(
        "--topology",
        nargs="+",
        default=topologies,
        help="names, or group-crossover:4, or mixed-radix:8x16; allreduce: of the gradients",
    )
    parser.add_argument("--workers", nargs="+", type=int, default=sizes)


def _add_method(
    parser: argparse.ArgumentParser, overlap: str, wires: Sequence[str] = WIRES
) -> None:
    parser.add_argument("--overlap", choices=OVERLAPS, default=overlap)
    parser.add_argument("--wire", choices=wires, default="fp32")
    parser.add_argument("--rounds-per-step", type=int, default=1)
    parser.add_argument("--group", type=int, default=1, help="workers that average gradients")


def _add_consensus(parser: argparse.ArgumentParser) -> None:
    _add_workers(parser, ["crossover", "exponential", "ring", "complete"], [8, 16, 32, 64])
    parser.add_argument("--budget", type=float, default=1.0, help="models per worker and step")
    parser.add_argument("--order", choices=ORDERS, default="after", help="of mixing and noise")
    parser.add_argument("--wire", choices=WIRES, default="fp32")
    parser.add_argument("--fixed-noise", action="store_true", help="one constant draw per worker")
    parser.add_argument("--steps", type=int, default=400)


def _add_accuracy(parser: argparse.ArgumentParser) -> None:
    _add_workers(parser, ["allreduce", "crossover"], [8, 32, 128])
    _add_method(parser, "none", (*WIRES, "auto"))
    parser.add_argument("--wire-budget", type=float, default=0.52, help="of auto: fp32 rounds")
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--global-batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=0.3)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--lars", type=float, default=0.0, help="trust coefficient; 0: plain SGD")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--interval", type=int, default=1, help="steps from mixing to mixing")
    parser.add_argument("--momentum-rule", choices=MOMENTUM_RULES, default="local")
    parser.add_argument("--exact-every", type=int, default=0, help="steps; 0: never")
    parser.add_argument("--slow-momentum", type=float, default=0.0)
    parser.add_argument("--warm-up-steps", type=int, default=0, help="that average exactly")


def _add_time(parser: argparse.ArgumentParser) -> None:
    _add_workers(parser, ["crossover"], [8, 64, 512, 4096, 10_000])
    _add_method(parser, "backward")
    parser.add_argument("--model-mb", type=float, default=102.2, help="fp32 parameters, 10^6 bytes")
    parser.add_argument("--compute-ms", type=float, default=400.0, help="of a step")
    parser.add_argument("--workers-per-host", type=int, default=1)
    parser.add_argument("--gbit", type=float, default=10.0, help="per second of a host's card")
    parser.add_argument("--local-gbit", type=float, default=80.0, help="between workers of a host")
    parser.add_argument("--latency-us", type=float, default=50.0)
    parser.add_argument("--jitter", type=float, default=0.05, help="of compute, as a share")
    parser.add_argument("--stragglers", type=int, default=0)
    parser.add_argument("--slowdown", type=float, default=1.0, help="of the stragglers")
    parser.add_argument("--steps", type=int, default=30)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        rows: Rows = options.run(options)
    except InvalidArgument as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if options.json:
        command = ["python", "-m", "crossover_comm.simulate", *(arguments or sys.argv[1:])]
        write_json(options.json, shlex.join(command), rows)
    if options.plot:
        _plot(options.plot, rows, options.y)
    return 0


def _plot(path: Path, rows: Rows, y: str) -> None:
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        numbers = (row["size"], row[y], row.get("standard_error", 0.0))
        lines.setdefault(str(row["topology"]), []).append(tuple(map(float, numbers)))  # type: ignore
    plot_lines(path, lines, x="workers", y=y.replace("_", " "))


if __name__ == "__main__":
    sys.exit(main())
