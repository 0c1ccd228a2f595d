"""A GPU and an NCCL of host memory under the code that runs on real ones, for machines without.

`crossover_comm._cuda` is built from its own sources over tests/fake: the streams, kernels and
groups are fakes, whatever orders them is real. Tensors of torch on the CPU stand for tensors on
"cuda:0". Ranks are threads, each with a training stream of its own.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch

from crossover_comm import device, inputs, nccl

__all__ = ["GPU", "FakeGpu", "build_fake_gpu", "fake_gpu"]

ROOT = Path(__file__).resolve().parents[1]
GPU = torch.device("cuda", 0)
CAPTURES = "is_current_stream_capturing"
BUILD_VARIABLE = "CROSSOVER_FAKE_CUDA_DIR"
"""Names a folder with the two libraries, built already."""


class FakeGpu:
    """The controls of the one fake GPU of this process."""

    def __init__(self, folder: Path) -> None:
        (module,) = folder.glob("_cuda.*.so")
        self.nccl_path = str(folder / "fake_nccl.so")
        self.module = _load(module)
        self._library = ctypes.CDLL(str(module))
        self._library.fake_gpu_training_stream.restype = ctypes.c_uint64
        self._nccl = ctypes.CDLL(self.nccl_path)
        assert self._library.fake_gpu_connect_nccl(self.nccl_path.encode())
        self._own = threading.local()

    def stream(self, _: torch.device) -> int:
        """The training stream of the calling thread."""
        if not hasattr(self._own, "stream"):
            self._own.stream = int(self._library.fake_gpu_training_stream())
        return int(self._own.stream)

    def capture(self, is_capturing: bool) -> None:
        """Begins or ends a capture on the calling thread's training stream."""
        self._library.fake_gpu_set_capturing(
            ctypes.c_uint64(self.stream(GPU)), ctypes.c_int(is_capturing)
        )

    def fail_next(self, call: str) -> None:
        """The next call of this name in CUDA's runtime fails."""
        self._library.fake_gpu_fail_next(call.encode())

    def calls(self, call: str) -> int:
        """Number of calls of this name so far."""
        return int(self._library.fake_gpu_calls(call.encode()))

    def script_nccl(self, text: str) -> None:
        """See tests/cpp/fake_nccl.h."""
        self._nccl.fake_nccl_script(text.encode())

    @contextmanager
    def installed(self) -> Iterator[FakeGpu]:
        """Inside, CPU tensors stand for tensors on the fake GPU."""
        with ExitStack() as stack:
            for module in (device, inputs):
                stack.enter_context(mock.patch.object(module, "device_of", return_value=GPU))
            stack.enter_context(mock.patch.object(device, "cuda_module", return_value=self.module))
            stack.enter_context(mock.patch.object(device, "current_stream", self.stream))
            stack.enter_context(mock.patch.object(torch.cuda, CAPTURES, return_value=False))
            stack.enter_context(
                mock.patch.dict(os.environ, {nccl.OVERRIDE_VARIABLE: self.nccl_path})
            )
            nccl.load_nccl.cache_clear()
            self.script_nccl("")
            yield self
            nccl.load_nccl.cache_clear()


def build_fake_gpu() -> Path:
    """The folder of the libraries, beside those of the package's own build; skips without tools."""
    given = os.environ.get(BUILD_VARIABLE)
    if given:
        return Path(given)
    missing = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]
    if importlib.util.find_spec("pybind11") is None:
        missing.append("pybind11")
    if missing:
        pytest.skip(f"the fake GPU needs {', '.join(missing)} to be built")
    build = ROOT / "build" / f"python-{sys.implementation.cache_tag}"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
        f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release",
        "-DCROSSOVER_TESTS=OFF", "-DCROSSOVER_FAKE_CUDA=ON",
    ]  # fmt: skip
    subprocess.run(configure, check=True, capture_output=True)
    targets = ["python_fake_cuda", "python_fake_nccl"]
    subprocess.run(["cmake", "--build", str(build), "--target", *targets], check=True)
    return build / "fake"


@functools.cache
def _only_fake_gpu() -> FakeGpu:
    return FakeGpu(build_fake_gpu())


@pytest.fixture
def fake_gpu() -> Iterator[FakeGpu]:
    """The fake GPU, installed."""
    with _only_fake_gpu().installed() as gpu:
        yield gpu


def _load(path: Path) -> ModuleType:
    """Under another name than the real one, which stays absent or untouched."""
    spec = importlib.util.spec_from_file_location("fake._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
