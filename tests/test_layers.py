"""The layering of the C++ sources and the size of files, read from the sources themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
MAX_LINES = 400
QUOTED = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
ANGLED = re.compile(r"^\s*#\s*include\s*<([^>]+)>", re.MULTILINE)

# A standard C++ header has neither a slash nor a suffix.
STANDARD = re.compile(r"[a-z_0-9]+")

ALLOWED_PARTS = {
    "core": {"core"},
    "host": {"core", "host"},
    "cuda": {"core", "cuda"},
}


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in CPP_SUFFIXES)


def forbidden_includes(part: str, text: str) -> list[str]:
    """Project headers of other parts than `part` may see; in core, also headers not of C++."""
    wrong = [h for h in QUOTED.findall(text) if h.split("/")[0] not in ALLOWED_PARTS[part]]
    if part == "core":
        wrong += [h for h in ANGLED.findall(text) if not STANDARD.fullmatch(h)]
    return wrong


@pytest.mark.parametrize("part", ["core", "host", "cuda"])
def test_each_part_includes_only_what_lies_below_it(part: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): headers
        for path in sources(ROOT / "csrc" / part)
        if (headers := forbidden_includes(part, path.read_text()))
    }
    assert wrong == {}


def test_core_and_host_have_sources_to_check() -> None:
    assert sources(ROOT / "csrc" / "core")
    assert sources(ROOT / "csrc" / "host")


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("core", '#include "host/kernels.h"'),
        ("core", "#include <sys/socket.h>"),
        ("core", "#include <torch/torch.h>"),
        ("host", '#include "cuda/launch.h"'),
        ("cuda", '  # include "host/kernels.h"'),
    ],
)
def test_an_include_across_the_layers_is_noticed(part: str, line: str) -> None:
    assert forbidden_includes(part, f"#include <vector>\n{line}\n")


def test_only_the_binding_includes_python_and_only_it_may_see_host_and_cuda() -> None:
    for path in sources(ROOT / "csrc"):
        text = path.read_text()
        if path.relative_to(ROOT / "csrc").parts[0] == "bindings":
            continue
        assert not re.search(r"<(pybind11/|Python\.h)", text), path
        parts = {header.split("/")[0] for header in QUOTED.findall(text)}
        assert not {"host", "cuda"} <= parts, path


def test_no_file_is_longer_than_400_lines() -> None:
    folders = ["csrc", "crossover_comm", "tests", "examples", "benchmarks", "scripts"]
    files = [ROOT / "setup.py", ROOT / "CMakeLists.txt", ROOT / "Makefile"]
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in CPP_SUFFIXES | {".py", ".pyi", ".sh"}:
                files.append(path)
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
