"""What torch's tests get in place of what they ask for: our wrapper for torch's, the CPU for a GPU.

Only the runner of those tests does this, in its own processes; the package patches nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal import common_distributed
from torch.utils._pytree import tree_map

__all__ = ["CpuForGpu", "install", "join_world"]

STALL_TIMEOUT_S = 30.0
"""A rank that waits for ever for one that does something else is to fail before the test's end."""

_TorchDdp = nn.parallel.DistributedDataParallel


class CpuForGpu(TorchFunctionMode):
    """Tensors that are asked for or moved to a GPU are made or stay on the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        kwargs = kwargs or {}
        if func is torch.Tensor.to:
            args = (args[0], *(_to_cpu(arg, indices=i == 0) for i, arg in enumerate(args[1:])))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _to_cpu(kwargs["device"], indices=True)}
        return func(*args, **kwargs)


def install(preset: str | None, *, cpu_for_gpu: bool) -> None:
    """Replaces torch's wrapper, and GPUs, for whatever is imported from now on.

    Args:
        preset: Of the gossip; None: torch's own wrapper stays, as a control.
        cpu_for_gpu: Whether tests that ask for GPUs run on the CPU.
    """
    wrapper: type[nn.Module] = _TorchDdp if preset is None else _ours(preset)
    if cpu_for_gpu:
        wrapper = _without_device_ids(wrapper)
        _pretend_gpus()
    wrapper.__qualname__ = wrapper.__name__ = "DistributedDataParallel"
    globals()["DistributedDataParallel"] = wrapper
    nn.parallel.DistributedDataParallel = wrapper  # type: ignore[assignment, misc]


def join_world() -> None:
    """Joins the ranks of the test, whose default process group is there."""
    import crossover_comm

    if torch.distributed.is_initialized() and not crossover_comm.is_initialized():
        crossover_comm.init(stall_timeout=STALL_TIMEOUT_S)


def _ours(preset: str) -> type[nn.Module]:
    from crossover_comm import DistributedDataParallel

    class Ours(DistributedDataParallel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            join_world()
            super().__init__(*args, gossip=preset, **kwargs)

    Ours.__module__ = __name__
    return Ours


def _without_device_ids(wrapper: Any) -> type[nn.Module]:
    class OnCpu(wrapper):  # type: ignore[misc]
        def __init__(self, module: nn.Module, device_ids: Any = None, *args: Any, **kwargs: Any):
            del device_ids
            kwargs.pop("output_device", None)
            super().__init__(module, None, *args, **kwargs)

    OnCpu.__module__ = __name__
    return OnCpu


def _pretend_gpus() -> None:
    def always(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda test: test

    common_distributed.skip_if_lt_x_gpu = always
    common_distributed.nccl_skip_if_lt_x_gpu = always
    common_distributed.skip_if_no_gpu = lambda test: test
    torch.cuda.device_count = lambda: int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device = lambda device: None
    torch.cuda.current_device = lambda: 0
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.device = _no_device  # type: ignore[assignment, misc]
    nn.Module.cuda = lambda module, device=None: module  # type: ignore[assignment]
    _send_modules_nowhere(nn.Module.to)


def _send_modules_nowhere(move: Callable[..., nn.Module]) -> None:
    @functools.wraps(move)
    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        args, kwargs = tree_map(functools.partial(_to_cpu, indices=True), (args, kwargs))
        return move(module, *args, **kwargs)

    nn.Module.to = to  # type: ignore[assignment, method-assign]


@contextlib.contextmanager
def _no_device(device: object) -> Iterator[None]:
    del device
    yield


def _to_cpu(value: Any, *, indices: bool) -> Any:
    is_gpu = (
        (isinstance(value, torch.device) and value.type == "cuda")
        or (isinstance(value, str) and value.startswith("cuda"))
        or (indices and isinstance(value, int) and not isinstance(value, bool))
    )
    return torch.device("cpu") if is_gpu else value
