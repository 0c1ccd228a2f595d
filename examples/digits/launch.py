"""Runs train.py in several worker processes under torchrun and reads what they recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NUM_WORKERS = 4

WorkerRecord = dict[str, Any]
"""train.Record of one worker, as read from its JSON file."""


def run_workers(
    method: str, output: Path, *options: str, workers: int = NUM_WORKERS
) -> list[WorkerRecord]:
    """Trains once by `method`; returns the workers' records by rank.

    Raises:
        subprocess.CalledProcessError: A worker failed; its own message stands above on stderr.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(workers), str(Path(__file__).with_name("train.py"))]
    command += ["--method", method, "--output", str(output), *options]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return [json.loads((output / f"rank{r}.json").read_text()) for r in range(workers)]
