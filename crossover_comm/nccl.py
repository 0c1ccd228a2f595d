"""Which NCCL this process uses, and whether it is torch's."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache
from pathlib import Path

from crossover_comm import _C

__all__ = [
    "OVERRIDE_VARIABLE",
    "load_nccl",
    "package_library",
    "shared_gpu_environment",
    "torch_nccl_version",
]

OVERRIDE_VARIABLE = "CROSSOVER_NCCL_SO"

_logger = logging.getLogger("crossover_comm")


def package_library() -> str:
    """Path of libnccl.so.2 in the installed nvidia-nccl package; "" if there is none."""
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return ""
    for folder in (spec.submodule_search_locations or []) if spec else []:
        library = Path(folder) / "lib" / "libnccl.so.2"
        if library.is_file():
            return str(library)
    return ""


def torch_nccl_version() -> str | None:
    """Version of the NCCL that torch was built with or links; None for a torch without NCCL."""
    import torch

    if torch.version.cuda is None or not torch.distributed.is_nccl_available():
        return None
    return ".".join(str(part) for part in torch.cuda.nccl.version()[:3])


@cache
def load_nccl() -> _C.Nccl:
    """Loads NCCL: CROSSOVER_NCCL_SO, torch's own copy, the nvidia-nccl package, the loader's path.

    Warns, once in a process, if the version is not that of torch.

    Raises:
        TransportError: None was found, or the one found is too old or lacks a symbol.
    """
    nccl = _C.load_nccl(os.environ.get(OVERRIDE_VARIABLE, ""), package_library())
    of_torch = torch_nccl_version()
    if of_torch is not None and of_torch != nccl.version:
        _logger.warning(
            "crossover_comm uses NCCL %s (%s, %s), torch uses %s: two NCCLs in one process may "
            "disagree on buffers and topology; set %s to torch's",
            nccl.version,
            nccl.source,
            nccl.path,
            of_torch,
            OVERRIDE_VARIABLE,
        )
    return nccl


def shared_gpu_environment(rank: int) -> dict[str, str]:
    """What makes NCCL accept several ranks on one GPU: for tests, which it makes slow.

    Up to NCCL 2.29 each rank plays a host of its own and speaks over the loopback interface; from
    2.30.3 on there is a switch. To be set before NCCL is loaded.

    Args:
        rank: This rank.
    """
    return {
        "NCCL_HOSTID": f"crossover-rank-{rank}",
        "NCCL_NET": "Socket",
        "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_MAX_CTAS": "2",
        "NCCL_MULTI_RANK_GPU_ENABLE": "1",
        "NCCL_NVLS_ENABLE": "0",
    }
