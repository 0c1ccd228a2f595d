"""What training code reaches of torch's wrapper under names that torch calls private."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from crossover_comm.config import GossipConfig
from crossover_comm.context import Context, own_context
from crossover_comm.ddp_arguments import ignore

__all__ = ["PrivateSurface"]


class PrivateSurface:
    """A part of ``DistributedDataParallel``."""

    module: nn.Module
    device_ids: list[int] | None
    find_unused_parameters: bool
    forward_sync_buffers: bool
    gradient_as_bucket_view: bool
    static_graph: bool
    _config: GossipConfig
    _context: Context | None

    @staticmethod
    def _set_params_and_buffers_to_ignore_for_model(
        module: nn.Module, params_and_buffers_to_ignore: Any
    ) -> None:
        """Leaves parameters and buffers of these names out of everything; before wrapping."""
        module._ddp_params_and_buffers_to_ignore = params_and_buffers_to_ignore
        ignore(module, frozenset(params_and_buffers_to_ignore))

    @staticmethod
    def _get_data_parallel_params(module: nn.Module, named_params: bool = False) -> Iterator[Any]:
        """The parameters that are not ignored, or pairs of name and parameter."""
        for name, p in module.named_parameters():
            if not hasattr(p, "_ddp_ignored"):
                yield (name, p) if named_params else p

    def _set_static_graph(self) -> None:
        """As the constructor's `static_graph`."""
        self.static_graph = True

    def _get_ddp_logging_data(self) -> dict[str, Any]:
        """What is gossiped and how, under torch's keys where it has them."""
        launch = (self._context or own_context()).launch
        parameters = self._gossiped_parameters()
        return {
            "world_size": launch.size,
            "rank": launch.rank,
            "module_name": type(self.module).__name__,
            "backend_name": "crossover",
            "device_ids": str(self.device_ids or ""),
            "broadcast_buffers": int(self.forward_sync_buffers),
            "find_unused_parameters": int(self.find_unused_parameters),
            "gradient_as_bucket_view": int(self.gradient_as_bucket_view),
            "static_graph": int(self.static_graph),
            "num_parameter_tensors": len(parameters),
            "total_parameter_size_bytes": sum(p.nbytes for p in parameters.values()),
            "gossip": self._config.describe(),
        }

    def _gossiped_parameters(self) -> dict[str, nn.Parameter]:
        raise NotImplementedError
