"""Training scripts written for torch's DistributedDataParallel, then run under ours.

All that is changed is the import line.
"""

from __future__ import annotations

import difflib
import re
import runpy
import sys
from pathlib import Path

import pytest
from spawn import run_ranks, start_ranks

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "ddp"
THEIRS = "from torch.nn.parallel import DistributedDataParallel\n"
OURS = "from crossover_comm import DistributedDataParallel\n"
ARGUMENTS = {"compiled_transformer": ["--backend=aot_eager"]}
UNTRAINED = {
    "compiled_transformer": 1.6,
    "gan": 0.5,
    "image_classification": 2.3,
    "language_model": 5.5,
    "unused_branches": 0.5,
}
"""What each script's loss is before its first step, to two digits."""


def run(path: str, *arguments: str) -> None:
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def loss_of_torch(script: Path) -> float:
    """What rank 0 prints under torch's wrapper, whose other rank may hang at its very end."""
    with start_ranks(run, 2, str(script), *ARGUMENTS.get(script.stem, [])) as ranks:
        return printed_loss(ranks.wait_for(0).stdout)


def loss_of_ours(script: Path) -> float:
    """What rank 0 prints under ours; both end in order."""
    results = run_ranks(run, 2, str(script), *ARGUMENTS.get(script.stem, []))
    return printed_loss(results[0].stdout)


def printed_loss(output: str) -> float:
    found = re.search(r"^loss: (\d+\.\d+)$", output, re.MULTILINE)
    assert found is not None, output
    return float(found[1])


def with_our_import(script: Path, folder: Path) -> Path:
    """A copy of the script with another import."""
    ported = folder / script.name
    ported.write_text(script.read_text().replace(THEIRS, OURS))
    return ported


def test_there_are_five_scripts() -> None:
    assert sorted(script.stem for script in FOLDER.glob("*.py")) == sorted(UNTRAINED)


@pytest.mark.parametrize("name", UNTRAINED)
def test_a_script_for_torch_trains_under_crossover_with_one_import_changed(
    name: str, tmp_path: Path
) -> None:
    script = FOLDER / f"{name}.py"
    ported = with_our_import(script, tmp_path)
    before, after = (path.read_text().splitlines(keepends=True) for path in (script, ported))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert changed == [f"- {THEIRS}", f"+ {OURS}"]

    theirs, ours = loss_of_torch(script), loss_of_ours(ported)
    assert theirs < 0.6 * UNTRAINED[name]
    assert ours < theirs + 0.1 * UNTRAINED[name]
