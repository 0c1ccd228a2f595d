"""Means and standard errors over seeds, for the tables and plots of docs/results.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
Results: TypeAlias = Mapping[str, list[Row]]
Points: TypeAlias = list[tuple[float, float, float]]

ALL_REDUCE = "all-reduce"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    error: float

    @staticmethod
    def of(values: list[float]) -> Estimate:
        """Over seeds; at least two. Infinite if one of them diverged."""
        if not all(map(math.isfinite, values)):
            return Estimate(math.inf, math.inf)
        return Estimate(fmean(values), stdev(values) / math.sqrt(len(values)))

    def text(self, digits: int = 2, sign: str = "") -> str:
        """For a table's cell."""
        if not math.isfinite(self.mean):
            return "diverged"
        return f"{self.mean:{sign}.{digits}f} ± {self.error:.{digits}f}"


def values(row: Row, measure: str) -> dict[str, float]:
    """One measure of a row by seed; infinite where the training diverged."""
    found = {seed: outcome[measure] for seed, outcome in row["outcomes"].items()}
    return {seed: math.inf if value is None else value for seed, value in found.items()}


def estimate(row: Row, measure: str = "accuracy") -> Estimate:
    return Estimate.of(list(values(row, measure).values()))


def difference(row: Row, reference: Row, measure: str = "accuracy") -> Estimate:
    """Row minus reference over their common seeds, paired by seed."""
    mine, others = values(row, measure), values(reference, measure)
    return Estimate.of([mine[seed] - others[seed] for seed in mine if seed in others])


def select(rows: list[Row], **wanted: object) -> list[Row]:
    """Rows with these values, of the row or of its recipe."""
    return [r for r in rows if all({**r["recipe"], **r}[k] == v for k, v in wanted.items())]


def reference_of(rows: list[Row], **wanted: object) -> Row:
    """The all-reduce among the rows."""
    (row,) = select(rows, label=ALL_REDUCE, **wanted)
    return row


def workers_lines(results: Results, task: str) -> dict[str, Points]:
    """Accuracy minus all-reduce's over the number of workers, by method."""
    rows = select(results["workers"], task=task)
    reference = reference_of(rows)
    lines: dict[str, Points] = {}
    for row in rows:
        if row is not reference:
            found = difference(row, reference)
            point = (row["workers"], found.mean, found.error)
            lines.setdefault(row["label"], []).append(point)
    return lines


def at_best_rate(rows: list[Row]) -> dict[str, float]:
    """Accuracy by seed at the learning rate that was best on the seeds of the other parity.

    So no seed chooses the rate that it is judged at.
    """
    found: dict[str, float] = {}
    for parity in (0, 1):

        def on_others(row: Row, parity: int = parity) -> float:
            seeds = values(row, "accuracy").items()
            return fmean(value for seed, value in seeds if int(seed) % 2 != parity)

        best = max(rows, key=on_others)
        accuracies = values(best, "accuracy").items()
        found |= {seed: value for seed, value in accuracies if int(seed) % 2 == parity}
    return found


def batch_lines(results: Results) -> dict[str, Points]:
    """Accuracy at the best rate over the batch, by method."""
    lines: dict[str, Points] = {}
    for label, batch, rows in by_method_and_batch(results):
        found = Estimate.of(list(at_best_rate(rows).values()))
        lines.setdefault(label, []).append((batch, found.mean, found.error))
    return lines


def by_method_and_batch(results: Results) -> list[tuple[str, int, list[Row]]]:
    """(label, batch, a row per learning rate), in the study's order."""
    rows = results["batch"]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    batches = sorted({row["recipe"]["global_batch"] for row in rows})
    return [(k, b, select(rows, label=k, global_batch=b)) for k in labels for b in batches]


def in_columns(
    rows: list[Row], column: Callable[[Row], int], cell: Callable[[Row], str]
) -> tuple[list[int], dict[str, list[str]]]:
    """Column values, and per label its cells; an empty cell where there is no row."""
    columns = sorted({column(row) for row in rows})
    table: dict[str, list[str]] = {}
    for row in rows:
        cells = table.setdefault(row["label"], [""] * len(columns))
        cells[columns.index(column(row))] = cell(row)
    return columns, table
