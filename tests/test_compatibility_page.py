"""docs/ddp-compatibility.md says what its sources say, and names tests that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from build_compatibility import PRESETS, TABLES, verdict
from ddp_features import FEATURES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def row(test: str = "Case.test_x", *, cpu_for_gpu: bool = False, **outcomes: str) -> dict[str, Any]:
    given = {"torch": "passed", "allreduce": "passed", "crossover": "passed", **outcomes}
    told = {name: {"outcome": outcome, "message": "why"} for name, outcome in given.items()}
    return {"suite": "suite", "test": test, "cpu_for_gpu": cpu_for_gpu, **told}


def test_regenerating_the_tables_changes_nothing() -> None:
    command = [sys.executable, str(DOCS / "build_compatibility.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_table_has_its_place_on_the_page() -> None:
    names = re.findall(r"<!-- table (\S+) -->", (DOCS / "ddp-compatibility.md").read_text())
    assert sorted(names) == sorted(TABLES)


def test_every_feature_names_a_test_that_exists() -> None:
    def functions(path: Path) -> set[str]:
        nodes = ast.walk(ast.parse(path.read_text()))
        return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}

    missing = []
    for feature in FEATURES:
        file, _, function = feature.test.partition("::")
        path = ROOT / "tests" / file
        if not path.is_file() or function not in functions(path):
            missing.append(feature.test)
    assert missing == []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (row(), "passed"),
        (row(cpu_for_gpu=True), "adapted"),
        (row(torch="failed"), "inapplicable"),
        (row(allreduce="failed", crossover="failed"), "failed"),
        (
            row("C.test_invalid_static_graph", allreduce="failed", crossover="failed"),
            "inapplicable",
        ),
        (row("C.test_invalid_static_graph"), "passed"),
    ],
)
def test_a_verdict_follows_from_the_outcomes(given: dict[str, Any], wanted: str) -> None:
    assert {verdict(given, preset)[0] for preset in PRESETS} == {wanted}


def test_equal_replicas_excuse_crossover_alone() -> None:
    test = row("Case.test_DistributedDataParallelCPU", allreduce="failed", crossover="failed")
    assert verdict(test, "allreduce")[0] == "failed"
    assert verdict(test, "crossover")[0] == "inapplicable"
