"""Tables, JSON and plots of the simulator."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from crossover_comm._version import __version__

__all__ = ["circumstances", "plot_lines", "table", "write_json"]

Row = Mapping[str, object]


def table(rows: Sequence[Row]) -> str:
    """Plain text: the first row's keys as header, numbers to four digits."""
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(names))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def circumstances() -> dict[str, str]:
    """What is needed to repeat the figures."""
    return {
        "crossover_comm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(path: Path, command: str, rows: Sequence[Row]) -> None:
    """The rows with the command and the versions that made them."""
    content = {"command": command, "versions": circumstances(), "rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot_lines(
    path: Path,
    lines: Mapping[str, Sequence[tuple[float, float, float]]],
    *,
    x: str,
    y: str,
    logarithmic: str = "x",
) -> None:
    """Saves a PNG: a line of (x, y, standard error) per label. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, points in lines.items():
        xs, ys, errors = zip(*sorted(points), strict=True)
        axes.errorbar(xs, ys, errors, marker="o", markersize=3, capsize=2, label=label)
    options: dict[str, Any] = {"xlabel": x, "ylabel": y}
    if "x" in logarithmic:
        axes.set_xscale("log", base=2)
    if "y" in logarithmic:
        axes.set_yscale("log")
    axes.set(**options)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
