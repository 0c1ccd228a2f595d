"""What arguments of torch's DistributedDataParallel mean under gossip, or why they are refused."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import torch
from torch import nn

from crossover_comm.blocks import visible_path
from crossover_comm.config import GossipConfig
from crossover_comm.errors import InvalidArgument

__all__ = [
    "ABSENT",
    "REFUSED",
    "buffers_of",
    "gossip_for",
    "ignore",
    "ignored_names",
    "require_delay",
    "require_supported",
    "warn_of_broadcast_buffers",
    "warn_of_check_reduction",
    "without",
]

TensorT = TypeVar("TensorT", bound=torch.Tensor)

BYTES_PER_MB: Final = 1 << 20
_TORCHS: Final = inspect.signature(nn.parallel.DistributedDataParallel).parameters

REFUSED: Final[Mapping[str, tuple[object, str]]] = {
    "bucket_cap_mb_list": (
        None,
        "segments have one size: use bucket_cap_mb=<MiB> or gossip=GossipConfig(segments=<bytes>)",
    ),
    "skip_all_reduce_unused_params": (
        False,
        "unused parameters are exchanged too, so that no rank need know which these are; leave "
        "parameters out by _set_params_and_buffers_to_ignore_for_model or requires_grad_(False)",
    ),
    "mixed_precision": (
        None,
        "compute in a narrower type under torch.autocast, send in one by "
        "gossip=GossipConfig(wire='bf16')",
    ),
}
"""Arguments that must keep torch's default, the default, and what to use instead."""

ABSENT: Final[Mapping[str, str]] = {
    "reducer": "segments of parameters, not buckets of gradients, are exchanged",
    "scatter": "a process trains one replica on one device",
    "gather": "a process trains one replica on one device",
    "to_kwargs": "a process trains one replica on one device",
    "_register_builtin_comm_hook": "use GossipConfig(wire='bf16')",
    "_register_buffer_comm_hook": "GossipConfig(buffers=...) says what becomes of buffers",
    "_register_fused_optim": "use GossipConfig(overlap=...) and any optimizer",
    "_set_ddp_runtime_logging_sample_rate": "nothing is sampled; see crossover_comm.counters()",
    "_remove_autograd_hooks": "gossip ends when the wrapper is no longer held",
    "_check_reducer_finalized": "no round depends on a backward that reaches every parameter",
    "_set_sparse_metadata": "gradients are not exchanged sparse",
    "_update_process_group": "wrap the model again",
    "_set_ddp_sink_clone": "outputs are not cloned",
}
"""Members of torch's wrapper that have no counterpart, and why or what to use."""


def require_supported(**arguments: object) -> None:
    """Raises InvalidArgument for an argument that has not torch's default but must have it."""
    for name, value in arguments.items():
        default, reason = REFUSED[name]
        if value is not default and value != default:
            raise InvalidArgument(f"{name}: expected {default!r}, got {value!r}; {reason}")


def buffers_of(
    config: GossipConfig, broadcast_buffers: bool | None, forward_sync_buffers: bool | None
) -> GossipConfig:
    """The configuration with what torch's arguments make of buffers where it leaves that open.

    Raises:
        InvalidArgument: It wants them broadcast, and the arguments do not.
    """
    name, given = "forward_sync_buffers", forward_sync_buffers
    if given is None:
        name, given = "broadcast_buffers", broadcast_buffers
    if config.buffers == "broadcast" and given is False:
        raise InvalidArgument(
            f"{name}: expected True beside gossip=GossipConfig(buffers='broadcast'), got False"
        )
    if config.buffers is not None:
        return config
    is_common = config.groups == "world" and given is not False
    return dataclasses.replace(config, buffers="broadcast" if is_common else "local")


def gossip_for(config: GossipConfig, bucket_cap_mb: float | None) -> GossipConfig:
    """The configuration with segments of at most so many MiB, if the user has given a number.

    Raises:
        InvalidArgument: It is not above 0, or the configuration has a size of its own.
    """
    if bucket_cap_mb is None:
        return config
    if not bucket_cap_mb > 0:
        raise InvalidArgument(f"bucket_cap_mb: expected a number of MiB > 0, got {bucket_cap_mb!r}")
    if config.segments != "blocks":
        raise InvalidArgument(
            "bucket_cap_mb: expected None beside gossip=GossipConfig(segments="
            f"{config.segments!r}), got {bucket_cap_mb!r}"
        )
    return dataclasses.replace(config, segments=max(int(bucket_cap_mb * BYTES_PER_MB), 1))


def require_delay(config: GossipConfig, named_params: object, param_to_hook: object) -> None:
    """Checks torch's request to average some gradients late. Parameter gossip averages none.

    Raises:
        InvalidArgument: One of both is missing, or gradients are averaged during backward.
    """
    if (named_params is None) != (param_to_hook is None):
        raise InvalidArgument(
            "delay_all_reduce_named_params, param_to_hook_all_reduce: expected both or neither"
        )
    if named_params is not None and config.groups is not None and config.overlap != "none":
        raise InvalidArgument(
            "delay_all_reduce_named_params: expected overlap='none' with groups, which averages "
            f"all gradients at the end of the backward, got overlap={config.overlap!r}"
        )


def warn_of_check_reduction(check_reduction: bool) -> None:
    """torch's own deprecation: the argument has no meaning there either."""
    if check_reduction:
        warnings.warn(
            "check_reduction is deprecated and has no meaning", FutureWarning, stacklevel=3
        )


def warn_of_broadcast_buffers(broadcast_buffers: bool | None) -> None:
    """torch's own deprecation, where torch has the newer argument."""
    if broadcast_buffers is not None and "forward_sync_buffers" in _TORCHS:
        warnings.warn(
            "broadcast_buffers is deprecated: use forward_sync_buffers, unless buffers are not to "
            "be broadcast at the start",
            FutureWarning,
            stacklevel=3,
        )


def ignored_names(module: nn.Module) -> frozenset[str]:
    """The parameters and buffers that ``_set_params_and_buffers_to_ignore_for_model`` has named."""
    names = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    return frozenset(visible_path(name) for name in names)


def ignore(module: nn.Module, names: frozenset[str]) -> None:
    """Marks parameters and buffers of these names as torch's DDP does."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if visible_path(name) in names:
            tensor._ddp_ignored = True  # type: ignore[attr-defined]


def without(names: frozenset[str], tensors: Iterable[tuple[str, TensorT]]) -> dict[str, TensorT]:
    """The named tensors whose names are not among `names`."""
    return {name: tensor for name, tensor in tensors if visible_path(name) not in names}
