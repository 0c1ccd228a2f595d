"""Who this process is: its rank, the size of the job and where the ranks meet."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from crossover_comm.errors import InvalidArgument

__all__ = ["Launch", "detect_launch", "find_process_group", "first_host"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One process's place in the job.

    Attributes:
        rank: 0 .. size - 1.
        size: Number of processes.
        local_rank: Index among the processes of this host; None if the launcher does not say.
        local_size: Number of processes on this host; None if the launcher does not say.
        master_addr: Host of rank 0, where the store is; None if a store is given.
        master_port: Port of the store.
        restart_count: How often the launcher has restarted the job; a part of every store key.
        agent_store: The launcher itself hosts the store, so rank 0 must not.
        source: Where this was read, for messages.
    """

    rank: int
    size: int
    local_rank: int | None = None
    local_size: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    restart_count: int = 0
    agent_store: bool = False
    source: str = "explicit arguments"

    def __post_init__(self) -> None:
        _check_index(self.source, "rank", self.rank, "size", self.size)
        if self.local_rank is not None and self.local_size is not None:
            _check_index(self.source, "local rank", self.local_rank, "local size", self.local_size)
        if self.local_size is not None and self.local_size > self.size:
            raise InvalidArgument(
                f"{self.source}: local size {self.local_size} is larger than size {self.size}"
            )
        if self.master_port is not None and not 1 <= self.master_port <= 65535:
            raise InvalidArgument(
                f"{self.source}: the master's port must be 1 to 65535, got {self.master_port}"
            )


def _check_index(source: str, name: str, index: int, size_name: str, size: int) -> None:
    if size < 1 or not 0 <= index < size:
        raise InvalidArgument(
            f"{source}: expected 0 <= {name} < {size_name}, got {name} {index} and "
            f"{size_name} {size}"
        )


def detect_launch(
    rank: int | None = None,
    size: int | None = None,
    *,
    has_store: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Launch:
    """The place of this process, from the first source that knows it.

    The order is: `rank` and `size`; torchrun's variables (also set by hand: RANK, WORLD_SIZE,
    MASTER_ADDR, MASTER_PORT); Open MPI's; Slurm's; none of them: one rank alone.

    Args:
        rank: Given by the caller, together with `size`.
        size: Given by the caller, together with `rank`.
        has_store: A store is at hand already, so that no master address is needed.
        environ: The environment.

    Raises:
        InvalidArgument: The source is incomplete or contradicts itself.
    """
    if (rank is None) != (size is None):
        raise InvalidArgument(
            f"init needs rank and size together or neither: got rank={rank}, size={size}"
        )
    if rank is not None and size is not None:
        launch = _explicit(rank, size, environ)
    elif "RANK" in environ or "WORLD_SIZE" in environ:
        launch = _torchrun(environ)
    elif "OMPI_COMM_WORLD_RANK" in environ or "OMPI_COMM_WORLD_SIZE" in environ:
        launch = _open_mpi(environ)
    elif "SLURM_PROCID" in environ:
        launch = _slurm(environ)
    else:
        return Launch(rank=0, size=1, local_rank=0, local_size=1, source="no launcher")
    if launch.size > 1 and not has_store:
        _require_master(launch)
    return launch


def find_process_group() -> tuple[int, int, Store] | None:
    """Rank, size and store of torch.distributed's default process group, if there is one."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    store = dist.distributed_c10d._get_default_store()
    return dist.get_rank(), dist.get_world_size(), store


def _integer(environ: Mapping[str, str], name: str, source: str) -> int:
    try:
        return int(environ[name])
    except KeyError:
        raise InvalidArgument(f"{source}: {name} is not set") from None
    except ValueError:
        raise InvalidArgument(
            f"{source}: expected an integer in {name}, got {environ[name]!r}"
        ) from None


def _optional_integer(environ: Mapping[str, str], name: str, source: str) -> int | None:
    return _integer(environ, name, source) if name in environ else None


def _require_together(environ: Mapping[str, str], names: tuple[str, ...], source: str) -> None:
    missing = [name for name in names if name not in environ]
    if missing:
        found = ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
        raise InvalidArgument(f"{source}: found {found}, but {', '.join(missing)} not set")


def _require_master(launch: Launch) -> None:
    values = {"MASTER_ADDR": launch.master_addr, "MASTER_PORT": launch.master_port}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise InvalidArgument(
            f"{launch.source}: rank {launch.rank} of {launch.size}, but {' and '.join(missing)} "
            f"not set; export the host of rank 0 and a free port there, or pass store="
        )


def _with_master(launch: Launch, environ: Mapping[str, str]) -> Launch:
    return replace(
        launch,
        master_addr=environ.get("MASTER_ADDR", launch.master_addr),
        master_port=(
            _integer(environ, "MASTER_PORT", launch.source)
            if "MASTER_PORT" in environ
            else launch.master_port
        ),
    )


def _explicit(rank: int, size: int, environ: Mapping[str, str]) -> Launch:
    launch = Launch(rank, size)
    if environ.get("RANK") == str(rank) and environ.get("WORLD_SIZE") == str(size):
        from_environ = _torchrun(environ)
        return replace(from_environ, source=launch.source)
    return launch if size == 1 else _with_master(launch, environ)


def _torchrun(environ: Mapping[str, str]) -> Launch:
    source = "torchrun's variables"
    _require_together(environ, ("RANK", "WORLD_SIZE"), source)
    launch = Launch(
        rank=_integer(environ, "RANK", source),
        size=_integer(environ, "WORLD_SIZE", source),
        local_rank=_optional_integer(environ, "LOCAL_RANK", source),
        local_size=_optional_integer(environ, "LOCAL_WORLD_SIZE", source),
        restart_count=_optional_integer(environ, "TORCHELASTIC_RESTART_COUNT", source) or 0,
        agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        source=source,
    )
    return _with_master(launch, environ)


def _open_mpi(environ: Mapping[str, str]) -> Launch:
    source = "Open MPI's variables"
    prefix = "OMPI_COMM_WORLD_"
    _require_together(environ, (prefix + "RANK", prefix + "SIZE"), source)
    launch = Launch(
        rank=_integer(environ, prefix + "RANK", source),
        size=_integer(environ, prefix + "SIZE", source),
        local_rank=_optional_integer(environ, prefix + "LOCAL_RANK", source),
        local_size=_optional_integer(environ, prefix + "LOCAL_SIZE", source),
        source=source,
    )
    return _with_master(launch, environ)


def _slurm(environ: Mapping[str, str]) -> Launch:
    source = "Slurm's variables"
    if "SLURM_STEP_NUM_TASKS" not in environ:
        tasks = environ.get("SLURM_NTASKS", "1")
        if tasks == "1":
            return Launch(rank=0, size=1, local_rank=0, local_size=1, source=source)
        raise InvalidArgument(
            f"{source}: found SLURM_PROCID and SLURM_NTASKS={tasks}, but SLURM_STEP_NUM_TASKS "
            "not set: the batch script runs this process itself; start it by srun, or pass "
            "rank=0, size=1 to run it alone"
        )
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST"))
    launch = Launch(
        rank=_integer(environ, "SLURM_PROCID", source),
        size=_integer(environ, "SLURM_STEP_NUM_TASKS", source),
        local_rank=_optional_integer(environ, "SLURM_LOCALID", source),
        master_addr=first_host(nodes) if nodes else None,
        master_port=_slurm_port(environ, source),
        restart_count=_optional_integer(environ, "SLURM_RESTART_COUNT", source) or 0,
        source=source,
    )
    return _with_master(launch, environ)


def _slurm_port(environ: Mapping[str, str], source: str) -> int | None:
    """A port below the ephemeral ones, the same in every process of a job step."""
    if "SLURM_JOB_ID" not in environ:
        return None
    job = _integer(environ, "SLURM_JOB_ID", source)
    step = _optional_integer(environ, "SLURM_STEP_ID", source) or 0
    return 15000 + (31 * job + step) % 16384


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: "n[003-007,9],m1" begins with "n003".

    Raises:
        InvalidArgument: The brackets are not those of a node list.
    """
    first = re.sub(r"\[(\d+)[^\[\]]*\]", r"\1", nodelist).partition(",")[0]
    if not re.fullmatch(r"[\w.-]+", first):
        raise InvalidArgument(f"Slurm's variables: cannot read the node list {nodelist!r}")
    return first
