"""Gossip for a training loop that keeps its model as it is and wraps the optimizer."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from crossover_comm.config import GossipConfig, resolve
from crossover_comm.context import Context, own_context
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import RoundHooks, attach
from crossover_comm.members import among
from crossover_comm.resume import lone_state, require_lone_state
from crossover_comm.segments import trainable_parameters
from crossover_comm.waiting import ForwardHook, OutputHook

__all__ = ["DistributedOptimizer"]

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


def DistributedOptimizer(  # noqa: N802, used like a class, as Horovod's
    optimizer: OptimizerT,
    model: nn.Module,
    *,
    gossip: str | GossipConfig | None = None,
    process_group: object = None,
    device_mesh: DeviceMesh | None = None,
    context: Context | None = None,
) -> OptimizerT:
    """Gossips the parameters that `optimizer` and `model` share, from now on.

    Returns the same object, so that its type, ``state_dict``, ``param_groups``, schedulers and
    GradScaler work as before. It has three methods more, ``no_sync()``, ``gossip_state_dict()`` and
    ``load_gossip_state_dict(state)``, as those of ``DistributedDataParallel``. Gossip ends when the
    optimizer is no longer held.

    A collective call: every rank makes it for the same models in the same order. Nothing is
    broadcast: call ``broadcast_parameters(model)`` to start from equal replicas. With several
    optimizers for parts of one model, wrap each with the whole model.

    The model may be sharded by FSDP2 along another dimension of a mesh (HSDP): ``fully_shard(model,
    mesh=mesh["shard"])``, then the optimizer, then this with ``device_mesh=mesh["replicate"]``.
    Each rank then gossips its shards with the ranks that hold the same ones, in mode ``"forward"``
    all awaited when the model's forward begins; without groups and momentum remedies.

    Args:
        optimizer: Holds some or all of the model's parameters.
        model: The module that the training loop calls.
        gossip: A preset's name or a :class:`GossipConfig`; ``"crossover"`` by default. The default
            overlap is ``"forward"``: after each step ``W (x after the step)``, mixed where the next
            forward reads it.
        process_group: A group of torch.distributed that this rank is in: gossip is among its ranks
            alone, and they alone make this call.
        device_mesh: In place of it a mesh of one dimension, such as ``mesh["replicate"]``.
        context: The rank's context if it is not the process's own.

    Raises:
        InvalidArgument: If `optimizer` is not torch's or cannot be stepped in parts where
            ``overlap="fused"`` wants it, a parameter cannot be exchanged or is gossiped already, or
            the ranks differ.
    """
    if not isinstance(optimizer, Optimizer):
        raise InvalidArgument(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    config = resolve(gossip)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = trainable_parameters(model, only=held)
    ranks = among(context or own_context(), process_group, device_mesh)
    hooks = attach(ranks, model, parameters, config, "forward")
    _add_methods(optimizer, hooks)
    if hooks is None:
        return optimizer
    hooks.bind(optimizer)
    if hooks.is_told_of_forwards:
        _announce_forwards(model, hooks)
    if hooks.gradients is not None:
        handle = model.register_forward_hook(OutputHook(hooks.gradients.watch))
        weakref.finalize(hooks, handle.remove).atexit = False
    return optimizer


def _add_methods(optimizer: Any, hooks: RoundHooks | None) -> None:
    if hooks is None:
        optimizer.no_sync = contextlib.nullcontext
        optimizer.gossip_state_dict = lone_state
        optimizer.load_gossip_state_dict = require_lone_state
        return
    optimizer.no_sync = hooks.no_sync  # holds the hooks
    optimizer.gossip_state_dict = hooks.state_dict
    ref = weakref.ref(optimizer)
    optimizer.load_gossip_state_dict = lambda state: hooks.load_state_dict(state, ref())


def _announce_forwards(model: nn.Module, hooks: RoundHooks) -> None:
    hook = ForwardHook(hooks.forward_begins)
    handle: RemovableHandle = model.register_forward_pre_hook(hook, prepend=True)
    weakref.finalize(hooks, handle.remove).atexit = False
