"""A thin CMake driver: CMakeLists.txt holds the sources and flags of the extensions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CMAKE_MINIMUM = (3, 22)


def has_usable_cmake() -> bool:
    """Whether a new enough `cmake` runs; a stale launcher of another environment does not."""
    try:
        text = subprocess.run(
            ["cmake", "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    found = re.search(r"version (\d+)\.(\d+)", text)
    return found is not None and (int(found[1]), int(found[2])) >= CMAKE_MINIMUM


class CMakeBuild(build_ext):
    """Configures, builds and installs the extensions where setuptools expects them.

    setuptools knows of ``_C`` alone: whether there is a ``_cuda`` is decided by CMake.
    """

    def build_extension(self, ext: Extension) -> None:
        prefix = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = ROOT / "build" / f"python-{sys.implementation.cache_tag}"
        ninja = shutil.which("ninja")
        if ninja is None:
            raise RuntimeError("ninja is needed to build crossover_comm: pip install ninja")
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DCROSSOVER_PYTHON=ON",
            "-DCROSSOVER_TESTS=OFF",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        install = ["cmake", "--install", str(build), "--prefix", str(prefix), "--strip"]
        subprocess.run(install, check=True)

    def copy_extensions_to_source(self) -> None:
        """For an editable install. A ``_cuda`` of an earlier build does not outlive it."""
        super().copy_extensions_to_source()
        package = ROOT / "crossover_comm"
        built = Path(self.build_lib).resolve() / package.name
        for stale in package.glob("_cuda.*.so"):
            stale.unlink()
        for module in built.glob("_cuda.*.so"):
            shutil.copy2(module, package / module.name)


setup(
    ext_modules=[Extension("crossover_comm._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=[] if has_usable_cmake() else ["cmake>=3.22"],
)
