"""Registers a communication hook: a user's own exchange of gradients, or what gossip sends."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket

from crossover_comm.agreement import canonical_json
from crossover_comm.comm_bucket import CommBucket, CommHook, GradientHook, SentHook
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import RoundHooks

__all__ = ["register_comm_hook", "require_hook"]

_EMPTY = inspect.Parameter.empty
_BUCKETS = (_EMPTY, GradBucket, CommBucket)


def register_comm_hook(hooks: RoundHooks, state: Any, hook: CommHook) -> None:
    """Lets a hook exchange the gradients that are averaged, or choose what gossip sends.

    A collective call, outside of any backward.

    Args:
        hooks: The model's.
        state: The hook's first argument.
        hook: Gets the state and a :class:`CommBucket`.

    Raises:
        InvalidArgument: There is one already, several groups gossip, parameters are shards, the
            topology is push-sum, or only some ranks make this call.
    """
    gossip, gradients = hooks.gossip, hooks.gradients
    if gradients is not None and gradients.num_groups > 1:
        raise InvalidArgument(
            "register_comm_hook: expected no groups or groups='world', got several groups, which "
            "average gradients and gossip parameters"
        )
    if gossip.is_push_sum or gossip.is_sharded:
        raise InvalidArgument(
            "register_comm_hook: expected whole parameters and no push-sum, got "
            + ("shards of FSDP2" if gossip.is_sharded else "a column-stochastic topology")
        )
    name = getattr(hook, "__qualname__", type(hook).__qualname__)
    gossip.context.agree("register_comm_hook", canonical_json({"hook": name}))
    hooks.synchronize()
    if gradients is None:
        gossip.send_by(SentHook(hook, state, gossip.order, gossip.peers_of, gossip.fail))
        return
    size, rank = gossip.context.launch.size, gossip.context.launch.rank
    others = tuple(peer for peer in range(size) if peer != rank)
    gradients.exchange_by(GradientHook(hook, state, others, gossip.fail))


def require_hook(hook: object) -> None:
    """Checks a hook as torch's wrapper does: it is callable, and annotations that are types fit.

    Raises:
        TypeError: It cannot be called.
        InvalidArgument: An annotation says that it is no hook.
    """
    if not callable(hook):
        raise TypeError(f"Communication hook must be callable. Got {type(hook).__name__}")
    signature = inspect.signature(hook)
    given = [p.annotation for name, p in signature.parameters.items() if name == "bucket"]
    if any(isinstance(a, type) and a not in _BUCKETS for a in given):
        raise InvalidArgument(
            f"hook: bucket annotation should be dist.GradBucket. Got {given[0].__name__}"
        )
    returned = signature.return_annotation
    if isinstance(returned, type) and returned not in (_EMPTY, torch.Tensor, torch.futures.Future):
        raise InvalidArgument(
            "Communication hook: return annotation should be torch.futures.Future[torch.Tensor]; "
            f"got {returned.__name__}"
        )
