"""Result files of the benchmarks: rows, and what a reader needs to judge and to repeat them."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from crossover_comm.simulate.report import circumstances

__all__ = ["RESULTS", "Record", "call", "machine", "merge"]

RESULTS = Path(__file__).parent / "results"

Record: TypeAlias = dict[str, Any]


def call() -> str:
    """The command line of this process, as a user would write it."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def machine() -> Record:
    """Cores and type of the CPU, kernel and default congestion control of TCP; no names."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cores": os.cpu_count(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "kernel": platform.release().partition("-")[0],
    }


def merge(path: Path, rows: Sequence[Record], key: Sequence[str]) -> None:
    """Writes rows into a result file; those there that agree with a new one in `key` give way.

    Each row keeps the command that made it. Rows of other versions or of another machine are
    dropped: what stands in one file can be compared.
    """
    content = {"versions": circumstances(), "machine": machine()}
    known: list[Record] = []
    if path.exists():
        before = json.loads(path.read_text())
        if {name: before.get(name) for name in content} == content:
            known = before["rows"]
        else:
            print(f"{path.name}: rows of other versions or another machine are dropped")
    table = {tuple(row[k] for k in key): row for row in known}
    table |= {tuple(row[k] for k in key): {**row, "command": call()} for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "rows": list(table.values())}, indent=1) + "\n")
