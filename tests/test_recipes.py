"""The scripts of docs/recipes.md run, and gossip."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from spawn import run_ranks

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
RECIPE = re.compile(r"<!-- recipe (\w+) -->\n```python\n(.*?)```", re.DOTALL)
RECIPES = dict(RECIPE.findall(PAGE.read_text()))
TORCHRUN = {"TORCHELASTIC_RUN_ID": "recipe", "GROUP_RANK": "0"}


def run(path: str) -> None:
    sys.argv = [path]
    runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("library", ["accelerate", "lightning"])
def test_a_recipe_trains_to_a_small_loss_and_exchanges_parameters(
    library: str, tmp_path: Path
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed: pip install {library}")
    script = tmp_path / "recipe.py"
    script.write_text(RECIPES[library])
    text = run_ranks(run, 2, str(script), env=TORCHRUN)[0].stdout
    found = re.search(r"^loss: (\S+), sent: (\d+)$", text, re.MULTILINE)
    assert found is not None, text
    assert float(found[1]) < 0.01
    assert int(found[2]) > 0
