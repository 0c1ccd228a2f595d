"""Runs a script as every rank of a job on this host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["outputs_of_ranks"]


def outputs_of_ranks(script: str, arguments: Sequence[str], num_ranks: int) -> list[str]:
    """What each rank wrote to its standard output.

    Raises:
        RuntimeError: A rank has failed; its own message stands above.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, script, *arguments]
    ranks = []
    for rank in range(num_ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
        place |= {"LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"{arguments}: ranks ended with {[rank.returncode for rank in ranks]}")
    return outputs
