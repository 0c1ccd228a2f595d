"""Ranks that do not agree at the start: an error on each of them, which names the difference."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from failing import Training, init_together, message_of, said_by
from models import mlp
from spawn import run_ranks
from torch import nn

import crossover_comm as cc

SIZE = 3
ODD_ONE = 1

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "timeout": ({"timeout": 29.0}, "timeout: rank 0 has 30.0, rank 1 has 29.0"),
    "transport": ({"transport": "tcp"}, 'transport: rank 0 has "auto", rank 1 has "tcp"'),
    "guard": ({"check_finite": False}, "check_finite: rank 0 has true, rank 1 has false"),
}
"""What rank 1 gives init(), and what every rank says."""

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 7}, r"config\.seed: rank 0 has 0, rank 1 has 7"),
    "topology": (
        {"topology": "ring"},
        r'config\.topology: rank 0 has "crossover", rank 1 has "ring"',
    ),
    "overlap": ({"overlap": "none"}, r'config\.overlap: rank 0 has "backward", rank 1 has "none"'),
    "wire": ({"wire": "bf16"}, r'config\.wire: rank 0 has "fp32", rank 1 has "bf16"'),
    "segments": ({"segments": 64}, r'config\.segments: rank 0 has "blocks", rank 1 has 64'),
}
"""What rank 1 configures for its gossip, and what every rank says."""

MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shape": (lambda: mlp(6, 9, 3), r"segments\[0\].*rank 0 has .*8.*, rank 1 has .*9"),
    "dtype": (
        lambda: mlp(6, 8, 3).double(),
        r"segments\[0\].*dtype: rank 0 has .*float32.*, rank 1 has .*float64",
    ),
    "depth": (lambda: mlp(6, 8, 8, 3), r"segments: rank 0 has \d+ items, rank 1 has \d+ items"),
}
"""What rank 1 wraps in place of mlp(6, 8, 3), and what every rank says."""


def disagree_in_turn() -> None:
    is_odd = os.environ["RANK"] == str(ODD_ONE)
    said = {
        name: message_of(cc.init, **(odd if is_odd else {})) for name, (odd, _) in SETTINGS.items()
    }
    cc.init()
    for name, (config, _) in CONFIGS.items():
        gossip = cc.GossipConfig(**(config if is_odd else {}))
        said[name] = message_of(cc.DistributedDataParallel, mlp(6, 8, 3), gossip=gossip)
    for name, (make, _) in MODELS.items():
        model = make() if is_odd else mlp(6, 8, 3)
        said[name] = message_of(cc.DistributedDataParallel, model)
    Training().run(3)
    print("said", json.dumps(said), flush=True)


@pytest.fixture(scope="module")
def said() -> list[dict[str, str]]:
    """What each rank said to each disagreement; all trained together in the end."""
    return [said_by(result) for result in run_ranks(disagree_in_turn, SIZE)]


@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_of_init_is_named_on_every_rank(
    name: str, said: list[dict[str, str]]
) -> None:
    for messages in said:
        assert messages[name].startswith(
            "InvalidArgument: init, configuration: not the same on every rank"
        )
        assert SETTINGS[name][1] in messages[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_another_gossip_configuration_is_named_on_every_rank(
    name: str, said: list[dict[str, str]]
) -> None:
    for messages in said:
        assert messages[name].startswith(
            "InvalidArgument: the model's gossip: not the same on every rank"
        )
        assert re.search(CONFIGS[name][1], messages[name]), messages[name]


@pytest.mark.parametrize("name", MODELS)
def test_another_model_is_named_on_every_rank(name: str, said: list[dict[str, str]]) -> None:
    for messages in said:
        assert messages[name].startswith(
            "InvalidArgument: the model's gossip: not the same on every rank"
        )
        assert re.search(MODELS[name][1], messages[name], re.DOTALL), messages[name]


def disagree_and_end() -> None:
    init_together(timeout=20)
    torch.manual_seed(0)
    cc.DistributedDataParallel(mlp(6, 8, 3), gossip=cc.GossipConfig(seed=cc.rank() // 2))


def test_a_disagreement_ends_every_rank_with_its_message() -> None:
    for result in run_ranks(disagree_and_end, SIZE, check=False):
        assert result.exit_code == 1
        assert "config.seed: rank 0 has 0, rank 2 has 1" in result.stderr
        assert result.left_processes == ()
