"""The cut of a model into segments: a function of the model alone, equal on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from crossover_comm.blocks import units_of, visible_path
from crossover_comm.config import Overlap, SegmentRule
from crossover_comm.errors import InvalidArgument
from crossover_comm.layout import DTYPE_NAMES, local_of, require_disjoint, require_exchangeable

__all__ = ["Segment", "cut", "describe", "issue_order", "trainable_parameters"]

ALIGNED_NUMEL = 128
"""A tensor with a multiple of so many elements keeps the next one's offset 256-byte aligned."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Parameters of one dtype that are exchanged as one message.

    Elements are those of the tensors' memory laid end to end: a ``channels_last`` weight travels in
    its own order, which is why strides are compared at start.
    """

    name: str
    dtype: torch.dtype
    tensors: tuple[str, ...]
    """Names of the parameters."""
    parameters: tuple[nn.Parameter, ...]
    wait_modules: tuple[str, ...]
    """Paths of the modules that read the parameters: the first to be called awaits the segment."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """A module that reads the named parameters; None: whichever modules own them."""

    path: str | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    label: str
    readers: tuple[_Reader, ...]

    def names(self) -> list[str]:
        return [name for reader in self.readers for name in reader.names]


def trainable_parameters(
    model: nn.Module, only: Iterable[torch.Tensor] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters to be gossiped, by name, in model order; a tied one once, under its first.

    Frozen parameters (``requires_grad=False``) are left out: no step changes them, so they stay
    what the initial broadcast made them.

    Args:
        only: Restricts the choice, for an optimizer that holds a part of the model.

    Raises:
        InvalidArgument: If none is left, or the model is sharded by FSDP1.
    """
    _refuse_fsdp1(model)
    chosen = None if only is None else {id(p) for p in only}
    found = {
        visible_path(name): p
        for name, p in model.named_parameters()
        if p.requires_grad and (chosen is None or id(p) in chosen)
    }
    if not found:
        whose = "the model" if chosen is None else "the optimizer and the model together"
        raise InvalidArgument(f"expected {whose} to have a parameter that requires a gradient")
    return found


def _refuse_fsdp1(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise InvalidArgument(
                f"module '{path}': expected one that is not sharded or by FSDP2's fully_shard, got "
                "FullyShardedDataParallel, whose flat parameters move"
            )


def cut(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], rule: SegmentRule
) -> list[Segment]:
    """Cuts `parameters`, some or all of the model's, into segments in model order.

    ``"blocks"``: one segment per residual or transformer block, see
    :func:`crossover_comm.blocks.units_of`; a block of several dtypes becomes one segment for each.
    A number: consecutive parameters of one dtype up to so many bytes; a larger one is alone.

    Within a segment, tensors whose number of elements is a multiple of 128 come first, so that
    most offsets on the wire are aligned without padding.

    Raises:
        InvalidArgument: Naming a parameter that cannot be exchanged.
    """
    for name, parameter in parameters.items():
        require_exchangeable(name, local_of(parameter))
    require_disjoint({name: local_of(parameter) for name, parameter in parameters.items()})
    if rule == "blocks":
        groups = _cut_at_blocks(model, parameters)
    else:
        groups = _pack(parameters, max_bytes=int(rule))
    owners = _Owners(model)
    return [_segment(group, parameters, owners) for group in groups]


def issue_order(num_segments: int, overlap: Overlap) -> list[int]:
    """The order in which segments are posted and awaited, as indices in model order.

    Modes ``"backward"`` and ``"fused"`` start at the model's end, whose gradients are ready first;
    the others start at its begin. Mode ``"forward"`` replaces it by the order in which a forward
    needs them, see :class:`crossover_comm.first_needed.FirstNeeded`.
    """
    order = range(num_segments)
    return list(reversed(order)) if overlap in ("backward", "fused") else list(order)


def describe(segments: Sequence[Segment]) -> list[dict[str, object]]:
    """The cut, ready for JSON: what must be equal on every rank; of shards their own shapes."""
    return [
        {
            "name": segment.name,
            "dtype": DTYPE_NAMES[segment.dtype],
            "tensors": [
                {"name": name, "shape": list(p.shape), "stride": list(p.stride())}
                for name, p in zip(segment.tensors, map(local_of, segment.parameters), strict=True)
            ],
        }
        for segment in segments
    ]


def _segment(group: _Group, parameters: Mapping[str, nn.Parameter], owners: _Owners) -> Segment:
    names = sorted(group.names(), key=lambda name: parameters[name].numel() % ALIGNED_NUMEL != 0)
    return Segment(
        name=group.label,
        dtype=parameters[names[0]].dtype,
        tensors=tuple(names),
        parameters=tuple(parameters[name] for name in names),
        wait_modules=owners.wait_modules(group.readers, parameters),
    )


def _cut_at_blocks(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[_Group]:
    for units in units_of(model, parameters):
        label = _span(units[0].label, units[-1].label)
        dtypes = dict.fromkeys(parameters[name].dtype for unit in units for name in unit.names)
        for dtype in dtypes:
            readers = [
                _Reader(unit.path, tuple(n for n in unit.names if parameters[n].dtype == dtype))
                for unit in units
            ]
            yield _Group(
                label if len(dtypes) == 1 else f"{label} ({DTYPE_NAMES[dtype]})",
                tuple(reader for reader in readers if reader.names),
            )


def _pack(parameters: Mapping[str, nn.Parameter], *, max_bytes: int) -> Iterator[_Group]:
    packed: list[str] = []
    packed_bytes = 0
    for name, p in parameters.items():
        num_bytes = p.numel() * p.element_size()
        is_other = bool(packed) and parameters[packed[-1]].dtype != p.dtype
        if packed and (is_other or packed_bytes + num_bytes > max_bytes):
            yield _group_of_parameters(packed)
            packed, packed_bytes = [], 0
        packed.append(name)
        packed_bytes += num_bytes
    yield _group_of_parameters(packed)


def _group_of_parameters(names: list[str]) -> _Group:
    return _Group(_span(names[0], names[-1]), tuple(_Reader(None, (name,)) for name in names))


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first}..{last}"


class _Owners:
    """Which modules hold a parameter, and where it is to be awaited."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._paths: dict[int, list[str]] = {}
        for path, module in self._modules.items():
            for parameter in module.parameters(recurse=False):
                self._paths.setdefault(id(parameter), []).append(path)

    def wait_modules(
        self, readers: Iterable[_Reader], parameters: Mapping[str, nn.Parameter]
    ) -> tuple[str, ...]:
        """For each reader the lowest module above it and all owners of what it reads."""
        paths = []
        for reader in readers:
            owners = [path for name in reader.names for path in self._paths[id(parameters[name])]]
            below = owners if reader.path is None else [reader.path, *owners]
            paths.append(self._called(_common_ancestor(below)))
        unique = dict.fromkeys(paths)
        return tuple(p for p in unique if not any(_is_below(p, other) for other in unique))

    def _called(self, path: str) -> str:
        """The lowest module at or above `path` whose forward pre-hook fires."""
        steps = path.split(".") if path else []
        ancestors = [".".join(steps[:n]) for n in range(len(steps) + 1)]
        for ancestor in ancestors:
            if isinstance(self._modules[ancestor], nn.MultiheadAttention):
                return ancestor
        while path and not _can_be_called(self._modules[path]):
            path = path.rpartition(".")[0]
        return path


def _can_be_called(module: nn.Module) -> bool:
    has_own = "forward" in vars(module)  # a compiled module
    return has_own or type(module).forward is not nn.Module.forward


def _common_ancestor(paths: Sequence[str]) -> str:
    split = [path.split(".") if path else [] for path in paths]
    common: list[str] = []
    for steps in zip(*split, strict=False):
        if len(set(steps)) != 1:
            break
        common.append(steps[0])
    return ".".join(common)


def _is_below(path: str, other: str) -> bool:
    return path != other and (other == "" or path.startswith(f"{other}."))
