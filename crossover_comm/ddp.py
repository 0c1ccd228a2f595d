"""Drop-in for ``torch.nn.parallel.DistributedDataParallel``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from crossover_comm.collectives import broadcast_parameters
from crossover_comm.config import GossipConfig, resolve
from crossover_comm.context import Context
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import attach, joined_context, own_context
from crossover_comm.inputs import input_device, moved
from crossover_comm.resume import lone_state, require_lone_state
from crossover_comm.segments import trainable_parameters

__all__ = ["DistributedDataParallel"]

NO_GRADIENTS = "gradients are not exchanged"
RANKS = "the ranks are those of crossover_comm.init()"
SEGMENTS = "use gossip=GossipConfig(segments=<bytes>)"

REFUSED: Final[dict[str, tuple[object, str]]] = {
    "dim": (0, "inputs are not scattered: each process trains one replica"),
    "process_group": (None, RANKS),
    "device_mesh": (None, RANKS),
    "bucket_cap_mb": (None, SEGMENTS),
    "bucket_cap_mb_list": (None, SEGMENTS),
    "check_reduction": (False, NO_GRADIENTS),
    "gradient_as_bucket_view": (False, NO_GRADIENTS),
    "delay_all_reduce_named_params": (None, NO_GRADIENTS),
    "param_to_hook_all_reduce": (None, NO_GRADIENTS),
    "skip_all_reduce_unused_params": (False, NO_GRADIENTS),
    "batched_grad_copy": (False, NO_GRADIENTS),
    "mixed_precision": (None, "use torch.autocast"),
    "forward_sync_buffers": (None, "buffers stay local after the start"),
}
"""torch's arguments that must keep torch's default, the default, and why."""


class DistributedDataParallel(nn.Module):
    """Trains a replica on each rank and gossips parameters; otherwise used as torch's DDP.

    Gradients stay local. Parameters move between ranks in rounds as ``GossipConfig.overlap`` says,
    by default ``"backward"``. With one rank nothing is registered: the wrapper only passes on.

    Wrapping is a collective call: every rank wraps the same models in the same order. ``init()`` is
    called first if it was not.

    Args:
        module: The replica, on the CPU or on one GPU.
        device_ids: None, or the module's GPU in a list of one: inputs are then moved there.
        output_device: None, or the module's GPU.
        broadcast_buffers: Whether buffers too are broadcast from rank 0 here; True by default. They
            are local afterwards: each replica's batch norm follows its own data.
        init_sync: Whether parameters and buffers are broadcast from rank 0 here.
        find_unused_parameters: Any value works: a parameter is exchanged whether used or not.
        static_graph: Any value works.
        gossip: A preset's name or a :class:`GossipConfig`; ``"crossover"`` by default.
        context: The rank's context if it is not the process's own; `init_sync` is False then.
        **others: The other arguments of torch's DDP, refused unless they have torch's default.

    Raises:
        InvalidArgument: For an argument that is not supported, a parameter that cannot be
            exchanged, or if the ranks differ.
    """

    def __init__(
        self,
        module: nn.Module,
        device_ids: object = None,
        output_device: object = None,
        dim: object = 0,
        broadcast_buffers: bool | None = None,
        init_sync: bool = True,
        process_group: object = None,
        bucket_cap_mb: object = None,
        find_unused_parameters: bool = False,
        check_reduction: object = False,
        gradient_as_bucket_view: object = False,
        static_graph: bool = False,
        *,
        gossip: str | GossipConfig | None = None,
        context: Context | None = None,
        **others: object,
    ) -> None:
        super().__init__()
        _require_defaults(
            dim=dim,
            process_group=process_group,
            bucket_cap_mb=bucket_cap_mb,
            check_reduction=check_reduction,
            gradient_as_bucket_view=gradient_as_bucket_view,
            **others,
        )
        config = resolve(gossip)
        parameters = trainable_parameters(module)
        if init_sync and context not in (None, joined_context()):
            raise InvalidArgument("init_sync: expected False with a context of the caller's own")
        self.module = module
        self._input_device = input_device(device_ids, output_device, parameters)
        self._hooks = attach(context or own_context(), module, parameters, config, "backward")
        if init_sync:
            with_buffers = broadcast_buffers is not False
            broadcast_parameters(module if with_buffers else module.named_parameters())

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        hooks = self._hooks
        if hooks is not None and not hooks.awaits_in_forward:
            hooks.forward_begins()
        if self._input_device is not None:
            inputs = moved(inputs, self._input_device)
            kwargs = moved(kwargs, self._input_device)
        outputs = self.module(*inputs, **kwargs)
        if hooks is not None and hooks.gradients is not None:
            hooks.gradients.watch(outputs)
        return outputs

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Forwards inside, and their backwards, accumulate gradients without a round of their own.

        As with torch's DDP the forward must be inside. In mode ``"backward"`` a step still ends
        the round that the first forward has opened.
        """
        return contextlib.nullcontext() if self._hooks is None else self._hooks.no_sync()

    def gossip_state_dict(self) -> dict[str, Any]:
        """Where gossip stands: with parameters, buffers and the optimizer's state all that a
        training needs to go on bit for bit as if it had never stopped.

        Closes the open round; taken after a step it changes nothing that follows. Each rank saves
        its own, beside its own model: replicas differ.

        Returns:
            Numbers, strings, tensors, and dicts and lists of these; tensors are shared with
            training. Keys and shapes depend on model and configuration alone, so that
            torch.distributed.checkpoint can load into it.
        """
        return lone_state() if self._hooks is None else self._hooks.state_dict()

    def load_gossip_state_dict(
        self, state: Mapping[str, Any], optimizer: Optimizer | None = None
    ) -> None:
        """Takes up what :meth:`gossip_state_dict` gave on this rank. A collective call.

        Load parameters, buffers and the optimizer's state before it. A round that is open is
        dropped.

        Args:
            state: As it was returned; it is copied.
            optimizer: Needed with ``momentum="exchanged"`` alone: the one that steps the model.

        Raises:
            InvalidArgument: The state is of another rank, number of ranks, model or configuration,
                which it names, or the ranks load states of unlike rounds.
        """
        if self._hooks is None:
            require_lone_state(state)
        else:
            self._hooks.load_state_dict(state, optimizer)


def _require_defaults(**arguments: object) -> None:
    for name, value in arguments.items():
        if name not in REFUSED:
            raise TypeError(f"DistributedDataParallel: unexpected argument '{name}'")
        default, reason = REFUSED[name]
        if value is not default and value != default:
            raise InvalidArgument(
                f"{name}: expected {default!r}, got {value!r}: not supported yet; {reason}"
            )
