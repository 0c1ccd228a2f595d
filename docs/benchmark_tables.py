"""The tables of docs/benchmarks.md, each from the rows of its benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from result_tables import markdown
from study_statistics import Results, Row

TOLERANCE = 1.03
"""A step may take so much longer than its bound."""

LABELS = {
    "compute": "compute alone",
    "alone": "unwrapped, the other rank asleep",
    "unwrapped": "unwrapped, on both ranks",
    "ddp": "torch DDP (gloo)",
    "decent/ring": "Decent-DP 0.2.3, ring",
    "decent/one-peer-exp": "Decent-DP 0.2.3, one-peer exponential",
    "gossip_perf/fp32": "W: gossip_perf, fp32",
    "gossip_perf/bf16": "W: gossip_perf, bf16",
    "gossip_perf/int8": "W: gossip_perf, int8",
}
OVERHEAD_TARGET_S = 0.3e-3
"""Of Python and engine per step, with 161 parameters."""

NOT_MEASURED = "not measured yet"
RATES = ("100mbit", "200mbit", "1gbit", "none")


def label(method: str) -> str:
    """As a reader would say it: "backward, bf16"."""
    return LABELS.get(method, ", ".join(method.split("/")[1:]))


def where(rows: list[Row], **wanted: object) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def step_times(results: Results, hosts: int) -> str:
    """Median step of each method at each rate, in ms."""
    rows = where(results.get("step_time", []), hosts=hosts)
    rates = [rate for rate in RATES if where(rows, rate=rate)]
    if not rates:
        return NOT_MEASURED
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["method"], {})[row["rate"]] = f"{1e3 * row['step_s']:.0f}"
    lines = [
        [label(method), *(line.get(rate, "-") for rate in rates)] for method, line in cells.items()
    ]
    return markdown([f"ms per step, {hosts} hosts", *map(rate_name, rates)], lines)


def step_target(results: Results) -> str:
    """Mode backward against max(forward + backward alone, W) + optimizer step.

    Default topology only: W is measured with it.
    """
    rows = results.get("step_time", [])
    lines = []
    for row in rows:
        kind, *rest = row["method"].split("/")
        if kind != "crossover" or rest[0] != "backward" or len(rest) > 2:
            continue
        cell = {r["method"]: r for r in where(rows, hosts=row["hosts"], rate=row["rate"])}
        link, compute = cell.get(f"gossip_perf/{rest[1]}"), cell.get("compute")
        if link is None or compute is None:
            continue
        bound = max(compute["forward_backward_s"], link["step_s"]) + compute["optimizer_s"]
        ratio = row["step_s"] / bound
        verdict = (
            "met" if ratio <= TOLERANCE else f"missed by {100 * (ratio / TOLERANCE - 1):.1f} %"
        )
        times = (f"{1e3 * s:.0f}" for s in (link["step_s"], bound, row["step_s"]))
        lines.append(
            [row["hosts"], rate_name(row["rate"]), rest[1], *times, f"{ratio:.3f}", verdict]
        )
    header = ["hosts", "link", "wire", "W (ms)", "bound (ms)", "step (ms)", "step / bound"]
    return markdown([*header, f"target {TOLERANCE}"], lines) if lines else NOT_MEASURED


def overlap(results: Results) -> str:
    """The share of the exchange that each mode hides."""
    lines = []
    for row in results.get("overlap", []):
        hidden = f"{100 * row['hidden']:.0f} %" if "hidden" in row else ""
        place = [row["hosts"], rate_name(row["rate"]), row["batch_size"]]
        lines.append([*place, label(row["method"]), f"{1e3 * row['step_s']:.1f}", hidden])
    header = ["hosts", "link", "batch", "method", "step (ms)", "hidden"]
    return markdown(header, lines) if lines else NOT_MEASURED


def stragglers(results: Results) -> str:
    """Throughput of each method under each pattern of delays."""
    cells: dict[str, dict[str, float]] = {}
    for row in results.get("stragglers", []):
        cells.setdefault(row["method"], {})[row["delay"]] = 100 * row["throughput"]
    lines = [
        [
            label(method),
            *(f"{line[delay]:.1f}" for delay in ("none", "straggler", "jitter")),
            f"{100 * line['jitter'] / line['none']:.1f}",
        ]
        for method, line in cells.items()
    ]
    header = ["throughput, % of compute alone", "no delay", "one rank 50 % slower", "jitter"]
    header.append("jitter, % of own without delay")
    return markdown(header, lines) if lines else NOT_MEASURED


def scaling(results: Results) -> str:
    """Median step over the number of hosts."""
    rows = results.get("scaling", [])
    places = sorted({(row["rate"], row["hosts"]) for row in rows})
    cells: dict[str, dict[tuple[str, int], str]] = {}
    for row in rows:
        place = row["rate"], row["hosts"]
        cells.setdefault(row["method"], {})[place] = f"{1e3 * row['step_s']:.0f}"
    lines = [
        [label(method), *(line.get(place, "-") for place in places)]
        for method, line in cells.items()
    ]
    header = [f"{hosts} hosts, {rate_name(rate)}" for rate, hosts in places]
    return markdown(["ms per step", *header], lines) if lines else NOT_MEASURED


def memory(results: Results) -> str:
    """Peak beyond the unwrapped script's, and the target."""
    lines = []
    for row in results.get("memory", []):
        line = [row["transport"], label(row["method"]), f"{row['peak_bytes'] / 1e6:.0f}"]
        if "extra_bytes" in row:
            over = row["extra_bytes"] / row["target_bytes"] - 1
            verdict = "met" if over <= 0 else f"missed by {100 * over:.1f} %"
            line += [f"{row[name] / 1e6:.0f}" for name in ("extra_bytes", "target_bytes")]
            line.append(verdict)
        else:
            line += ["", "", ""]
        lines.append(line)
    header = ["transport", "method", "peak (MB)", "beyond the script (MB)", "target (MB)", ""]
    return markdown(header, lines) if lines else NOT_MEASURED


def overhead(results: Results) -> str:
    """What a step takes beside the loop on one rank."""
    lines = []
    for row in results.get("overhead", []):
        times = ["step_s", "extra_step_s", "extra_thread_cpu_s", "extra_process_cpu_s", "mix_s"]
        line = [row["parameters"], label(row["method"])]
        line += [f"{1e3 * row[name]:.2f}" if name in row else "" for name in times]
        verdict = ""
        if row["parameters"] == 161 and "overhead_s" in row:
            over = row["overhead_s"] / OVERHEAD_TARGET_S - 1
            verdict = "met" if over <= 0 else f"missed by {1e3 * over * OVERHEAD_TARGET_S:.2f}"
        lines.append([*line, verdict])
    header = ["parameters", "method", "step (ms)", "beside alone (ms)", "its training thread"]
    header += ["its process", "mixing (ms)", f"target {1e3 * OVERHEAD_TARGET_S:.1f}"]
    return markdown(header, lines) if lines else NOT_MEASURED


def exchange(results: Results) -> str:
    """Median time of an exchange with mix, by method."""
    rows = results.get("exchange", [])
    places = list(dict.fromkeys(exchange_place(row) for row in rows))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["method"], {})[exchange_place(row)] = f"{1e3 * row['p50_s']:.1f}"
    lines = [
        [method, *(line.get(place, "-") for place in places)] for method, line in cells.items()
    ]
    return markdown(["ms", *places], lines) if lines else NOT_MEASURED


def exchange_place(row: Row) -> str:
    """ "2 ranks, shm, 100 MB"."""
    return f"{row['ranks']} ranks, {row['transport']}, {row['bytes'] // 1_000_000} MB"


def exchange_targets(results: Results) -> str:
    """How many times faster than each peer, and the target."""
    lines = []
    for row in results.get("exchange_targets", []):
        short = 1 - row["ratio"] / row["target"]
        verdict = "met" if short <= 0 else f"missed by {100 * short:.0f} %"
        lines.append([row["what"], f"{row['ratio']:.2f}", row["target"], verdict])
    return markdown(["", "times faster", "target", ""], lines) if lines else NOT_MEASURED


def cpp_benchmarks(results: Results, program: str) -> str:
    """What Google Benchmark has printed."""
    lines = []
    for row in results.get(f"cpp/{program}", []):
        unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3}[row["time_unit"]]
        rate = f"{row['bytes_per_second'] / 1e9:.2f}" if "bytes_per_second" in row else ""
        lines.append([row["name"], f"{1e6 * unit * row['cpu_time']:.2f}", rate])
    return markdown(["benchmark", "us", "GB/s"], lines) if lines else NOT_MEASURED


def rate_name(rate: str) -> str:
    """As written in units."""
    names = {"100mbit": "100 Mbit/s", "200mbit": "200 Mbit/s", "1gbit": "1 Gbit/s"}
    return {**names, "none": "no limit"}.get(rate, rate)


TABLES: Mapping[str, Callable[[Results], str]] = {
    "step-times-2": partial(step_times, hosts=2),
    "step-times-4": partial(step_times, hosts=4),
    "step-times-8": partial(step_times, hosts=8),
    "step-target": step_target,
    "overlap": overlap,
    "overhead": overhead,
    "stragglers": stragglers,
    "scaling": scaling,
    "memory": memory,
    "exchange": exchange,
    "exchange-targets": exchange_targets,
    "cpp-kernels": partial(cpp_benchmarks, program="kernels"),
    "cpp-engine": partial(cpp_benchmarks, program="engine"),
}
