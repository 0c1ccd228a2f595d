"""Steps of a part of an optimizer's parameters, and the trial of who can be stepped so."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from crossover_comm.errors import InvalidArgument

__all__ = ["HyperParameters", "hyper_parameters", "require_separable", "step_group", "without"]

NUM_TRIAL_STEPS = 3
_OWN_TO_AN_OPTIMIZER = (
    "step",
    "state",
    "param_groups",
    "no_sync",
    "gossip_state_dict",
    "load_gossip_state_dict",
)
"""Attributes of an optimizer that its twin for a trial does not take."""

HyperParameters = dict[str, tuple[object, int]]
"""Of a parameter group, by name: the value and, if it is a tensor, its version."""


def step_group(optimizer: Optimizer, group: int, parameters: Sequence[torch.Tensor]) -> None:
    """Steps some parameters of one group, with its hyper-parameters as they are now.

    State goes where the whole step would put it. No hooks are called.
    """
    groups = [{**optimizer.param_groups[group], "params": list(parameters)}]
    _whole_step(optimizer)(_part(optimizer, groups))


def without(optimizer: Optimizer, excluded: Collection[int]) -> Optimizer:
    """What steps all parameters of `optimizer` but those with these ids. It is good for one step:
    hyper-parameters are those of now."""
    groups = [
        {**group, "params": [p for p in group["params"] if id(p) not in excluded]}
        for group in optimizer.param_groups
    ]
    return _part(optimizer, groups)


def hyper_parameters(group: dict[str, Any]) -> HyperParameters:
    """Those of a parameter group; two of these are equal only if nothing was changed between."""
    return {
        name: (id(value), value._version) if isinstance(value, torch.Tensor) else (value, 0)
        for name, value in group.items()
        if name != "params"
    }


def require_separable(optimizer: Optimizer) -> None:
    """Refuses optimizers that do more than to step each parameter by itself.

    Two small tensors per parameter group are stepped together, and again one by one; values, state
    and hyper-parameters must come out equal, bit for bit. The optimizer itself is left alone.

    Raises:
        InvalidArgument: Saying what came out differently, or what the trial raised.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            found = _difference(optimizer)
    except Exception as error:  # whatever a foreign optimizer raises is the answer
        found = f"{type(error).__name__}: {error}"
    if found is not None:
        raise InvalidArgument(
            "overlap='fused': expected an optimizer that steps every parameter by itself, got "
            f"{type(optimizer).__name__}, for which a trial on small tensors found: {found}; "
            "use overlap='forward'"
        )


def _part(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    part: Optimizer = object.__new__(type(optimizer))
    vars(part).update(vars(optimizer))
    vars(part).update(_no_hooks(optimizer), param_groups=groups)
    return part


def _no_hooks(optimizer: Optimizer) -> dict[str, Any]:
    return {name: OrderedDict() for name in vars(optimizer) if name.startswith("_optimizer_")}


def _whole_step(optimizer: Optimizer) -> Callable[[Optimizer], Any]:
    """The class's own step; what torch has put around it calls hooks and profiles."""
    step = type(optimizer).step
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]


def _twin(optimizer: Optimizer, tensors: list[list[nn.Parameter]]) -> Optimizer:
    """As `optimizer` without state, over other tensors: some for each group."""
    memo: dict[int, Any] = {}
    for group, small in zip(optimizer.param_groups, tensors, strict=True):
        memo.update((id(p), small[0]) for p in group["params"])
    twin: Optimizer = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if name not in _OWN_TO_AN_OPTIMIZER and not isinstance(value, weakref.ref):
            vars(twin)[name] = copy.deepcopy(value, memo)
    vars(twin).update(_no_hooks(optimizer), state=defaultdict(dict))
    vars(twin)["param_groups"] = [
        {name: copy.deepcopy(value, memo) for name, value in group.items() if name != "params"}
        | {"params": small}
        for group, small in zip(optimizer.param_groups, tensors, strict=True)
    ]
    return twin


def _small_tensors(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    """Two for each group that has any, of its first one's kind."""
    generator = torch.Generator().manual_seed(0)

    def small(like: torch.Tensor) -> nn.Parameter:
        shape = ((4, 3) + (2,) * like.ndim)[: like.ndim]
        return nn.Parameter(torch.randn(shape, generator=generator).to(like.device, like.dtype))

    return [
        [small(p) for p in group["params"][:1] for _ in range(2)]
        for group in optimizer.param_groups
    ]


def _difference(optimizer: Optimizer) -> str | None:
    """What a step one by one makes different; None: nothing."""
    tensors = _small_tensors(optimizer)
    together, single = _twin(optimizer, tensors), _twin(optimizer, copy.deepcopy(tensors))
    generator = torch.Generator().manual_seed(1)
    for _ in range(NUM_TRIAL_STEPS):
        _set_gradients(together, single, generator)
        _whole_step(together)(together)
        for index, group in reversed(list(enumerate(single.param_groups))):
            for p in reversed(group["params"]):
                step_group(single, index, [p])
        everything = {id(p) for group in single.param_groups for p in group["params"]}
        rest = without(single, everything)
        _whole_step(rest)(rest)
    return _first_difference(together, single)


def _set_gradients(together: Optimizer, single: Optimizer, generator: torch.Generator) -> None:
    for a, b in zip(_parameters_of(together), _parameters_of(single), strict=True):
        scale = 100.0 ** float(torch.rand((), generator=generator))
        gradient = scale * torch.randn(a.shape, generator=generator)
        a.grad = gradient.to(a.device, a.dtype)
        b.grad = a.grad.clone()


def _first_difference(together: Optimizer, single: Optimizer) -> str | None:
    for a, b in zip(_parameters_of(together), _parameters_of(single), strict=True):
        if not torch.equal(a, b):
            return "other values when it steps one parameter after the other"
        if not _same(together.state.get(a, {}), single.state.get(b, {})):
            return "another state when it steps one parameter after the other"
    for index, (one, other) in enumerate(
        zip(together.param_groups, single.param_groups, strict=True)
    ):
        for name in one.keys() - {"params"}:
            if not _same(one[name], other.get(name)):
                return f"its step writes param_groups[{index}]['{name}']"
    for name, value in vars(together).items():
        if isinstance(value, int | float | str) and value != vars(single).get(name):
            return f"its step writes its attribute '{name}'"
    return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _parameters_of(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
