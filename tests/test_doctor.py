"""The doctor's report, and which NCCL is looked for."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import logging
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("crossover_comm._C", reason="the extension is not built")

from crossover_comm import _C, doctor, nccl
from crossover_comm.device import cuda_module
from crossover_comm.errors import DeviceError, TransportError


@dataclass
class FakeNccl:
    version: str
    source: str = "the nvidia-nccl package"
    path: str = "/somewhere/libnccl.so.2"


@pytest.fixture(autouse=True)
def _fresh_nccl() -> None:
    nccl.load_nccl.cache_clear()


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.diagnose()}


def test_the_cpu_works_and_every_no_has_a_reason() -> None:
    found = doctor.diagnose()
    assert {finding.section for finding in found} == {"built", "found", "works"}
    assert all(finding.detail for finding in found)
    assert all(finding.ok for finding in found if finding.name.startswith("CPU"))


def test_the_module_prints_json_and_exits_with_0_where_the_cpu_works() -> None:
    command = [sys.executable, "-m", "crossover_comm.doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"section", "name", "ok", "detail"} == set(report[0])


def test_the_text_names_each_thing_with_yes_or_no(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "built"
    assert any(line.split()[:3] == ["CPU", "part", "yes"] for line in lines)


def test_a_cpu_path_that_fails_is_named_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "pack", lambda *_: bytes(2 * doctor._NUMEL))
    found = findings()["CPU: pack"]
    assert not found.ok
    assert "pack: 10007 of 10007 elements are wrong, first element 0" in found.detail
    assert doctor.main(["--json"]) == 1


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = findings()
    assert "this build has no crossover_comm._cuda" in found["CUDA part"].detail
    assert found["GPU: pack"].detail == found["CUDA part"].detail


def test_a_machine_without_driver_is_the_reason_of_every_no_about_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    built = types.SimpleNamespace(architectures="80-real 90-real 90-virtual")
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setattr(doctor, "cuda_module", lambda: built)
    found = findings()
    assert found["CUDA part"].detail == "for 80-real 90-real 90-virtual"
    for name in ("driver", "GPU", "GPU: pack", "GPU: mix", "GPU: NCCL exchange with itself"):
        assert not found[name].ok
        assert found[name].detail.startswith("no NVIDIA driver: libcuda.so.1: cannot open"), name


def test_a_cuda_part_of_another_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_build(name: str) -> None:
        raise ImportError(f"{name} and crossover_comm._C are of different builds")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(importlib, "import_module", other_build)
    with pytest.raises(DeviceError, match=r"is there, but cannot be loaded: .*different builds"):
        cuda_module()


def test_an_override_that_is_not_there_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(nccl.OVERRIDE_VARIABLE, str(tmp_path / "absent.so"))
    found = findings()["NCCL"]
    assert not found.ok
    assert "CROSSOVER_NCCL_SO allows one place only" in found.detail
    assert "absent.so" in found.detail


def test_an_nccl_other_than_torchs_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_C, "load_nccl", lambda *_: FakeNccl("2.30.7"))
    monkeypatch.setattr(nccl, "torch_nccl_version", lambda: "2.28.9")
    with caplog.at_level(logging.WARNING, logger="crossover_comm"):
        nccl.load_nccl()
        nccl.load_nccl()
    (record,) = caplog.records
    assert "uses NCCL 2.30.7" in record.getMessage()
    assert "torch uses 2.28.9" in record.getMessage()


def test_the_same_nccl_as_torchs_is_not_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_C, "load_nccl", lambda *_: FakeNccl("2.28.9"))
    monkeypatch.setattr(nccl, "torch_nccl_version", lambda: "2.28.9")
    nccl.load_nccl()
    assert caplog.records == []


def test_the_library_of_an_installed_package_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    library.parent.mkdir(parents=True)
    library.touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert nccl.package_library() == str(library)


def test_a_torch_without_cuda_has_no_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    assert nccl.torch_nccl_version() is None
    with pytest.raises(LookupError, match="without NCCL"):
        doctor._compare_with_torch()


def test_a_wrong_value_is_named_with_its_place() -> None:
    right = doctor._ramp(1.0)
    wrong = right.copy()
    wrong[7] += 1
    with pytest.raises(TransportError, match="1 of 10007 elements are wrong, first element 7"):
        doctor._expect("mix", wrong, right)
