"""The memory of what is posted: where it lies, and whether anybody wrote to it since."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crossover_comm.layout import is_sharded, layout_of, local_of, require_disjoint, spell_layout
from crossover_comm.versions import addresses_of, versions_of

__all__ = ["PostedMemory"]


class PostedMemory:
    """Where parameters were when they were posted, and how often they had been written.

    Args:
        names: Of the parameters.
        parameters: Some of them are posted at a time, told by a slice of their positions.

    Attributes:
        is_sharded: Parameters are FSDP2's, and what is exchanged are this rank's shards of them.
        addresses: As of their last posts; 0 before the first.
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[torch.Tensor]) -> None:
        self._names = names
        self._parameters = parameters
        self.is_sharded = any(map(is_sharded, parameters))
        self.addresses = [0] * len(parameters)
        self._versions = [0] * len(parameters)
        self._layouts = [layout_of(p) for p in self.held(parameters)]
        self._anchors = list[torch.Tensor](parameters)

    def held(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What of them lies on this rank."""
        return [local_of(t) for t in tensors] if self.is_sharded else tensors

    def note(self, span: slice) -> str | None:
        """Takes note of parameters that are about to be posted; what forbids it, if anything.

        Their memory is kept alive until others are noted in their place.
        """
        addresses = addresses_of(self.held(self._parameters[span]))
        if addresses != self.addresses[span]:
            held = self.held(self._parameters[span])
            for name, p, layout in zip(self._names[span], held, self._layouts[span], strict=True):
                if layout_of(p) != layout:
                    return (
                        f"parameter '{name}': expected {spell_layout(layout)} as at the start, "
                        f"got {spell_layout(layout_of(p))}; wrap the model again after changing it"
                    )
            everything = self.held(self._parameters)
            require_disjoint(dict(zip(self._names, everything, strict=True)))
            self._anchors[span] = [p.detach() for p in held]
            self.addresses[span] = addresses
        self._versions[span] = versions_of(self._parameters[span])
        return None

    def touched(self, span: slice, num_expected: int = 0) -> str | None:
        """The first that was moved since its post, or written more often than expected.

        Returns:
            "parameter 'fc.bias': written"; None if there is none.
        """
        parameters = self._parameters[span]
        if (
            versions_of(parameters) == self._versions[span]
            and addresses_of(self.held(parameters)) == self.addresses[span]
        ):
            return None
        for i, p in enumerate(parameters, span.start):
            is_moved = local_of(p).data_ptr() != self.addresses[i]
            if is_moved or p._version - self._versions[i] > num_expected:
                return f"parameter '{self._names[i]}': {'moved' if is_moved else 'written'}"
        return None
