"""The table of docs/ddp_features.py: complete, and held by tests that exist."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from crossover_comm.ddp_arguments import ABSENT

ROOT = Path(__file__).resolve().parents[1]


def features() -> list[Any]:
    spec = importlib.util.spec_from_file_location("ddp_features", ROOT / "docs/ddp_features.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: list[Any] = module.FEATURES
    return found


def names_of(kind: str) -> set[str]:
    return {name for f in features() if f.kind == kind for name in f.name.split(", ")}


def test_every_argument_of_torch_has_a_row() -> None:
    theirs = set(inspect.signature(nn.parallel.DistributedDataParallel).parameters)
    assert theirs <= names_of("argument")


def test_every_public_method_of_torch_has_a_row_or_a_reason_to_be_absent() -> None:
    theirs = {
        name
        for name, member in vars(nn.parallel.DistributedDataParallel).items()
        if not name.startswith("_") and callable(member)
    }
    assert theirs - {"forward"} <= names_of("method") | set(ABSENT)


@pytest.mark.parametrize("test", sorted({f.test for f in features()}))
def test_a_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    text = (ROOT / "tests" / file).read_text()
    assert re.search(rf"^def {name}\(", text, re.MULTILINE)
