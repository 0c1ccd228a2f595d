"""What is built, what is found on this machine, and what works; the reason for each "no".

    python -m crossover_comm.doctor [--json]

The exit code is 0 if training on the CPU works, else 1.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossover_comm import _C, __version__
from crossover_comm.device import cuda_module
from crossover_comm.errors import CrossoverError, TransportError
from crossover_comm.nccl import OVERRIDE_VARIABLE, load_nccl, torch_nccl_version

__all__ = ["Finding", "diagnose", "main"]

_NUMEL = 10_007
_TIMEOUT_S = 20.0

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        section: "built", "found" or "works".
        name: What was looked at.
        ok: Whether it is there and right.
        detail: What was found; the reason where `ok` is false.
    """

    section: str
    name: str
    ok: bool
    detail: str


def _examine(section: str, name: str, look: Callable[[], str]) -> Finding:
    """A finding whose detail `look` returns; what it raises is the reason of a "no"."""
    try:
        return Finding(section, name, True, look())
    except (CrossoverError, OSError, LookupError) as error:
        return Finding(section, name, False, str(error))


# --- built


def _describe_build() -> str:
    return f"{__version__}, Python {platform.python_version()}, {_C.__file__}"


# --- found


def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise OSError(f"no NVIDIA driver: {error}") from None


def _call(function: str, *arguments: object) -> None:
    code = int(getattr(_driver(), function)(*arguments))
    if code != 0:
        raise OSError(f"{function} failed with CUDA error {code}")


def _describe_driver() -> str:
    version = ctypes.c_int()
    _call("cuDriverGetVersion", ctypes.byref(version))
    return f"for CUDA up to {version.value // 1000}.{version.value % 1000 // 10}"


def _describe_gpus() -> str:
    _call("cuInit", 0)
    count = ctypes.c_int()
    _call("cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise LookupError(
            "the driver shows no GPU" + (f"; CUDA_VISIBLE_DEVICES={shown}" if shown else "")
        )
    names = []
    for ordinal in range(count.value):
        device = ctypes.c_int()
        name = ctypes.create_string_buffer(128)
        _call("cuDeviceGet", ctypes.byref(device), ordinal)
        _call("cuDeviceGetName", name, len(name), device)
        names.append(name.value.decode())
    return ", ".join(names)


def _describe_torch() -> str:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"{torch.__version__}, {cuda}"


def _describe_nccl() -> str:
    nccl = load_nccl()
    return f"{nccl.version}, {nccl.source}: {nccl.path}"


def _compare_with_torch() -> str:
    version = torch_nccl_version()
    if version is None:
        raise LookupError("torch is built without NCCL")
    ours = load_nccl().version
    if ours != version:
        raise LookupError(f"torch has {version}, ours is {ours}; {OVERRIDE_VARIABLE} decides")
    return f"{version}, the same as ours"


# --- works


def _ramp(first: float) -> Floats:
    return (first + np.arange(_NUMEL) % 64).astype(np.float32)


def _expect(what: str, got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    wrong = np.flatnonzero(got != expected)
    if wrong.size > 0:
        at = int(wrong[0])
        raise TransportError(
            f"{what}: {wrong.size} of {got.size} elements are wrong, first element {at}: "
            f"expected {expected[at]}, got {got[at]}"
        )


def _pack_on_cpu() -> str:
    values = _ramp(1.0)
    packed = _C.pack([values.ctypes.data], [_NUMEL], "float32", "bfloat16")
    expected = (values.view(np.uint32) >> 16).astype(np.uint16)
    _expect("pack", np.frombuffer(packed, dtype=np.uint16), expected)
    return f"{_NUMEL} float32 values to bfloat16"


def _local_engines(size: int) -> list[_C.Engine]:
    network = _C.LocalNetwork(size)
    return [
        _C.Engine(
            rank=rank,
            size=size,
            pipes=network.take_pipes(rank),
            timeout_s=_TIMEOUT_S,
            stall_timeout_s=_TIMEOUT_S,
            stall_warning_s=_TIMEOUT_S,
            raise_on_non_finite=True,
            event_capacity=0,
            incarnation=1 + rank,
            warn=lambda text: print(text, file=sys.stderr),
        )
        for rank in range(size)
    ]


def _exchange_on_cpu() -> str:
    """Three ranks of this process average their values over in-process links."""
    size = 3
    tensors = [_ramp(3.0 * rank) for rank in range(size)]
    mean = _ramp(3.0)
    engines = _local_engines(size)
    try:
        for rank, engine in enumerate(engines):
            plan = _C.SegmentPlan([("all", "float32", [_NUMEL], ["x"])], "float32", [0])
            engine.add_plan(plan, _C.complete_schedule(size), 0)
            engine.open_round(0, [tensors[rank].ctypes.data])
        for rank, engine in enumerate(engines):
            engine.close_round(0, [tensors[rank].ctypes.data])
    finally:
        for engine in engines:
            engine.shutdown(1.0)
    for rank, tensor in enumerate(tensors):
        rounded = np.rint(tensor * 1024) / 1024  # thirds are not exact
        _expect(f"exchange and mix, rank {rank}", rounded, mean)
    return f"{size} ranks in this process reach their mean"


def _on_gpu(check: str) -> Callable[[], str]:
    def run() -> str:
        cuda = cuda_module()
        _describe_gpus()
        device = cuda.CudaDevice(0)
        if check == "check_self_exchange":
            cuda.check_self_exchange(device, load_nccl())
        else:
            getattr(cuda, check)(device)
        return "on GPU 0"

    return run


def diagnose() -> list[Finding]:
    """Looks at everything; takes a few seconds, on a GPU up to a minute."""
    looks: list[tuple[str, str, Callable[[], str]]] = [
        ("built", "CPU part", _describe_build),
        ("built", "CUDA part", lambda: f"for {cuda_module().architectures}"),
        ("found", "torch", _describe_torch),
        ("found", "driver", _describe_driver),
        ("found", "GPU", _describe_gpus),
        ("found", "NCCL", _describe_nccl),
        ("found", "torch's NCCL", _compare_with_torch),
        ("works", "CPU: pack", _pack_on_cpu),
        ("works", "CPU: exchange and mix", _exchange_on_cpu),
        ("works", "GPU: pack", _on_gpu("check_pack")),
        ("works", "GPU: mix", _on_gpu("check_mix")),
        ("works", "GPU: NCCL exchange with itself", _on_gpu("check_self_exchange")),
    ]
    return [_examine(*look) for look in looks]


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print(section)
        answer = "yes" if finding.ok else "no "
        detail = finding.detail.replace("\n", "\n" + " " * (width + 8))
        print(f"  {finding.name:<{width}}  {answer}  {detail}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m crossover_comm.doctor",
        description='What crossover_comm is built for, finds and can do; the reason for each "no".',
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of findings")
    options = parser.parse_args(arguments)
    findings = diagnose()
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    cpu_works = all(finding.ok for finding in findings if finding.name.startswith("CPU"))
    return 0 if cpu_works else 1


if __name__ == "__main__":
    sys.exit(main())
