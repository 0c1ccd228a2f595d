"""Collectives outside training: barrier, allreduce, broadcast of a model or an optimizer.

All run on torch's gloo over a process group of our own. Before one moves data, the ranks see
through the store that each of them has called it, with the same shapes: a call made by some ranks
only ends in an error that names the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

import torch

from crossover_comm.agreement import canonical_json
from crossover_comm.context import Context, current_context
from crossover_comm.errors import InvalidArgument
from crossover_comm.gloo import GlooGroup
from crossover_comm.optimizer_state import decode_state, describe_tensor, encode_state, named_dtype

__all__ = [
    "allreduce",
    "allreduce_",
    "barrier",
    "batches",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "broadcast_within",
    "describe_tensors",
    "named_tensors",
]

Timeout: TypeAlias = float | timedelta | None
Parameters: TypeAlias = (
    torch.nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]
)

_BATCH_BYTES = 16 << 20
_SUMMED_AS = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def barrier(*, timeout: Timeout = None) -> None:
    """Returns when every rank has called it.

    Args:
        timeout: Seconds to wait for the other ranks; None: as init() was told.

    Raises:
        ProgressTimeout: Names the ranks that did not call it in time.
        InvalidArgument: Names the ranks that called something else.
    """
    context = current_context()
    context.agree("barrier", "{}", timeout)
    if context.gloo is not None:
        context.gloo.barrier("barrier")


def allreduce(
    tensor: torch.Tensor, *, average: bool = True, timeout: Timeout = None
) -> torch.Tensor:
    """The sum of a tensor over all ranks, or its mean; the same bits on every rank.

    Sums of float16 and bfloat16 are formed in float32. Autograd does not see it.

    Args:
        tensor: The same shape and dtype on every rank, on any device. Any shape.
        average: Divides by size(); for floating and complex tensors only.
        timeout: Seconds to wait for the other ranks; None: as init() was told.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        InvalidArgument: A dtype that cannot be summed or averaged, or a difference between ranks.
        ProgressTimeout: Names the ranks that did not call it in time.
    """
    return allreduce_(tensor.detach().clone(), average=average, timeout=timeout)


def allreduce_(
    tensor: torch.Tensor, *, average: bool = True, timeout: Timeout = None
) -> torch.Tensor:
    """`allreduce` in place; returns `tensor`."""
    _require_dense("allreduce", tensor)
    if tensor.dtype == torch.bool:
        raise InvalidArgument("allreduce: expected numbers, got torch.bool; convert it first")
    if average and not (tensor.is_floating_point() or tensor.is_complex()):
        raise InvalidArgument(
            f"allreduce: expected a floating or complex tensor for average=True, got {tensor.dtype}"
        )
    context = current_context()
    description = {**describe_tensor(tensor), "average": average}
    context.agree("allreduce", canonical_json(description), timeout)
    if context.gloo is None or tensor.numel() == 0:
        return tensor
    target = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    exact = target.dtype if target.is_floating_point() else torch.int64
    total = target.to("cpu", _SUMMED_AS.get(exact, exact), copy=True).contiguous()
    context.gloo.sum(total, "allreduce")
    if average:
        total /= context.launch.size
    with torch.no_grad():
        target.copy_(total)
    return tensor


def broadcast_parameters(
    parameters: Parameters, root_rank: int = 0, *, timeout: Timeout = None
) -> None:
    """Makes parameters and buffers equal to the root's, bit for bit.

    Args:
        parameters: A module (all its parameters and buffers), a state_dict, or named tensors. The
            same names, shapes and dtypes on every rank.
        root_rank: Whose values all ranks get.
        timeout: Seconds to wait for the other ranks; None: as init() was told.

    Raises:
        InvalidArgument: A difference between ranks, or something that is not a dense tensor.
        ProgressTimeout: Names the ranks that did not call it in time.
    """
    broadcast_within(current_context(), parameters, root_rank, timeout)


def broadcast_within(
    context: Context, parameters: Parameters, root_rank: int = 0, timeout: Timeout = None
) -> None:
    """As `broadcast_parameters`, among the ranks of a context, as it counts them."""
    call = "broadcast_parameters"
    _require_rank(call, context, root_rank)
    tensors = named_tensors(call, parameters)
    description = {"root_rank": root_rank, "tensors": describe_tensors(tensors)}
    if isinstance(parameters, torch.nn.Module):
        context.synchronize(parameters)
    context.agree(call, canonical_json(description), timeout)
    if context.gloo is not None:
        _broadcast_tensors(context, context.gloo, list(tensors.values()), root_rank, call)


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int = 0, *, timeout: Timeout = None
) -> None:
    """Makes an optimizer's state and hyper-parameters equal to the root's.

    Tensors travel as they are, everything else as JSON: None, bool, int, float, str, and lists,
    tuples and dicts of these. What a rank has beyond the root's state is dropped.

    Args:
        optimizer: With the same parameter groups on every rank.
        root_rank: Whose state all ranks get.
        timeout: Seconds to wait for the other ranks; None: as init() was told.

    Raises:
        InvalidArgument: Other parameter groups on some rank, or state of another kind.
        ProgressTimeout: Names the ranks that did not call it in time.
    """
    call = "broadcast_optimizer_state"
    context = current_context()
    _require_rank(call, context, root_rank)
    description = {
        "root_rank": root_rank,
        "optimizer": type(optimizer).__name__,
        "group_sizes": [len(group["params"]) for group in optimizer.param_groups],
    }
    context.agree(call, canonical_json(description), timeout)
    if context.gloo is None:
        return
    tensors: list[torch.Tensor] = []
    text = ""
    if context.launch.rank == root_rank:
        text = _encoded(optimizer, tensors)
    encoded = json.loads(_broadcast_text(context, context.gloo, text, root_rank, call))
    if "error" in encoded:
        raise InvalidArgument(f"{call}: rank {root_rank}: {encoded['error']}")
    if context.launch.rank != root_rank:
        tensors = [
            torch.empty(tensor["shape"], dtype=named_dtype(tensor["dtype"]))
            for tensor in encoded["tensors"]
        ]
    _broadcast_tensors(context, context.gloo, tensors, root_rank, call)
    if context.launch.rank != root_rank:
        optimizer.load_state_dict(decode_state(encoded["state"], tensors))


def named_tensors(call: str, parameters: Parameters) -> dict[str, torch.Tensor]:
    """What `parameters` holds by name, shared tensors once, each checked to be dense.

    Raises:
        InvalidArgument: Something is not a dense tensor, or a name occurs twice.
    """
    if isinstance(parameters, torch.nn.Module):
        items = [*parameters.named_parameters(), *parameters.named_buffers()]
    elif isinstance(parameters, Mapping):
        items = list(parameters.items())
    else:
        items = list(parameters)
    tensors = dict(items)
    if len(tensors) < len(items):
        raise InvalidArgument(f"{call}: a name occurs more than once")
    for name, tensor in tensors.items():
        _require_dense(f"{call}: {name!r}", tensor)
    return tensors


def describe_tensors(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, object]]:
    """Names, dtypes and shapes, ready for JSON."""
    return [{"name": name, **describe_tensor(tensor)} for name, tensor in tensors.items()]


def batches(tensors: Iterable[torch.Tensor], max_bytes: int) -> Iterator[list[torch.Tensor]]:
    """Consecutive non-empty tensors of one dtype, together at most `max_bytes` unless alone."""
    batch: list[torch.Tensor] = []
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        num_bytes = sum(t.nbytes for t in batch) + tensor.nbytes
        if batch and (num_bytes > max_bytes or tensor.dtype != batch[0].dtype):
            yield batch
            batch = []
        batch.append(tensor)
    if batch:
        yield batch


def _require_rank(call: str, context: Context, root_rank: int) -> None:
    if not 0 <= root_rank < context.launch.size:
        raise InvalidArgument(
            f"{call}: expected 0 <= root_rank < {context.launch.size}, got {root_rank}"
        )


def _require_dense(what: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgument(f"{what}: expected a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise InvalidArgument(
            f"{what}: expected a dense tensor with data, got {tensor.layout} on {tensor.device}"
        )
    if any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True)):
        raise InvalidArgument(f"{what}: its elements share memory (expanded?); clone it first")


def _encoded(optimizer: torch.optim.Optimizer, tensors: list[torch.Tensor]) -> str:
    try:
        state = encode_state(optimizer.state_dict(), tensors)
    except InvalidArgument as error:
        return canonical_json({"error": str(error)})
    return canonical_json({"state": state, "tensors": [describe_tensor(t) for t in tensors]})


def _broadcast_text(context: Context, gloo: GlooGroup, text: str, root_rank: int, call: str) -> str:
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else None
    num_bytes = torch.tensor([0 if data is None else data.numel()])
    gloo.broadcast(num_bytes, root_rank, call)
    if data is None or context.launch.rank != root_rank:
        data = torch.empty(int(num_bytes), dtype=torch.uint8)
    gloo.broadcast(data, root_rank, call)
    return data.numpy().tobytes().decode()


def _broadcast_tensors(
    context: Context,
    gloo: GlooGroup,
    tensors: Sequence[torch.Tensor],
    root_rank: int,
    call: str,
) -> None:
    for batch in batches(tensors, _BATCH_BYTES):
        data = torch.cat([_flat(tensor) for tensor in batch]).view(torch.uint8)
        gloo.broadcast(data, root_rank, call)
        if context.launch.rank == root_rank:
            continue
        values = data.view(batch[0].dtype).split([tensor.numel() for tensor in batch])
        with torch.no_grad():
            for tensor, value in zip(batch, values, strict=True):
                tensor.copy_(value.view(tensor.shape))


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().view(-1)
