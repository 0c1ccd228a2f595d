"""Builds tables and plots of docs/results.md and docs/benchmarks.md from benchmarks/results/.

    python docs/build_results.py            # rewrites the tables of the pages, and their plots
    python docs/build_results.py --check    # fails if a table on a page is not what JSON says

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; everything else on a page is
written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import benchmark_tables
import result_tables
from benchmark_plots import plot_benchmarks
from study_statistics import Results, batch_lines, workers_lines

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PAGES = {
    DOCS / "results.md": result_tables.TABLES,
    DOCS / "benchmarks.md": benchmark_tables.TABLES,
}
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load() -> Results:
    """Rows of every result file, by the file's name without its suffix, "cpp/" before C++ ones."""
    files = [*RESULTS.glob("*.json"), *(RESULTS / "studies").glob("*.json")]
    contents = {path.stem: json.loads(path.read_text()) for path in files}
    rows = {name: content["rows"] for name, content in contents.items() if "rows" in content}
    google = {path.stem: json.loads(path.read_text()) for path in (RESULTS / "cpp").glob("*.json")}
    return rows | {f"cpp/{name}": content["benchmarks"] for name, content in google.items()}


def rebuilt(page: str, tables: Mapping[str, Callable[[Results], str]], results: Results) -> str:
    """A page with every table made anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{tables[match[2]](results)}\n{match[3]}"

    return BLOCK.sub(block, page)


def plot(results: Results) -> None:
    """Accuracy over workers and over batches, as PNG."""
    from crossover_comm.simulate.report import plot_lines

    folder = DOCS / "plots"
    folder.mkdir(exist_ok=True)
    for task in ("digits", "characters"):
        plot_lines(
            folder / f"workers_{task}.png",
            workers_lines(results, task),
            x="workers, global batch fixed",
            y="accuracy minus all-reduce's (points)",
        )
    plot_lines(
        folder / "batch.png",
        batch_lines(results),
        x="global batch, 16 workers, epochs fixed",
        y="test accuracy at the best rate (%)",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    options = parser.parse_args()
    results = load()
    differ = False
    for path, tables in PAGES.items():
        page = path.read_text()
        new = rebuilt(page, tables, results)
        if options.check and new != page:
            print(f"{path}: a table differs; run python docs/build_results.py", file=sys.stderr)
            differ = True
        elif not options.check:
            path.write_text(new)
    if not options.check:
        plot(results)
        plot_benchmarks(results, DOCS / "plots")
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
