"""The tables of docs/results.md, each from the rows of its study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from study_statistics import (
    ALL_REDUCE,
    Estimate,
    Results,
    Row,
    at_best_rate,
    by_method_and_batch,
    difference,
    estimate,
    in_columns,
    reference_of,
    select,
)


def markdown(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def workers_accuracy(results: Results, task: str, measure: str) -> str:
    """Accuracy of each method at each number of workers."""
    rows = select(results["workers"], task=task)
    others = [row for row in rows if row["label"] != ALL_REDUCE]
    columns, table = in_columns(
        others, lambda row: int(row["workers"]), lambda row: estimate(row, measure).text()
    )
    exact = estimate(reference_of(rows), measure).text()
    lines = [[ALL_REDUCE, *[exact] * len(columns)], *([k, *c] for k, c in table.items())]
    return markdown(["method, workers:", *columns], lines)


def workers_difference(results: Results, task: str) -> str:
    """The same minus all-reduce, paired by seed."""
    rows = select(results["workers"], task=task)
    reference = reference_of(rows)
    others = [row for row in rows if row is not reference]
    columns, table = in_columns(
        others,
        lambda row: int(row["workers"]),
        lambda row: difference(row, reference).text(sign="+"),
    )
    return markdown(["method, workers:", *columns], [[k, *cells] for k, cells in table.items()])


def batch_best(results: Results) -> str:
    """Accuracy at the best learning rate of each method and batch."""
    cells: dict[str, list[str]] = {}
    batches = []
    for label, batch, rows in by_method_and_batch(results):
        found = Estimate.of(list(at_best_rate(rows).values()))
        cells.setdefault(label, []).append(found.text())
        batches.append(batch)
    header = ["method, batch:", *sorted(set(batches))]
    return markdown(header, [[label, *line] for label, line in cells.items()])


def batch_difference(results: Results) -> str:
    """The same minus all-reduce, paired by seed."""
    best = {(k, b): at_best_rate(rows) for k, b, rows in by_method_and_batch(results)}
    batches = sorted({batch for _, batch in best})
    lines = []
    for label in dict.fromkeys(k for k, _ in best if k != ALL_REDUCE):
        pairs = [(best[label, b], best[ALL_REDUCE, b]) for b in batches]
        found = [Estimate.of([mine[seed] - exact[seed] for seed in mine]) for mine, exact in pairs]
        lines.append([label, *(value.text(sign="+") for value in found)])
    return markdown(["method, batch:", *batches], lines)


def batch_rates(results: Results, batch: int) -> str:
    """Accuracy at every learning rate, one batch."""
    rows = select(results["batch"], global_batch=batch)
    rates = sorted({row["recipe"]["learning_rate"] for row in rows})
    cells: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda r: float(r["recipe"]["learning_rate"])):
        cells.setdefault(row["label"], []).append(estimate(row).text())
    return markdown(["method, rate:", *rates], [[label, *line] for label, line in cells.items()])


def parity(results: Results, study: str, task: str, file: str = "parity") -> str:
    """The candidates at 64 and 128 workers."""
    rows = select(results[file], study=study, task=task)
    reference = reference_of(rows)
    exact = [estimate(reference).text(), "", _loss(reference), "", "0"]
    lines = [[ALL_REDUCE, "any", "1.98", *exact]]
    for row in rows:
        if row is not reference:
            lines.append(_parity_line(row, reference))
    header = ["method", "workers", "models sent", "accuracy (%)", "- all-reduce"]
    return markdown([*header, "loss", "- all-reduce", "distance"], lines)


def _parity_line(row: Row, reference: Row) -> list[str]:
    sent = next(iter(row["outcomes"].values()))["models_sent"]
    distance = estimate(row, "consensus_distance")
    return [
        row["label"],
        str(row["workers"]),
        f"{sent:.2f}",
        estimate(row).text(),
        difference(row, reference).text(sign="+"),
        _loss(row),
        difference(row, reference, "loss").text(3, "+"),
        f"{distance.mean:.2f}" if math.isfinite(distance.mean) else "diverged",
    ]


def _loss(row: Row) -> str:
    return estimate(row, "loss").text(3)


def processes(results: Results) -> str:
    """Real processes beside the simulation of the same seeds; all-reduce by 8 processes."""
    lines = []
    for row in results["processes"]:
        (reference,) = select(results["processes"], task=row["task"], label=ALL_REDUCE)
        is_reference = row is reference
        simulated = {**row, "outcomes": row["simulated"]}
        lines.append(
            [
                row["task"],
                row["label"],
                row["workers"],
                len(row["outcomes"]),
                estimate(row).text(),
                estimate(simulated).text(),
                "" if is_reference else difference(row, reference).text(sign="+"),
                "" if is_reference else difference(row, reference, "loss").text(3, "+"),
            ]
        )
    header = ["task", "method", "processes", "seeds", "accuracy (%)", "simulated (%)"]
    return markdown([*header, "- all-reduce", "loss - all-reduce"], sorted(lines, key=str))


def rounding(results: Results) -> str:
    """Distance of the replicas by each rule of rounding to int8 blocks."""
    rows = results["int8_rounding"]
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(row["rule"], []).append(f"{row['distance']:.2f}")
    drifts = {rule: max(r["drift"] for r in rows if r["rule"] == rule) for rule in cells}
    lines = [[rule, *line, f"{drifts[rule]:.0e}"] for rule, line in cells.items()]
    return markdown(["rule, noise of a step:", *noises, "largest drift of the mean"], lines)


def auto_wire(results: Results) -> str:
    """Distance of the replicas by fixed wires and by the chosen one, within two budgets."""
    rows = results["auto_wire"]
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    cells: dict[str, list[str]] = {}
    sent: dict[str, list[float]] = {}
    for row in rows:
        cells.setdefault(row["method"], []).append(f"{row['distance']:.2f}")
        sent.setdefault(row["method"], []).append(row["models_sent"])
    lines = [[name, f"{max(sent[name]):.2f}", *line] for name, line in cells.items()]
    return markdown(["method, noise of a step:", "most models sent", *noises], lines)


def bf16_parameters(results: Results) -> str:
    """Drift of the mean of bf16 replicas, and a training in pure bf16, by rule of rounding."""
    rows = results["bf16_parameters"]
    lines = []
    for row in rows:
        drifts = [f"{drift:.2f}" for drift in row["drifts"].values()]
        accuracy, loss = Estimate.of(row["accuracies"]), Estimate.of(row["losses"])
        lines.append([row["rule"], *drifts, accuracy.text(), loss.text(4)])
    spreads = [f"drift, spread {spread}" for spread in rows[0]["drifts"]]
    return markdown(["rule", *spreads, "accuracy (%)", "loss"], lines)


def consensus(results: Results) -> str:
    """Steady-state distance, expected and measured."""
    lines = []
    for row in results["consensus"]:
        expected, measured = row["expected"], row["measured"]
        off = f"{100 * (measured / expected - 1):+.1f} %"
        lines.append([row["scheme"], row["workers"], expected, f"{measured:.3f}", off])
    return markdown(["scheme", "workers", "expected D", "measured D", "difference"], lines)


def step_times(results: Results) -> str:
    """Predicted step time of each method at each number of workers."""
    cells: dict[str, dict[int, str]] = {}
    for row in results["time"]:
        cells.setdefault(row["topology"], {})[row["size"]] = f"{1e3 * row['step_s']:.0f}"
    sizes = sorted({row["size"] for row in results["time"]})
    lines = [[label, *(line[size] for size in sizes)] for label, line in cells.items()]
    return markdown(["ms per step, workers:", *sizes], lines)


TABLES: Mapping[str, Callable[[Results], str]] = {
    "workers-digits": partial(workers_accuracy, task="digits", measure="accuracy"),
    "workers-digits-difference": partial(workers_difference, task="digits"),
    "workers-characters": partial(workers_accuracy, task="characters", measure="accuracy"),
    "workers-characters-difference": partial(workers_difference, task="characters"),
    "batch": batch_best,
    "batch-difference": batch_difference,
    "rates-256": partial(batch_rates, batch=256),
    "rates-1024": partial(batch_rates, batch=1024),
    "validation": partial(parity, study="validation", task="digits"),
    "parity-digits": partial(parity, study="parity", task="digits"),
    "parity-characters": partial(parity, study="parity", task="characters"),
    "processes": processes,
    "wires": partial(parity, study="wires", task="digits", file="wires"),
    "int8-rounding": rounding,
    "auto-wire": auto_wire,
    "bf16-parameters": bf16_parameters,
    "consensus": consensus,
    "time": step_times,
}
