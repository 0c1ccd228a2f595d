"""Our declarations of NCCL's binary interface are the real ones; the loader loads the real one.

The nvidia-nccl packages are fetched once and kept in pytest's cache; where they cannot be had, the
tests are skipped with the reason. Nothing here needs a GPU or the CUDA toolkit.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

VERSIONS = ("2.28.9", "2.30.7")
DOWNLOAD_TIMEOUT_S = 240

# What nccl.h takes from the toolkit's headers.
CUDA_RUNTIME_STUB = """#pragma once
#include <stddef.h>
#define CUDART_VERSION 13000
typedef struct CUstream_st* cudaStream_t;
"""


def fetch(version: str, folder: Path) -> None:
    """Puts nccl.h and libnccl.so.2 of one version into `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--disable-pip-version-check", "--dest", str(partial), f"nvidia-nccl-cu13=={version}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"nvidia-nccl-cu13 {version}: no download within {DOWNLOAD_TIMEOUT_S} s")
    wheels = list(partial.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        pytest.skip(f"nvidia-nccl-cu13 {version} cannot be fetched: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in ("include/nccl.h", "lib/libnccl.so.2"):
            (partial / Path(name).name).write_bytes(wheel.read(f"nvidia/nccl/{name}"))
    wheels[0].unlink()
    partial.rename(folder)


@pytest.fixture(scope="module", params=VERSIONS)
def nccl(request: pytest.FixtureRequest) -> Path:
    """A folder with nccl.h and libnccl.so.2 of one real version."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the packages are looked for on x86_64, this is {platform.machine()}")
    folder = request.config.cache.mkdir("nccl") / str(request.param)
    if not folder.exists():
        fetch(request.param, folder)
    return folder


def compile_check(checkout: Path, nccl: Path, stubs: Path, *options: str) -> str:
    """What the compiler says to tests/cpp/nccl_abi_check.cpp; empty: all assertions hold."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (stubs / "cuda_runtime.h").write_text(CUDA_RUNTIME_STUB)
    for name in ("cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h"):
        (stubs / name).touch()
    command = [
        compiler, "-std=c++20", "-fsyntax-only", *options,
        "-I", str(checkout / "csrc"), "-isystem", str(stubs), "-isystem", str(nccl),
        str(checkout / "tests" / "cpp" / "nccl_abi_check.cpp"),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_every_size_offset_value_and_signature_is_the_real_one(
    checkout: Path, nccl: Path, tmp_path: Path
) -> None:
    assert compile_check(checkout, nccl, tmp_path) == ""


def test_a_declaration_that_differs_is_noticed(checkout: Path, nccl: Path, tmp_path: Path) -> None:
    header = (checkout / "csrc" / "cuda" / "nccl_abi.h").read_text()
    wrong = tmp_path / "wrong" / "cuda"
    wrong.mkdir(parents=True)
    (wrong / "nccl_abi.h").write_text(header.replace("int max_ctas", "double max_ctas"))
    said = compile_check(checkout, nccl, tmp_path, "-I", str(wrong.parent))
    assert "static assertion failed" in said
    assert "max_ctas" in said


def test_the_real_library_is_loaded_and_gives_ids_without_a_gpu(nccl: Path) -> None:
    program = """
import sys
from crossover_comm import _C
library = _C.load_nccl(sys.argv[1], "")
assert len({library.unique_id() for _ in range(3)}) == 3
print(library.version, library.source, library.path)
"""
    pytest.importorskip("crossover_comm._C", reason="the extension is not built")
    path = nccl / "libnccl.so.2"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [nccl.name, "CROSSOVER_NCCL_SO", str(path)], done.stderr
