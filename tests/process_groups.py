"""Process groups of backend "crossover" whose members are threads of the test's process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

import torch.distributed as dist

from crossover_comm import _C
from crossover_comm.process_group import CrossoverProcessGroup
from crossover_comm.process_group.engine_group import Membership

__all__ = ["errors_in_groups", "in_groups", "options"]

ResultT = TypeVar("ResultT")

TIMEOUT_S = 60.0
UNSET = dist.AllreduceOptions().timeout


def options(op: Any = dist.ReduceOp.SUM, root: int = 0, timeout: Any = UNSET) -> Any:
    """What torch.distributed's functions would pass on."""
    made = dist.ReduceOptions()
    made.reduceOp, made.rootRank, made.timeout = op, root, timeout
    return SimpleNamespace(reduceOp=made.reduceOp, rootRank=root, timeout=timeout)


def in_groups(
    size: int,
    work: Callable[[CrossoverProcessGroup], ResultT],
    *,
    timeout_s: float = TIMEOUT_S,
    delay_probability: float = 0.0,
) -> list[ResultT]:
    """What `work` returns on each member, run at once; the first exception if there is one.

    Args:
        size: Number of members.
        work: Called with the member's group.
        timeout_s: Of each collective.
        delay_probability: Of what has arrived to be seen late.
    """
    network = _C.LocalNetwork(size, seed=1, delay_probability=delay_probability)
    groups = [_group(network, rank, size, timeout_s) for rank in range(size)]

    def one(group: CrossoverProcessGroup) -> ResultT:
        try:
            return work(group)
        except BaseException:
            group.abort()  # the others would wait
            raise

    try:
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(one, groups))
    finally:
        for group in groups:
            group.shutdown()


def errors_in_groups(
    size: int, work: Callable[[CrossoverProcessGroup], object], *, timeout_s: float = TIMEOUT_S
) -> list[str]:
    """As in_groups, but what each member raises, as "Type: message", or "returned"."""

    def guarded(group: CrossoverProcessGroup) -> str:
        try:
            work(group)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "returned"

    return in_groups(size, guarded, timeout_s=timeout_s)


def _group(
    network: _C.LocalNetwork, rank: int, size: int, timeout_s: float
) -> CrossoverProcessGroup:
    engine = _C.Engine(
        rank=rank,
        size=size,
        pipes=network.take_pipes(rank),
        timeout_s=TIMEOUT_S,
        stall_timeout_s=timeout_s,
        stall_warning_s=timeout_s,
        raise_on_non_finite=False,
        event_capacity=0,
        incarnation=rank,
        warn=print,
    )
    return CrossoverProcessGroup(Membership("threads", rank, size, timeout_s), engine)
