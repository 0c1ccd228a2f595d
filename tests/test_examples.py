"""The examples run as their documentation says, on a small scale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the demo needs scikit-learn")
pytest.importorskip("matplotlib", reason="the demo needs matplotlib")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def output_of(*command: str | Path) -> str:
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo prints with two workers and one epoch, and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    script = EXAMPLES / "digits" / "demo.py"
    return output_of(script, "--workers=2", "--epochs=1", f"--output={folder}"), folder


def cells(text: str, row: str) -> list[str]:
    """Both methods' cells of one row of the demo's table."""
    (line,) = (line for line in text.splitlines() if line.startswith(row))
    return re.split(r" {2,}", line[32:].strip())


@pytest.mark.parametrize(
    ("row", "cell"),
    [
        ("test accuracy, worker 0", r"\d+\.\d+ %"),
        ("test accuracy, worker 1", r"\d+\.\d+ %"),
        ("test accuracy, averaged model", r"\d+\.\d+ %"),
        ("time of a step, median", r"\d+\.\d+ ms"),
        ("consensus distance, end", r"\d\.\d+e[+-]\d+"),
    ],
)
def test_the_demo_ends_with_a_table_of_both_methods(
    demo: tuple[str, Path], row: str, cell: str
) -> None:
    both = cells(demo[0], row)
    assert len(both) == 2
    assert all(re.fullmatch(cell, text) for text in both)


def test_the_demo_saves_its_plot(demo: tuple[str, Path]) -> None:
    assert (demo[1] / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_crossover_sends_one_model_per_step(demo: tuple[str, Path]) -> None:
    model_bytes = 4 * 77_754
    assert cells(demo[0], "sent per worker and step")[0] == f"{model_bytes / 1e3:.1f} kB"


def test_the_language_model_trains_alone() -> None:
    text = output_of(EXAMPLES / "char_lm.py", "--steps=2", "--width=32", "--depth=1")
    assert "rank 0: validation loss of the local model" in text
    assert "averaged model of 1" in text


def test_the_imagenet_recipe_runs_on_synthetic_images() -> None:
    text = output_of(
        EXAMPLES / "imagenet.py",
        *("--synthetic=16", "--image-size=32", "--epochs=1", "--batch-size=4", "--accumulation=2"),
        *("--width=4", "--depths", "1", "1", "1", "1", "--loaders=0"),
    )
    assert re.search(r"epoch 1: test accuracy of the averaged model \d+\.\d+ %", text)


def test_the_cifar_example_runs_on_synthetic_images() -> None:
    text = output_of(
        EXAMPLES / "cifar10.py",
        *("--synthetic=16", "--epochs=1", "--batch-size=8", "--width=4"),
        *("--depths", "1", "1", "1", "1", "--loaders=0"),
    )
    assert re.search(r"epoch 1: test accuracy of the averaged model \d+\.\d+ %", text)


def test_resnet_50_has_its_published_number_of_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from resnet import ResNet

    with torch.device("meta"):
        model = ResNet()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
