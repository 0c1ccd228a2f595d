"""How far the workers' models are apart, and the model in their middle."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch

from crossover_comm.agreement import canonical_json
from crossover_comm.collectives import (
    Parameters,
    Timeout,
    batches,
    describe_tensors,
    named_tensors,
)
from crossover_comm.context import Context
from crossover_comm.hooks import context_of
from crossover_comm.layout import local_of
from crossover_comm.shards import reshard

__all__ = ["averaged", "consensus_distance"]

_BATCH_BYTES = 4 << 20


def consensus_distance(model: torch.nn.Module, *, timeout: Timeout = None) -> float:
    """Root mean square distance of the workers' parameters from their mean.

        sqrt((1/n) * sum_i ||x_i - m||^2),   m = (1/n) * sum_i x_i

    over all parameters of the model, shared ones once, accumulated in float64. Every rank calls it
    and gets the same value; an open round of the model is closed first. The n workers are those of
    the process group that the model was wrapped with, if any. Of a model sharded by FSDP2 it is the
    distance of this rank's shards.

    Args:
        model: The wrapped model or the inner one, alike on every rank.
        timeout: Seconds to wait for the other ranks; None: as init() was told.

    Raises:
        InvalidArgument: The ranks' parameters differ in name, shape or dtype.
        ProgressTimeout: Names the ranks that did not call it in time.

    Source: Kong et al., "Consensus Control for Decentralized Deep Learning", arXiv 2102.04828.
    """
    call = "consensus_distance"
    reshard(model)
    context = context_of(model)
    parameters = _local_tensors(call, model.named_parameters())
    _arrive(context, call, model, parameters, timeout)
    if context.gloo is None:
        return 0.0
    squares = torch.zeros(1, dtype=torch.float64)
    for _, local, mean in _means(context, parameters.values(), call):
        squares += (local - mean).square().sum()
    context.gloo.sum(squares, call)
    return math.sqrt(float(squares) / context.launch.size)


@contextlib.contextmanager
def averaged(model: torch.nn.Module, *, timeout: Timeout = None) -> Iterator[torch.nn.Module]:
    """Inside, the model's parameters and buffers are their means over all workers, or over those of
    the process group that it was wrapped with.

        with averaged(model):
            evaluate(model)

    Means are formed in float64 and cast back; those of integer and bool buffers are rounded, halves
    to even. On exit, also by an exception, every local value is back bit for bit; what was written
    inside is lost. Entering is collective, leaving is not. An open round of the model is closed
    first.

    Args:
        model: The wrapped model or the inner one, alike on every rank.
        timeout: Seconds to wait for the other ranks; None: as init() was told.

    Yields:
        `model`.

    Raises:
        InvalidArgument: The ranks' tensors differ in name, shape or dtype.
        ProgressTimeout: Names the ranks that did not call it in time.
    """
    call = "averaged"
    reshard(model)
    context = context_of(model)
    tensors = _local_tensors(call, model)
    _arrive(context, call, model, tensors, timeout)
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    try:
        if context.gloo is not None:
            _replace_by_means(context, tensors.values(), call)
        yield model
        context.synchronize(model)
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)
        reshard(model)


def _local_tensors(call: str, parameters: Parameters) -> dict[str, torch.Tensor]:
    """Named tensors, of FSDP2's parameters this rank's shards."""
    return {name: local_of(t) for name, t in named_tensors(call, parameters).items()}


def _arrive(
    context: Context,
    call: str,
    model: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    timeout: Timeout,
) -> None:
    # First, since a rank that owes a round holds up peers that are not here yet.
    context.synchronize(model)
    context.agree(call, canonical_json({"tensors": describe_tensors(tensors)}), timeout)


def _replace_by_means(context: Context, tensors: Iterable[torch.Tensor], call: str) -> None:
    for batch, _, mean in _means(context, tensors, call):
        values = mean.split([tensor.numel() for tensor in batch])
        with torch.no_grad():
            for tensor, value in zip(batch, values, strict=True):
                exact = value if tensor.is_floating_point() else value.round()
                tensor.copy_(exact.view(tensor.shape))


def _means(
    context: Context, tensors: Iterable[torch.Tensor], call: str
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]]:
    """Tensors in batches; of each the elements here and their means, flat, float64 on the CPU."""
    assert context.gloo is not None
    real = [torch.view_as_real(t.detach()) if t.is_complex() else t.detach() for t in tensors]
    for batch in batches(real, _BATCH_BYTES):
        local = torch.cat([t.to("cpu", torch.float64).contiguous().view(-1) for t in batch])
        mean = local.clone()
        context.gloo.sum(mean, call)
        mean /= context.launch.size
        yield batch, local, mean
