"""Shared by all tests: one compute thread per process, and where the checkout is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; inherited by ranks


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Root of the source tree that these tests belong to."""
    return Path(__file__).resolve().parents[1]
