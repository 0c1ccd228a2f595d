"""Builds the tables and plots of docs/results.md from the JSON under benchmarks/results/.

    python docs/build_results.py            # rewrites the tables of the page, and its plots
    python docs/build_results.py --check    # fails if a table on the page is not what JSON says

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; everything else on the page is
written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from result_tables import TABLES
from study_statistics import Results, batch_lines, workers_lines

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PAGE = DOCS / "results.md"
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load() -> Results:
    """Rows of every result file, by the file's name without its suffix."""
    files = [*RESULTS.glob("*.json"), *(RESULTS / "studies").glob("*.json")]
    contents = {path.stem: json.loads(path.read_text()) for path in files}
    return {name: content["rows"] for name, content in contents.items() if "rows" in content}


def rebuilt(page: str, results: Results) -> str:
    """The page with every table made anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{TABLES[match[2]](results)}\n{match[3]}"

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
    page = PAGE.read_text()
    new = rebuilt(page, results)
    if options.check:
        if new != page:
            print(f"{PAGE}: a table differs; run python docs/build_results.py", file=sys.stderr)
        return int(new != page)
    PAGE.write_text(new)
    plot(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
