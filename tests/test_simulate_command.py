"""The simulator's command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossover_comm.simulate.__main__ import main

COMMANDS = {
    "consensus": ["--topology", "crossover", "--workers", "4", "8", "--steps=20"],
    "accuracy": ["--workers", "4", "--steps=3", "--global-batch=16", "--seeds=2"],
    "time": ["--workers", "8", "16", "--steps=8"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_prints_a_table_and_writes_rows_and_a_plot(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    pytest.importorskip("sklearn", reason="the digits task needs scikit-learn")
    rows, plot = tmp_path / "rows.json", tmp_path / "plot.png"
    files = [f"--json={rows}", f"--plot={plot}", "--quiet"]
    assert main([name, *COMMANDS[name], *files]) == 0
    content = json.loads(rows.read_text())
    assert content["command"].startswith(f"python -m crossover_comm.simulate {name}")
    assert len(content["rows"]) == len(capsys.readouterr().out.splitlines()) - 2
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["time", "--topology", "circle", "--workers", "4", "--quiet"]) == 2
    assert "expected a Topology or one of 'crossover'" in capsys.readouterr().err
