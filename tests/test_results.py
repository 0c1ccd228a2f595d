"""docs/results.md and docs/benchmarks.md say what the result files say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import benchmark_tables
import pytest
import result_tables
from study_statistics import at_best_rate

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {"results.md": result_tables.TABLES, "benchmarks.md": benchmark_tables.TABLES}


def test_regenerating_the_tables_changes_nothing() -> None:
    command = [sys.executable, str(DOCS / "build_results.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_table_has_its_place_on_its_page(page: str) -> None:
    names = re.findall(r"<!-- table (\S+) -->", (DOCS / page).read_text())
    assert sorted(names) == sorted(PAGES[page])


@pytest.mark.parametrize("page", PAGES)
def test_every_plot_of_a_page_is_there(page: str) -> None:
    plots = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (DOCS / page).read_text())
    assert plots
    assert [path for path in plots if not (DOCS / path).is_file()] == []


def test_the_best_rate_is_never_chosen_by_the_seed_it_is_judged_at() -> None:
    def row(*accuracies: float) -> dict[str, object]:
        outcomes = {str(seed): {"accuracy": value} for seed, value in enumerate(accuracies)}
        return {"outcomes": outcomes}

    assert at_best_rate([row(90, 10, 90, 10), row(50, 60, 50, 60)]) == {
        "0": 50,
        "2": 50,
        "1": 10,
        "3": 10,
    }
