"""Callbacks that do not keep their object alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import ParamSpec

__all__ = ["weakly"]

ParamsT = ParamSpec("ParamsT")


def weakly(method: Callable[ParamsT, None]) -> Callable[ParamsT, None]:
    """Calls a bound method while its object lives, and nothing afterwards."""
    ref = weakref.WeakMethod(method)

    def call(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> None:
        living = ref()
        if living is not None:
            living(*args, **kwargs)

    return call
