"""The stubs name exactly what the built extensions have, arguments included."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest

_C = pytest.importorskip("crossover_comm._C", reason="the extension is not built")

PACKAGE = Path(__file__).resolve().parents[1] / "crossover_comm"
Names = dict[str, list[str] | None]
"""Qualified name -> names of its arguments; None for a property or a class."""


def stub_names(body: list[ast.stmt], prefix: str = "") -> Names:
    names: Names = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = None
            names |= stub_names(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
            names[prefix + node.name] = None if node.decorator_list else arguments
    return names


def documented_arguments(function: object) -> list[str]:
    """Argument names from the signature that pybind11 writes into the docstring."""
    signature = (function.__doc__ or "").partition("\n")[0].rpartition(" -> ")[0]
    inside = signature.partition("(")[2].rpartition(")")[0]
    while inside != (inside := re.sub(r"\[[^][]*\]|\([^()]*\)", "", inside)):
        pass
    arguments = [part.strip() for part in inside.split(",")]
    return [a.partition(":")[0] for a in arguments if a not in ("", "*", "/")]


def extension_names(module: ModuleType) -> Names:
    names: Names = {}
    for name, value in vars(module).items():
        if name.startswith("__") or not callable(value):
            continue
        if not isinstance(value, type):
            names[name] = documented_arguments(value)
            continue
        names[name] = None
        for member, attribute in vars(value).items():
            if isinstance(attribute, property):
                names[f"{name}.{member}"] = None
            elif not member.startswith("_") or "__init__(self:" in (attribute.__doc__ or ""):
                names[f"{name}.{member}"] = documented_arguments(attribute)
    return names


def assert_alike(stub_path: Path, module: ModuleType) -> None:
    stub = stub_names(ast.parse(stub_path.read_text()).body)
    extension = extension_names(module)
    assert {n: extension.get(n, "absent") for n in stub} == stub
    assert set(extension) - set(stub) == set()


def test_the_stub_and_the_extension_have_the_same_names_and_arguments() -> None:
    assert_alike(PACKAGE / "_C.pyi", _C)
