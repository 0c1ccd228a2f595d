"""Where a model is cut: its blocks, found along the module tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

__all__ = ["Unit", "units_of", "visible_path"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

WRAPPER_PATHS = ("_orig_mod", "_checkpoint_wrapped_module")
"""Path components that torch.compile and activation checkpointing put into a parameter's name."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters that are not separated, and the module that reads them."""

    label: str
    path: str
    """The module's path in the model as it is; "" for the model itself."""
    names: tuple[str, ...]
    is_block: bool


def visible_path(path: str) -> str:
    """`path` without what torch.compile and checkpoint wrappers put into it."""
    return ".".join(part for part in path.split(".") if part not in WRAPPER_PATHS)


def units_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[list[Unit]]:
    """Groups of units in model order; each group is one segment (or one for each dtype).

    A *leaf* has no submodule with parameters (``MultiheadAttention`` counts as one: it reads its
    submodule's weight without calling it). A *container* is a ``Sequential``, ``ModuleList`` or
    ``ModuleDict``. Every other module with parameters is *compound*.

    The walk starts at the model and goes through containers. It also goes through a compound module
    that holds a list of blocks (a container with at least two compound members), or that holds more
    than half of the model and at least two compound modules outside lists. Any other compound
    module is a block: one unit. So is each leaf on the way; the leaves before the first block are
    the stem, one group. Every other unit is a group by itself.

    ResNet-50: stem, 16 bottlenecks, fc. A GPT: embeddings, each block, final norm, head.
    """
    units = list(_Walk(model, parameters).units())
    first_block = next((i for i, unit in enumerate(units) if unit.is_block), 0)
    stem = [units[:first_block]] if first_block > 0 else []
    return stem + [[unit] for unit in units[first_block:]]


class _Walk:
    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model = model
        self._left = {id(p): name for name, p in parameters.items()}
        self._half_numel = sum(p.numel() for p in model.parameters()) / 2

    def units(self) -> Iterator[Unit]:
        """Units in model order; each parameter appears in the first unit that holds it."""
        inner = getattr(self._model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            yield from self._descend("_orig_mod", inner)
        else:
            yield from self._descend("", self._model)

    def _descend(self, path: str, module: nn.Module) -> Iterator[Unit]:
        yield from self._unit(path, module.parameters(recurse=False), is_block=False)
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            if self._is_passed_through(child):
                yield from self._descend(child_path, child)
            else:
                yield from self._unit(child_path, child.parameters(), is_block=_is_compound(child))

    def _is_passed_through(self, module: nn.Module) -> bool:
        if isinstance(module, CONTAINERS):
            return True
        if not _is_compound(module):
            return False
        if any(_is_block_list(m) for m in module.modules()):
            return True
        is_most = sum(p.numel() for p in module.parameters()) > self._half_numel
        return is_most and len(_compounds_within(module)) >= 2

    def _unit(
        self, path: str, parameters: Iterator[nn.Parameter], *, is_block: bool
    ) -> Iterator[Unit]:
        found = [self._left.pop(id(p), None) for p in parameters]
        names = tuple(name for name in found if name is not None)
        if names:
            label = visible_path(path) or names[0]
            yield Unit(label=label, path=path, names=names, is_block=is_block)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_compound(module: nn.Module) -> bool:
    if isinstance(module, (*CONTAINERS, nn.MultiheadAttention)):
        return False
    return any(_has_parameters(child) for child in module.children())


def _is_block_list(module: nn.Module) -> bool:
    return (
        isinstance(module, CONTAINERS)
        and sum(_is_compound(child) for child in module.children()) >= 2
    )


def _compounds_within(module: nn.Module) -> list[nn.Module]:
    """Compound modules that are reached from `module` through containers only."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, CONTAINERS):
            found += _compounds_within(child)
        elif _is_compound(child):
            found.append(child)
    return found
