"""The one tree of errors; csrc/core/error.h carries the same names."""

from __future__ import annotations

__all__ = [
    "CrossoverError",
    "DeviceError",
    "InvalidArgument",
    "NonFiniteError",
    "ProgressTimeout",
    "TransportError",
]


class CrossoverError(RuntimeError):
    """Root of everything that crossover_comm raises on purpose."""


class InvalidArgument(CrossoverError, ValueError):
    """A mistake of the caller: the message says what was given, what was wanted, and where."""


class TransportError(CrossoverError):
    """A peer or a link failed: closed, refused, garbled, or silent past ``timeout``."""


class DeviceError(CrossoverError):
    """Device memory or a device call failed."""


class ProgressTimeout(CrossoverError):
    """A peer lives but did not take its part within ``stall_timeout``."""


class NonFiniteError(CrossoverError):
    """A parameter to be sent holds NaN or infinity; nothing of it was sent."""
