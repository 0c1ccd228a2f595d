"""What a user may choose, and what is said about the rest."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from crossover_comm.config import PRESETS, GossipConfig, resolve
from crossover_comm.errors import InvalidArgument
from crossover_comm.topology import Exponential


def test_the_default_is_the_preset_crossover() -> None:
    assert resolve(None) == resolve("crossover") == GossipConfig()


def test_dpsgd_is_a_ring_mixed_in_the_order_of_its_paper() -> None:
    config = resolve("dpsgd")
    assert (config.topology, config.overlap) == ("ring", "backward")


def test_a_configuration_resolves_to_itself() -> None:
    config = GossipConfig(topology="ring", wire="bf16")
    assert resolve(config) is config


@pytest.mark.parametrize("gossip", ["gossip", 3, {"topology": "ring"}])
def test_an_unknown_gossip_names_the_presets(gossip: Any) -> None:
    message = (
        f"gossip: expected one of the presets {', '.join(map(repr, PRESETS))} or a GossipConfig, "
        f"got {gossip!r}"
    )
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        resolve(gossip)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"overlap": "late"},
            "overlap: expected one of 'backward', 'forward', 'fused', 'none', got 'late'",
        ),
        ({"wire": "int4"}, "wire: expected one of 'fp32', 'bf16', 'fp16', 'int8', 'auto', got"),
        ({"segments": "layers"}, "segments: expected 'blocks' or a size in bytes >= 1"),
        ({"segments": 0}, "segments: expected 'blocks' or a size in bytes >= 1, got 0"),
        ({"segments": True}, "segments: expected 'blocks' or a size in bytes >= 1, got True"),
        ({"seed": -1}, "seed: expected an integer in 0 .. 2**64 - 1, got -1"),
        ({"seed": 2**64}, "seed: expected an integer in 0 .. 2**64 - 1"),
        ({"seed": 1.0}, "seed: expected an integer in 0 .. 2**64 - 1, got 1.0"),
        ({"topology": "star"}, "topology: expected a Topology or one of"),
        (
            {"buffers": "mean"},
            "buffers: expected one of 'local', 'average', 'broadcast', got 'mean'",
        ),
        (
            {"buffers": "average", "groups": 2},
            "buffers='average': expected groups=None or 'world', got 2",
        ),
        ({"interval": 0}, "interval: expected an integer >= 1, got 0"),
        ({"groups": "rack"}, "groups: expected 'host', 'world', a number of ranks per group >= 1"),
        ({"groups": 0}, "or lists of ranks, got 0"),
        ({"groups": [[0], []]}, "or lists of ranks, got [[0], []]"),
        ({"overlap": "fused", "interval": 2}, "overlap='fused': expected interval=1, got 2"),
        ({"overlap": "fused", "groups": 2}, "overlap='fused': expected groups=None, got 2"),
        (
            {"overlap": "fused", "momentum": "exchanged"},
            "overlap='fused': expected momentum='local'",
        ),
        (
            {"overlap": "fused", "exact_every": 2, "slow_momentum": 0.5},
            "overlap='fused': expected no slow_momentum, got 0.5",
        ),
        ({"hierarchy": "tree"}, "hierarchy: expected one of 'sharded', 'root', got 'tree'"),
        ({"momentum": "exchanged", "interval": 2}, "expected a gossip round for every step"),
        ({"wire_budget": 0.0}, "wire_budget: expected a number > 0, got 0.0"),
        ({"wire": "auto", "wire_budget": 0.25}, "wire_budget: expected at least 0.2578"),
        ({"wire": "auto", "rounds_per_step": 2}, "wire='auto': expected rounds_per_step=1"),
        ({"wire": "auto", "momentum": "exchanged"}, "wire='auto': expected another momentum"),
        ({"rounds_per_step": 0}, "rounds_per_step: expected an integer >= 1, got 0"),
        ({"exact_every": 0}, "exact_every: expected an integer >= 1, got 0"),
        ({"exact_first": -1}, "exact_first: expected an integer >= 0, got -1"),
        ({"exact_first": None}, "exact_first: expected an integer >= 0, got None"),
    ],
)
def test_a_wrong_value_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        GossipConfig(**arguments)


def test_a_mistake_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="wire"):
        GossipConfig(wire="fp8")  # type: ignore[arg-type]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GossipConfig().seed = 1  # type: ignore[misc]


def test_arguments_are_keywords() -> None:
    with pytest.raises(TypeError):
        GossipConfig("ring")  # type: ignore[call-arg]


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS.keys())
def test_a_preset_is_described_in_json(config: GossipConfig) -> None:
    described = config.describe()
    assert json.loads(json.dumps(described)) == described


def test_a_topology_object_is_described_like_its_name() -> None:
    by_name = GossipConfig(topology="exponential")
    assert GossipConfig(topology=Exponential()).describe() == by_name.describe()


@pytest.mark.parametrize(
    "other",
    [
        GossipConfig(topology="ring"),
        GossipConfig(overlap="none"),
        GossipConfig(wire="bf16"),
        GossipConfig(wire_budget=1.0),
        GossipConfig(segments=1024),
        GossipConfig(seed=1),
    ],
)
def test_every_choice_shows_in_the_description(other: GossipConfig) -> None:
    assert other.describe() != GossipConfig().describe()
