"""Builds the tables of docs/ddp-compatibility.md.

    python docs/build_compatibility.py            # rewrites the tables of the page
    python docs/build_compatibility.py --check    # fails if a table is not what its source says

Sources: benchmarks/results/ddp_compatibility.json, which scripts/ddp_compatibility writes;
ddp_features.py and compatibility_reasons.py beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from build_results import BLOCK
from compatibility_reasons import EQUAL_REPLICAS, INTERNAL_SUITES, INTERNALS, NO_CONTROL
from ddp_features import FEATURES

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results" / "ddp_compatibility.json"
PAGE = DOCS / "ddp-compatibility.md"
PRESETS: Final = ("allreduce", "crossover")

Row = dict[str, Any]


def verdict(row: Row, preset: str) -> tuple[str, str]:
    """What became of a test: passed, adapted, inapplicable or failed; and why not passed as it is.

    Adapted: the test asks for GPUs and ran on the CPU, with torch's wrapper too.
    """
    if row["torch"]["outcome"] != "passed":
        return "inapplicable", NO_CONTROL[row["torch"]["outcome"]]
    outcome = row[preset]["outcome"]
    if outcome == "passed":
        return ("adapted", "CPU in place of a GPU") if row["cpu_for_gpu"] else ("passed", "")
    test = row["test"].rpartition(".")[2]
    internal = INTERNAL_SUITES.get(row["suite"]) or INTERNALS.get(test)
    if internal is not None:
        return "inapplicable", internal
    if preset == "crossover" and test in EQUAL_REPLICAS:
        return "inapplicable", "asserts equal replicas or averaged gradients"
    return "failed", row[preset]["message"]


def count_table(results: Row) -> str:
    """Tests of each verdict and reason, by preset."""
    counts = Counter(
        (kind, reason if kind == "inapplicable" else "", preset)
        for preset in PRESETS
        for row in results["tests"]
        for kind, reason in [verdict(row, preset)]
    )
    order = {"passed": 0, "adapted": 1, "failed": 2, "inapplicable": 3}
    keys = sorted({key[:2] for key in counts}, key=lambda key: (order[key[0]], key))
    lines = [
        [kind, reason, *(str(counts[kind, reason, preset]) for preset in PRESETS)]
        for kind, reason in keys
    ]
    lines.append(["all", "", *(str(len(results["tests"])) for _ in PRESETS)])
    return table(["outcome", "reason", *(f"`{preset}`" for preset in PRESETS)], lines)


def test_table(results: Row) -> str:
    """Every test with its verdicts."""
    lines = []
    for row in results["tests"]:
        suite = row["suite"].rpartition(".")[2]
        verdicts = [_spelled(verdict(row, preset)) for preset in PRESETS]
        lines.append([f"{suite}.{row['test']}", *verdicts])
    return table(["test", *(f"`{preset}`" for preset in PRESETS)], lines)


def feature_table(_: Row) -> str:
    """Every argument, method and feature of torch's wrapper under gossip."""
    lines = [[f"`{f.name}`", f.kind, f.meaning, f"`{f.test}`"] for f in FEATURES]
    return table(["name", "kind", "under gossip", "test, below tests/"], lines)


def version_table(results: Row) -> str:
    """Where the tests come from."""
    lines = [[suite.rpartition(".")[2], version] for suite, version in results["sources"].items()]
    return table(["module of tests", "of torch"], lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)


TABLES: Final[dict[str, Callable[[Row], str]]] = {
    "counts": count_table,
    "tests": test_table,
    "features": feature_table,
    "versions": version_table,
}


def rebuilt(page: str, results: Row) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]](results)}\n{match[3]}", page)


def _spelled(given: tuple[str, str]) -> str:
    kind, reason = given
    return kind if kind in ("passed", "adapted") else f"{kind}: {reason}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    options = parser.parse_args()
    page = PAGE.read_text()
    new = rebuilt(page, json.loads(RESULTS.read_text()))
    if options.check:
        if new != page:
            print(
                f"{PAGE.name}: a table differs: python docs/build_compatibility.py", file=sys.stderr
            )
        return int(new != page)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
