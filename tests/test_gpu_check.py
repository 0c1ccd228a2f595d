"""scripts/gpu_check.sh without a GPU, and how benchmarks/gpu_timeline.py reads a trace."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import gpu_timeline
import pytest


@pytest.fixture
def no_gpu(tmp_path: Path) -> dict[str, str]:
    """An environment in which nvidia-smi finds nothing."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    return {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}


def gpu_check(checkout: Path, env: dict[str, str], *arguments: str | Path) -> tuple[int, str]:
    script = checkout / "scripts" / "gpu_check.sh"
    command = ["bash", str(script), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_without_a_gpu_it_says_what_it_would_run_and_why_not_and_ends_with_2(
    checkout: Path, tmp_path: Path, no_gpu: dict[str, str]
) -> None:
    code, said = gpu_check(checkout, no_gpu, tmp_path / "out")
    assert code == 2
    assert "nothing was run:\n  - no GPU: nvidia-smi shows none" in said
    plan = said.partition("it would run:")[2]
    for what in (
        "from this checkout", "against the host's kernels", "memcheck", "racecheck", "doctor",
        "2 and 4 NCCL ranks", "pinned", "killed NCCL rank", "torch.cat", "profiler trace",
        "crossover against DDP",
    ):  # fmt: skip
        assert what in plan, what
    assert list((tmp_path / "out").iterdir()) == []


def test_a_stage_that_is_not_there_is_refused(
    checkout: Path, tmp_path: Path, no_gpu: dict[str, str]
) -> None:
    code, said = gpu_check(checkout, no_gpu, tmp_path / "out", "kernel")
    assert code == 64
    assert "no stage 'kernel'; stages: environment build" in said


def test_the_timeline_tells_what_of_the_exchange_other_kernels_hide() -> None:
    def kernel(name: str, ts: float, dur: float) -> gpu_timeline.Event:
        return {"cat": "kernel", "name": name, "ts": ts, "dur": dur}

    events = [
        kernel("void crossover::pack<float, float>(crossover::PackLaunch)", 0.0, 10.0),
        kernel("ncclDevKernel_SendRecv(ncclDevKernelArgs)", 8.0, 32.0),
        kernel("ampere_sgemm", 20.0, 10.0),
        kernel("ampere_sgemm", 30.0, 30.0),
        {"cat": "cuda_runtime", "name": "cudaMalloc", "ts": 1.0, "dur": 1.0},
        {"cat": "cpu_op", "name": "aten::add", "ts": 1.0, "dur": 1.0},
        {"name": "metadata"},
    ]
    assert gpu_timeline.summary(events, num_steps=2) == {
        "steps": 2,
        "exchange_kernels_per_step": 1.0,
        "exchange_us": 20.0,
        "hidden_us": 10.0,
        "compute_us": 20.0,
        "waiting_calls": {"cudaMalloc": 1},
    }
