"""Runs torch's own tests of DistributedDataParallel against ours and writes what came of it.

    python scripts/ddp_compatibility SOURCE       # of torch; only test/distributed is read
    python docs/build_compatibility.py            # then makes the page of the results

Each test runs first with torch's wrapper: what does not pass there is no test of ours. Those that
ask for GPUs run on the CPU in their place, if torch's wrapper passes them there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from suites import SUITES

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER.parents[1] / "benchmarks" / "results" / "ddp_compatibility.json"
PRESETS = ("allreduce", "crossover")

Outcomes = dict[str, dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="folder of a checkout of torch")
    options = parser.parse_args()
    rows = [row for suite in SUITES for row in _rows(suite, options.source)]
    checkout = (options.source / "version.txt").read_text().strip()
    results = {
        "command": "python scripts/ddp_compatibility SOURCE",
        "torch": torch.__version__,
        "sources": {suite: _version(suite, checkout) for suite in SUITES},
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()}",
        "tests": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _rows(suite: str, source: Path) -> Iterable[dict[str, object]]:
    """The outcomes of each test: of torch's wrapper, then of ours with each preset."""
    control = {False: _run(suite, source)}
    others = [name for name, outcome in control[False].items() if outcome["outcome"] != "passed"]
    control[True] = _run(suite, source, "--cpu-for-gpu", only=others)
    for stands_in, outcomes in control.items():
        names = [name for name, outcome in outcomes.items() if outcome["outcome"] == "passed"]
        flags = ["--cpu-for-gpu"] * stands_in
        ours = {
            preset: _run(suite, source, *flags, f"--preset={preset}", only=names)
            for preset in PRESETS
        }
        for name, outcome in outcomes.items():
            if stands_in or outcome["outcome"] == "passed":
                row = {"suite": suite, "test": name, "cpu_for_gpu": stands_in, "torch": outcome}
                yield row | {preset: ours[preset].get(name) for preset in PRESETS}


def _run(suite: str, source: Path, *flags: str, only: list[str] | None = None) -> Outcomes:
    if only == []:
        return {}
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, str(FOLDER / "worker.py"), suite, str(source), out.name, *flags]
        names = [] if only is None else ["--only", *only]
        subprocess.run([*command, *names], check=True, stdout=subprocess.DEVNULL)
        outcomes: Outcomes = json.loads(Path(out.name).read_text())
    return outcomes


def _version(suite: str, checkout: str) -> str:
    return torch.__version__ if suite.startswith("torch.") else checkout


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if "model name" in line), "unknown CPU")


if __name__ == "__main__":
    main()
