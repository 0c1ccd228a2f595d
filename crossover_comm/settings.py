"""What init() was told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from torch._C._distributed_c10d import Store

from crossover_comm.errors import InvalidArgument

__all__ = ["STALL_WARNING_S", "NcclOptions", "Settings", "seconds"]

STALL_WARNING_S: Final = 60.0
TRANSPORTS: Final = ("auto", "nccl", "shm", "tcp")


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclOptions:
    """How NCCL is used. The same on every rank.

    Args:
        max_ctas: Most blocks of an exchange's kernel, >= 1. Each takes a multiprocessor while it
            waits, and on NVLink and PCIe 12 MiB of GPU memory for each peer.
        host_ready: Ranks agree over the host before a kernel is launched, so that none spins on the
            GPU for a rank that is late. Without it a launch is earlier by one notice's way.

    Raises:
        InvalidArgument: If a value is none of these.
    """

    max_ctas: int = 2
    host_ready: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.max_ctas, bool) or not isinstance(self.max_ctas, int):
            raise InvalidArgument(f"max_ctas: expected an integer, got {self.max_ctas!r}")
        if self.max_ctas < 1:
            raise InvalidArgument(f"max_ctas: expected at least 1, got {self.max_ctas}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What init() was told; a second call must say the same."""

    rank: int | None
    size: int | None
    store: Store | None
    timeout_s: float
    stall_timeout_s: float
    transport: str
    interface: str | None
    check_finite: bool
    event_capacity: int
    stall_warning_s: float = STALL_WARNING_S
    nccl: NcclOptions = NcclOptions()

    def require_transport(self) -> None:
        """Raises InvalidArgument if the transport is not one of ours."""
        if self.transport not in TRANSPORTS:
            raise InvalidArgument(
                f"transport: expected {', '.join(map(repr, TRANSPORTS[:-1]))} or "
                f"{TRANSPORTS[-1]!r}, got {self.transport!r}"
            )

    def require_same(self, now: Settings) -> None:
        """Raises InvalidArgument if `now` says something else."""
        changed = [
            f"{name}={getattr(now, name)!r} (before: {getattr(self, name)!r})"
            for name in Settings.__slots__
            if getattr(now, name) != getattr(self, name)
        ]
        if changed:
            raise InvalidArgument(
                f"init() was called before with other arguments: {', '.join(changed)}; "
                "call shutdown() in between"
            )


def seconds(name: str, value: float | timedelta) -> float:
    """A time in seconds.

    Raises:
        InvalidArgument: It is not finite and above zero.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(number) or number <= 0:
        raise InvalidArgument(f"{name}: expected a number of seconds > 0, got {value!r}")
    return number
