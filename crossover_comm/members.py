"""Gossip among some ranks of the job: those of a process group, or of one dimension of a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.device_mesh import DeviceMesh

from crossover_comm import _C
from crossover_comm.agreement import StoreGroup
from crossover_comm.context import Context
from crossover_comm.errors import InvalidArgument
from crossover_comm.gloo import GlooGroup

__all__ = ["MemberContext", "among", "context_among"]


class MemberContext(Context):
    """What some ranks share: a rank, size, agreements and collectives of their own, over the
    engine, the links and the device of the whole job.

    A plan of theirs has an id that is free on all of them, for other ranks may wrap other models.

    Args:
        whole: The job's.
        members: Its ranks, this one among them, in the order in which they count here.
    """

    def __init__(self, whole: Context, members: Sequence[int]) -> None:
        place, size = list(members).index(whole.launch.rank), len(members)
        name = "-".join(map(str, members))
        store = whole.group.store if size > 1 else None
        group = StoreGroup(store and PrefixStore(f"among/{name}", store), place, size)
        gloo = None
        if store is not None and whole.gloo is not None:
            gloo_store = PrefixStore(f"among/{name}/gloo", store)
            timeout_s = whole.settings.timeout_s
            gloo = GlooGroup(gloo_store, place, size, whole.gloo.address, timeout_s)
        launch = replace(whole.launch, rank=place, size=size, local_rank=None, local_size=None)
        super().__init__(launch, whole.settings, group, whole.engine, gloo)
        self.placement = whole.placement
        self.members = tuple(members)
        self._whole = whole
        self._synchronizers = whole._synchronizers

    def agree(self, name: str, payload: str, timeout: float | timedelta | None = None) -> None:
        super().agree(f"{name} (ranks counted among {list(self.members)})", payload, timeout)

    def add_plan(
        self,
        plan: _C.SegmentPlan,
        schedule: _C.Schedule,
        first_round: int,
        device: _C.Device | None,
        raise_on_non_finite: bool | None = None,
    ) -> int:
        whole = self._whole
        call = f"plan of ranks {list(self.members)}"
        free = self.group.gather(call, whole.next_member_plan, self.settings.timeout_s)
        whole.next_member_plan = max(free) + 1
        spread = _C.among_members_schedule(schedule, self.members, whole.launch.size)
        return self.engine.add_plan(
            plan, spread, first_round, device, raise_on_non_finite, id=max(free)
        )


def context_among(whole: Context, members: Sequence[int]) -> Context:
    """The context of these ranks of a job; a collective call of theirs where it is the first."""
    key = tuple(members)
    if key == tuple(range(whole.launch.size)):
        return whole
    if key not in whole.parts:
        whole.parts[key] = MemberContext(whole, key)
    return whole.parts[key]


def among(
    whole: Context, process_group: object = None, device_mesh: DeviceMesh | None = None
) -> Context:
    """The context of the ranks of a process group of torch's, or of a mesh of one dimension.

    Args:
        whole: The job's.
        process_group: One that this rank is in; with `device_mesh` None.
        device_mesh: Of one dimension, such as ``mesh["replicate"]``: this rank's ranks along it.

    Returns:
        `whole` if neither is given, or the group is the whole job.

    Raises:
        InvalidArgument: Both are given, the mesh has several dimensions, the rank is not in the
            group, or torch.distributed counts ranks otherwise than crossover_comm.
    """
    if process_group is None and device_mesh is None:
        return whole
    if process_group is not None and device_mesh is not None:
        raise InvalidArgument(
            "Cannot specify both process_group and device_mesh arguments. Give one of them"
        )
    if device_mesh is not None:
        if device_mesh.ndim != 1:
            raise InvalidArgument(
                "device_mesh: expected one dimension, such as mesh['replicate'], got "
                f"{device_mesh.ndim}: {device_mesh}"
            )
        process_group = device_mesh.get_group()
    if not isinstance(process_group, dist.ProcessGroup):
        raise InvalidArgument(
            "process_group: expected a group of torch.distributed that this rank is in, got "
            f"{process_group!r}; each rank wraps with its own group"
        )
    theirs = dist.get_rank(), dist.get_world_size()
    ours = whole.launch.rank, whole.launch.size
    if theirs != ours:
        raise InvalidArgument(
            "process_group: expected torch.distributed to count as crossover_comm, where this is "
            f"rank {ours[0]} of {ours[1]}, got rank {theirs[0]} of {theirs[1]}"
        )
    return context_among(whole, dist.get_process_group_ranks(process_group))
