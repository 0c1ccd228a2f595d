"""Runs methods of step_methods.py on hosts made by netns.py and gathers what their steps took."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import netns
from records import Record
from simulated_compute import Delay

__all__ = ["MLP_WIDTHS", "Setting", "gossip_perf_program", "gossip_perf_s", "steps_on", "table"]

HERE = Path(__file__).resolve().parent
MLP_WIDTHS = (512, 1536, 1536, 1536, 512)
"""6.3 million parameters, 25.2 MB, 4 segments."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What every rank does.

    Attributes:
        methods: By name, available.
        steps: Of each method in each block; the first is not recorded.
        blocks: Turns that each method takes.
        widths: Of the MLP.
        batch_size: Samples per rank.
        sleep_s: Simulated compute of a step, beside the MLP's own.
        delays: Patterns of simulated_compute.py, one after the other in every block.
    """

    methods: tuple[str, ...]
    steps: int
    blocks: int
    widths: tuple[int, ...] = MLP_WIDTHS
    batch_size: int = 64
    sleep_s: float = 0.0
    delays: tuple[Delay, ...] = ("none",)

    @staticmethod
    def from_json(text: str) -> Setting:
        fields: dict[str, Any] = json.loads(text)
        frozen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return Setting(**frozen)


def steps_on(hosts: Sequence[netns.Host], setting: Setting, port: int) -> list[Record]:
    """One row per method and delay: medians over steps of all ranks, means per rank and step.

    ``step_s``, ``forward_backward_s``: medians; ``mean_step_s``: a block's time over its steps, of
    the slowest rank, the last exchange included; ``*_bytes``: sent or received per rank and step;
    ``steps_ms``: every recorded step, rank after rank.

    Raises:
        RuntimeError: A rank has failed; its own message stands above.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "step_worker.py"), "--output", folder]
        command += ["--setting", json.dumps(asdict(setting))]
        code = netns.run_on(hosts, command, port)
        if code != 0:
            raise RuntimeError(f"a rank ended with {code}")
        files = [Path(folder) / f"rank{host.index}.json" for host in hosts]
        by_rank = [json.loads(file.read_text()) for file in files]
    return [_summary(records, setting) for records in zip(*by_rank, strict=True)]


def _summary(records: Sequence[Record], setting: Setting) -> Record:
    first = records[0]
    step_s = [s for record in records for s in record["step_s"]]
    computed_s = [s for record in records for s in record["forward_backward_s"]]
    turns = (record["block_s"] for record in records)
    blocks_s = [max(block) for block in zip(*turns, strict=True)]
    num_steps = setting.steps * setting.blocks
    optimizer_s = [whole - part for whole, part in zip(step_s, computed_s, strict=True)]
    return {
        "method": first["method"],
        "delay": first["delay"],
        "model_bytes": first["model_bytes"],
        "step_s": statistics.median(step_s),
        "forward_backward_s": statistics.median(computed_s),
        "optimizer_s": statistics.median(optimizer_s),
        "mean_step_s": sum(blocks_s) / num_steps,
        **{
            name: sum(record["moved_bytes"][name] for record in records) / len(records) / num_steps
            for name in first["moved_bytes"]
        },
        "steps_ms": [round(1e3 * s, 2) for s in step_s],
    }


def gossip_perf_program() -> Path | None:
    """The newest one that was built; None if there is none."""
    built = sorted(HERE.parent.glob("build/*/gossip_perf"), key=lambda file: file.stat().st_mtime)
    return built[-1] if built else None


def gossip_perf_s(
    program: Path, hosts: Sequence[netns.Host], model_bytes: int, wire: str, port: int
) -> float:
    """Median time in which gossip_perf exchanges and mixes a model on these hosts, in its segments.

    Raises:
        subprocess.CalledProcessError: It failed; its own message stands above.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        command = [str(program), "-b", str(model_bytes), "-x", wire, "-c", "0"]
        command += ["-n", "5", "-w", "1", "-j", str(file)]
        code = netns.run_on(hosts, command, port)
        if code != 0:
            raise subprocess.CalledProcessError(code, command)
        return float(json.loads(file.read_text())["sizes"][0]["p50_s"])


def table(rows: Sequence[Record]) -> str:
    """The rows as text; bytes as multiples of the fp32 model."""
    lines = [
        "                                     step   sent per rank and step, in fp32 models",
        "                                       ms     payload    engine's wire    interface",
    ]
    for row in rows:
        counters = ("payload", "wire", "interface")
        sent = [row[f"{c}_sent_bytes"] / row["model_bytes"] for c in counters]
        lines.append(
            f"{row['method']:28} {1e3 * row['step_s']:12.1f} "
            f"{sent[0]:11.3f} {sent[1]:16.3f} {sent[2]:12.3f}"
        )
    return "\n".join(lines)
