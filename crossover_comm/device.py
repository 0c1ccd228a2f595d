"""Where gossiped models live: the CPU or one GPU, and what moves parameters from there.

The first model decides for the process. With a model on a GPU, transport "auto" and "nccl" put NCCL
over the host links, which then carry agreements, heartbeats and farewells; "tcp" and "shm" copy
parameters through pinned host memory. Nothing is chosen silently: where NCCL is wanted and cannot
be used, that is an error.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from crossover_comm import _C
from crossover_comm.agreement import StoreGroup
from crossover_comm.errors import CrossoverError, DeviceError, InvalidArgument, TransportError
from crossover_comm.nccl import load_nccl
from crossover_comm.seal import Seal
from crossover_comm.settings import Settings

__all__ = ["ModelDevice", "Placement", "cuda_module", "current_stream", "device_of"]

_ID_CALL = "NCCL id"


def cuda_module() -> ModuleType:
    """crossover_comm._cuda, imported on first use.

    Raises:
        DeviceError: It is not built, not loadable or not of the same build as the rest.
    """
    if importlib.util.find_spec("crossover_comm._cuda") is None:
        raise DeviceError(
            "this build has no crossover_comm._cuda: it was made without nvcc or with "
            "CROSSOVER_CUDA=OFF"
        )
    try:
        return importlib.import_module("crossover_comm._cuda")
    except ImportError as error:
        raise DeviceError(
            f"crossover_comm._cuda is there, but cannot be loaded: {error}"
        ) from error


def device_of(tensor: torch.Tensor) -> torch.device:
    """Where a parameter lies."""
    return tensor.device


def current_stream(device: torch.device) -> int:
    """The handle of the stream that the calling thread launches on."""
    return int(torch.cuda.current_stream(device).cuda_stream)


@dataclass(frozen=True, slots=True)
class ModelDevice:
    """Where one model lives, as its gossip needs to know.

    Attributes:
        device: With its index on a GPU.
        handle: The engine's; None: the host.
        nccl: The library that moves messages; None: the host transports do.
    """

    device: torch.device
    handle: _C.Device | None = None
    nccl: _C.Nccl | None = None

    def describe(self) -> dict[str, object]:
        """What must be equal on every rank, ready for JSON."""
        moved_by = "the host transports" if self.nccl is None else f"NCCL {self.nccl.version}"
        return {"type": self.device.type, "messages moved by": moved_by}

    @property
    def posts_in_order(self) -> bool:
        """Whether every rank is to post segments in the same order."""
        return self.nccl is not None

    def stream(self) -> int:
        """The stream that parameters are written on now; 0 on the host."""
        return 0 if self.handle is None else current_stream(self.device)

    def refuse_capture(self) -> None:
        """Raises InvalidArgument while a model on a GPU is captured into a CUDA graph."""
        if self.handle is not None and torch.cuda.is_current_stream_capturing():
            raise InvalidArgument(
                "a CUDA graph is being captured: its replay runs no hooks, so that nothing would "
                "be exchanged; capture the model without crossover_comm's wrapper"
            )


class Placement:
    """The one device of a rank, and its NCCL.

    Args:
        settings: What init() was told.
        group: All ranks.
        engine: Gets the NCCL layer.
        seal: Marks the NCCL id; None only with ranks that never use NCCL.
    """

    def __init__(
        self, settings: Settings, group: StoreGroup, engine: _C.Engine, seal: Seal | None
    ) -> None:
        self._settings = settings
        self._group = group
        self._engine = engine
        self._seal = seal
        self._place: ModelDevice | None = None
        self._is_connected = False

    def of(self, parameters: Mapping[str, torch.Tensor]) -> ModelDevice:
        """Where these parameters live. The first call decides for all that follow.

        Raises:
            InvalidArgument: They live on several devices, or elsewhere than the models before.
            DeviceError: On a GPU, and this build or machine cannot use it.
            TransportError: On a GPU, and NCCL is wanted and cannot be used.
        """
        device = _only_device(parameters, self._place)
        if self._place is None:
            self._place = self._opened(device)
        return self._place

    def connect(self) -> None:
        """Puts NCCL over the host links if it is to be used; called by every rank.

        Before the engine's first plan. The links to the peers are made in the background.

        Raises:
            TransportError: Rank 0 has no id for the others, or a stranger wrote one.
            ProgressTimeout: Some ranks did not call it in time.
        """
        place = self._place
        if place is None or place.nccl is None or self._is_connected:
            return
        settings = self._settings
        layer = cuda_module().nccl_layer(
            nccl=place.nccl,
            device=place.handle,
            rank=self._group.rank,
            size=self._group.size,
            unique_id=self._shared_id(place.nccl),
            timeout_s=settings.timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
            max_ctas=settings.nccl.max_ctas,
            host_ready=settings.nccl.host_ready,
        )
        self._engine.add_transport_layer(layer)
        self._is_connected = True

    def _opened(self, device: torch.device) -> ModelDevice:
        transport = self._settings.transport
        if device.type == "cpu":
            if transport == "nccl":
                raise InvalidArgument(
                    "transport='nccl': expected a model on a GPU, got one on the CPU; move it "
                    "before wrapping it, or use transport='auto'"
                )
            return ModelDevice(device)
        try:
            handle = cuda_module().CudaDevice(device.index)
        except DeviceError as error:
            raise DeviceError(f"the model is on {device}: {error}") from error
        return ModelDevice(device, handle, self._usable_nccl(device))

    def _usable_nccl(self, device: torch.device) -> _C.Nccl | None:
        if self._settings.transport in ("tcp", "shm"):
            return None
        try:
            return load_nccl()
        except TransportError as error:
            raise TransportError(
                f"the model is on {device}, but NCCL cannot be used: {error}\n"
                "To copy parameters through host memory instead, ask for it: "
                "crossover_comm.init(transport='tcp')"
            ) from error

    def _shared_id(self, nccl: _C.Nccl) -> bytes:
        """Rank 0's, through the store, sealed."""
        assert self._seal is not None
        own: dict[str, Any] = {}
        if self._group.rank == 0:
            try:
                unique_id = nccl.unique_id()
                own = {"id": unique_id.hex(), "mark": self._seal.mark(_ID_CALL, unique_id)}
            except CrossoverError as error:
                own = {"error": str(error)}
        first = self._group.gather(_ID_CALL, own, self._settings.timeout_s)[0]
        if "error" in first:
            raise TransportError(f"rank 0 has no NCCL id: {first['error']}")
        unique_id = bytes.fromhex(first["id"])
        self._seal.require(_ID_CALL, unique_id, first["mark"])
        return unique_id


def _only_device(parameters: Mapping[str, torch.Tensor], place: ModelDevice | None) -> torch.device:
    name, first = next(iter(parameters.items()))
    wanted = device_of(first) if place is None else place.device
    whose = f"parameter '{name}'" if place is None else "the models wrapped before"
    for other, parameter in parameters.items():
        device = device_of(parameter)
        if device != wanted:
            raise InvalidArgument(
                f"parameter '{other}': expected it on {wanted} like {whose}, got {device}; a "
                "process gossips models on one device, each whole"
            )
    return wanted
