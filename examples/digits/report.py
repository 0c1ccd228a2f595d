"""The demo's table and plot, from the workers' records."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from launch import WorkerRecord
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

LABELS = {"crossover": "crossover", "ddp": "DDP"}
COLORS = {"crossover": "tab:blue", "ddp": "tab:orange"}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def column(records: list[WorkerRecord]) -> list[str]:
    """One method's cells, in the order of `table`'s row names."""
    step_s = median(s for record in records for s in record["step_s"])
    sent = fmean(record["sent_bytes_per_step"] for record in records)
    return [
        *(percent(record["local_accuracy"][-1]) for record in records),
        percent(records[0]["averaged_accuracy"][-1]),
        f"{sent / 1e3:.1f} kB",
        f"{1e3 * step_s:.1f} ms",
        f"{records[0]['consensus_distance'][-1]:.2e}",
    ]


def table(runs: dict[str, list[WorkerRecord]]) -> str:
    """Test accuracy, traffic, time and consensus distance, one column per method."""
    size = len(next(iter(runs.values())))
    names = [f"test accuracy, worker {rank}" for rank in range(size)]
    names += ["test accuracy, averaged model", "sent per worker and step [1]"]
    names += ["time of a step, median", "consensus distance, end"]
    columns = [column(records) for records in runs.values()]
    header = "".join(f"{LABELS[method]:>16}" for method in runs)
    lines = [f"{'':32}{header}", "-" * (32 + 16 * len(runs))]
    for name, *cells in zip(names, *columns, strict=True):
        lines.append(f"{name:32}" + "".join(f"{cell:>16}" for cell in cells))
    sources = (f"{LABELS[m]}: {records[0]['bytes_source']}" for m, records in runs.items())
    lines.append(f"[1] {'; '.join(sources)}")
    return "\n".join(lines)


def draw_accuracy(axes: Axes, method: str, records: list[WorkerRecord]) -> None:
    color, label = COLORS[method], LABELS[method]
    epochs = range(1, len(records[0]["loss"]) + 1)
    for record in records:
        local = [100 * share for share in record["local_accuracy"]]
        axes.plot(epochs, local, color=color, alpha=0.3, linewidth=0.8)
    averaged = [100 * share for share in records[0]["averaged_accuracy"]]
    axes.plot(epochs, averaged, color=color, label=f"{label}, averaged model")


def plot(runs: dict[str, list[WorkerRecord]], path: Path) -> None:
    """Loss, test accuracy (thin: single workers) and consensus distance over epochs, as PNG."""
    figure, (loss, accuracy, consensus) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for method, records in runs.items():
        epochs = range(1, len(records[0]["loss"]) + 1)
        means = [fmean(values) for values in zip(*(r["loss"] for r in records), strict=True)]
        loss.semilogy(epochs, means, color=COLORS[method], label=LABELS[method])
        draw_accuracy(accuracy, method, records)
        consensus.plot(
            epochs, records[0]["consensus_distance"], color=COLORS[method], label=LABELS[method]
        )
    loss.set(title="training loss, mean of workers", xlabel="epoch")
    accuracy.set(title="test accuracy (%)", xlabel="epoch", ylim=(80, 100))
    consensus.set(title="consensus distance", xlabel="epoch")
    for axes in (loss, accuracy, consensus):
        axes.legend()
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)
    plt.close(figure)
