"""Which of torch's tests use its wrapper, and the classes that hold them."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import unittest
from pathlib import Path
from typing import Any

__all__ = ["SUITES", "load"]

WHEEL = "torch.testing._internal.distributed.distributed_test"
SUITES = (WHEEL, "test_c10d_gloo", "test_c10d_pypg")
"""Modules of tests: one in torch's wheel, the others in a source checkout's test/distributed."""

_WRAPS = re.compile(r"\b(DistributedDataParallel|DDP)\(")


def load(suite: str, source: Path) -> dict[str, type[unittest.TestCase]]:
    """The tests of a suite that build a wrapper, as ``Class.test``, and the class of each.

    Args:
        suite: One of `SUITES`.
        source: Of a checkout of torch.
    """
    if suite != WHEEL:
        sys.path.insert(0, str(source / "test" / "distributed"))
    module = importlib.import_module(suite)
    classes = _spawned(module) if suite == WHEEL else _classes(module)
    found = {f"{cls.__name__}.{name}": cls for cls in classes for name in _wrapping_tests(cls)}
    return dict(sorted(found.items()))


def _spawned(module: Any) -> list[type[unittest.TestCase]]:
    """As test/distributed/test_distributed_spawn.py of the checkout puts it together."""

    class TestDistBackendWithSpawn(module.TestDistBackend, module.DistributedTest._DistTestBase):  # type: ignore[misc]
        def setUp(self) -> None:
            super().setUp()
            self._spawn_processes()

    return [TestDistBackendWithSpawn]


def _classes(module: Any) -> list[type[unittest.TestCase]]:
    return [
        cls
        for cls in vars(module).values()
        if isinstance(cls, type)
        and issubclass(cls, unittest.TestCase)
        and cls.__module__ == module.__name__
    ]


def _wrapping_tests(cls: type) -> list[str]:
    """Tests whose code, or a method that it calls, builds a wrapper."""
    sources = {
        name: _source(getattr(cls, name)) for name in dir(cls) if callable(getattr(cls, name))
    }
    found = {name for name, text in sources.items() if _WRAPS.search(text)}
    while True:
        callers = re.compile(rf"self\.({'|'.join(map(re.escape, sorted(found))) or '(?!)'})\b")
        more = {name for name, text in sources.items() if callers.search(text)} | found
        if more == found:
            return sorted(name for name in found if name.startswith("test"))
        found = more


def _source(function: Any) -> str:
    if "torch" not in (getattr(function, "__module__", None) or "torch") and not _is_test(function):
        return ""
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def _is_test(function: Any) -> bool:
    return (getattr(function, "__module__", "") or "").startswith("test_")
