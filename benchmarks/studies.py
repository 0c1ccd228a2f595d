"""Trains what docs/results.md reports and keeps it in benchmarks/results/studies/.

    python benchmarks/studies.py                    # everything that is missing
    python benchmarks/studies.py workers --minutes 10

Goes on where the last call stopped: a training that its file holds is not repeated, and what no
study asks for any more is dropped from its file.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from study_cells import STUDIES, Cell
from tqdm import tqdm

from crossover_comm.simulate.report import circumstances
from crossover_comm.simulate.tasks import task_named
from crossover_comm.simulate.training import train

RESULTS = Path(__file__).parent / "results" / "studies"

Row = dict[str, Any]


def row_of(cell: Cell) -> Row:
    """Everything that tells a cell from the others."""
    described = cell.method.describe()
    described.pop("tables", None)
    return {
        "study": cell.study,
        "label": cell.label,
        "task": cell.task,
        "workers": cell.workers,
        "method": described,
        "recipe": asdict(cell.recipe),
    }


def rows_of(name: str, known: list[Row]) -> list[tuple[Row, Cell]]:
    """A row for every cell of the study, with the outcomes of the known row that equals it."""
    rows: list[tuple[Row, Cell]] = []
    for cell in STUDIES[name]():
        wanted = row_of(cell)
        equal = (row for row in known if {k: row.get(k) for k in wanted} == wanted)
        outcomes: Row = next((row["outcomes"] for row in equal), {})
        rows.append(({**wanted, "outcomes": dict(outcomes)}, cell))
    return rows


def save(path: Path, name: str, rows: list[Row]) -> None:
    content = {
        "command": f"python benchmarks/studies.py {name}",
        "versions": circumstances(),
        "rows": [row for row in rows if row["outcomes"]],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def run(name: str, deadline: float) -> None:
    path = RESULTS / f"{name}.json"
    known: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    cells = rows_of(name, known)
    rows = [row for row, _ in cells]
    todo = [(c, r, s) for r, c in cells for s in c.seeds if str(s) not in r["outcomes"]]
    save(path, name, rows)
    with tqdm(todo, desc=name, unit="training") as bar:
        for cell, row, seed in bar:
            if time.monotonic() > deadline:
                break
            bar.set_postfix_str(f"{cell.label}, {cell.workers} workers")
            outcome = train(
                task_named(cell.task), cell.method, cell.recipe, workers=cell.workers, seed=seed
            )
            row["outcomes"][str(seed)] = outcome.as_json()
            save(path, name, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("studies", nargs="*", metavar="study", help=f"of {', '.join(STUDIES)}")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * options.minutes
    for name in options.studies or STUDIES:
        if name not in STUDIES:
            parser.error(f"expected one of {', '.join(STUDIES)}, got {name}")
        run(name, deadline)


if __name__ == "__main__":
    main()
