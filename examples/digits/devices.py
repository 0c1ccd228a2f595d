"""Which device a worker trains on."""

from __future__ import annotations

import os

import torch

from crossover_comm.nccl import shared_gpu_environment


def choose_device(kind: str) -> torch.device:
    """The CPU, or this worker's GPU: workers take them in turn.

    With more workers than GPUs several share one, which is for trials: NCCL is then told to accept
    that, and uses the slow way between them.

    Args:
        kind: "cpu" or "cuda".
    """
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("--device=cuda: torch finds no GPU; python -m crossover_comm.doctor")
    local_rank = int(os.environ["LOCAL_RANK"])
    if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        os.environ.update(shared_gpu_environment(int(os.environ["RANK"])))
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
