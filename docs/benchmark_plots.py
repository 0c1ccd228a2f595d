"""The plots of docs/benchmarks.md, as PNG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmark_tables import exchange_place, label, where
from study_statistics import Points, Results

from crossover_comm.simulate.report import plot_lines

PLOTTED_RATE = "200mbit"
UNPLOTTED = ("gossip_perf", "decent/one-peer-exp", "crossover/none", "crossover/forward")
"""Starts of names that stand in tables only, to keep lines apart."""


def plot_benchmarks(results: Results, folder: Path) -> None:
    """What has been measured: step times and scaling as lines, the others as bars."""
    for name in ("step_time", "scaling"):
        lines: dict[str, Points] = {}
        for row in where(results.get(name, []), rate=PLOTTED_RATE):
            if row["method"].startswith(UNPLOTTED):
                continue
            lines.setdefault(label(row["method"]), []).append(
                (row["hosts"], 1e3 * row["step_s"], 0)
            )
        if lines:
            file = folder / f"{name}.png"
            plot_lines(file, lines, x="hosts, 200 Mbit/s links", y="median step (ms)")
    hidden = {
        label(row["method"]): 100 * row["hidden"]
        for row in results.get("overlap", [])
        if "hidden" in row
    }
    plot_bars(folder / "overlap.png", hidden, "share of the exchange hidden (%)")
    jitter = where(results.get("stragglers", []), delay="jitter")
    throughput = {label(row["method"]): 100 * row["throughput"] for row in jitter}
    plot_bars(folder / "stragglers.png", throughput, "throughput under jitter (% of compute alone)")
    extra = {
        label(row["method"]): row["extra_bytes"] / 1e6
        for row in results.get("memory", [])
        if "extra_bytes" in row
    }
    plot_exchange(folder / "exchange.png", results)
    plot_bars(folder / "memory.png", extra, "peak memory beyond the script's (MB), 400 MB model")


def plot_exchange(path: Path, results: Results) -> None:
    """Saves bytes over time of each way to exchange and mix; nothing if there are none."""
    rows = results.get("exchange", [])
    if not rows:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    places = list(dict.fromkeys(map(exchange_place, rows)))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rates = {(row["method"], exchange_place(row)): row["gb_per_s"] for row in rows}
    width = 1 / (len(methods) + 1)
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for k, method in enumerate(methods):
        at = [n + (k + 0.5) * width for n in range(len(places))]
        axes.bar(at, [rates.get((method, place), 0.0) for place in places], width, label=method)
    axes.set_xticks([n + 0.5 - width / 2 for n in range(len(places))], places)
    axes.set(ylabel="tensor / time (GB/s)")
    axes.legend(ncols=3)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def plot_bars(path: Path, bars: Mapping[str, float], x: str) -> None:
    """Saves a horizontal bar per label; nothing if there are none."""
    if not bars:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.4 * len(bars)), layout="constrained")
    axes.barh(list(bars), list(bars.values()))
    axes.invert_yaxis()
    axes.set(xlabel=x)
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
