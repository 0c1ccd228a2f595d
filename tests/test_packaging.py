"""The wheel carries what an installed package needs, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD_REQUIREMENTS = ("setuptools", "pybind11", "ninja")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    missing = [name for name in BUILD_REQUIREMENTS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"building a wheel without isolation needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> dict[str, list[str]]:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    message = message_from_string(wheel.read(name).decode())
    return {key: [str(value) for value in message.get_all(key, [])] for key in message}


def test_the_wheel_holds_every_module_the_extension_its_stub_and_the_type_marker(
    wheel: zipfile.ZipFile,
) -> None:
    names = set(wheel.namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "crossover_comm").rglob("*.py")}
    assert modules | {"crossover_comm/py.typed", "crossover_comm/_C.pyi"} <= names
    extensions = [n for n in names if n.startswith("crossover_comm/_C.") and n.endswith(".so")]
    assert len(extensions) == 1


def test_the_wheel_holds_nothing_but_the_package_and_its_metadata(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"crossover_comm"}


def test_the_wheel_asks_for_torch_and_numpy_and_python_3_10(wheel: zipfile.ZipFile) -> None:
    fields = metadata(wheel)
    assert [r for r in fields["Requires-Dist"] if "extra ==" not in r] == ["torch>=2.4", "numpy"]
    assert fields["Requires-Python"] == [">=3.10"]
    assert fields["License-Expression"] == ["Apache-2.0"]


def test_the_version_stands_in_one_place(wheel: zipfile.ZipFile) -> None:
    from crossover_comm._version import __version__

    assert metadata(wheel)["Version"] == [__version__]
    assert f'"{__version__}"' not in (ROOT / "pyproject.toml").read_text()
