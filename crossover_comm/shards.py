"""Parameters of which each rank of a node holds a shard (FSDP2), gossiped across nodes.

`fully_shard` gathers whole parameters in its own forward hooks and leaves the shards to the
optimizer. The shards are what is gossiped, each among the ranks that hold the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.errors import InvalidArgument
from crossover_comm.layout import is_sharded
from crossover_comm.segments import Segment

__all__ = ["awaited_at_root", "refuse_shards", "require_shards", "reshard"]

_USE = "DistributedOptimizer(optimizer, model, device_mesh=mesh['replicate'])"


def refuse_shards(parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuses sharded parameters where whole ones are wanted.

    Raises:
        InvalidArgument: Naming the first.
    """
    for name, p in parameters.items():
        if is_sharded(p):
            raise InvalidArgument(
                f"parameter '{name}': expected a plain tensor, got a {type(p.data).__name__}, as "
                f"fully_shard makes them; use {_USE}"
            )


def require_shards(
    parameters: Mapping[str, torch.Tensor],
    members: Sequence[int],
    config: GossipConfig,
    overlap: Overlap,
) -> None:
    """Refuses sharded parameters that cannot be gossiped so; plain ones always pass.

    Args:
        parameters: By name.
        members: The ranks of the job to gossip among.
        config: How.
        overlap: The mode.

    Raises:
        InvalidArgument: Naming what cannot be.
    """
    sharded = {name: p for name, p in parameters.items() if is_sharded(p)}
    for name, p in sharded.items():
        _require_shard(name, p, members)
    if not sharded:
        return
    for option, given, wanted in (
        ("overlap", overlap, ("none", "forward", "backward")),
        ("groups", config.groups, (None,)),
        ("momentum", config.momentum, ("local",)),
        ("slow_momentum", config.slow_momentum, (0.0,)),
        ("slow_lr", config.slow_lr, (1.0,)),
    ):
        if given not in wanted:
            raise InvalidArgument(
                f"{option}: expected {' or '.join(map(repr, wanted))} with parameters that "
                f"fully_shard has sharded, got {given!r}"
            )


def awaited_at_root(segments: Sequence[Segment]) -> list[Segment]:
    """Segments all awaited when the whole model's forward begins: nested modules are too late, as
    their shards may have been gathered before."""
    return [replace(segment, wait_modules=("",)) for segment in segments]


def reshard(model: nn.Module) -> None:
    """Makes FSDP2 gather parameters anew, for the shards have been or will be written.

    After a forward its root module keeps whole parameters until a backward.
    """
    modules: list[Any] = list(model.modules())
    for module in modules:
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            module.reshard()


def _require_shard(name: str, p: Any, members: Sequence[int]) -> None:
    mesh, placements = p.device_mesh, p.placements
    if mesh.ndim != 1 or not placements[0].is_shard():
        raise InvalidArgument(
            f"parameter '{name}': expected one that fully_shard(model, mesh=mesh['shard']) has "
            f"sharded over one dimension, got placements {placements} on {mesh}"
        )
    common = sorted(set(mesh.mesh.flatten().tolist()) & set(members))
    if len(common) > 1:
        raise InvalidArgument(
            f"parameter '{name}': expected gossip among ranks that hold the same shard, got ranks "
            f"{common}, which hold unlike shards of it; use {_USE}"
        )
