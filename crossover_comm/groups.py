"""Groups of ranks: who averages gradients exactly, and how gossip is cut among the members."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, Literal, TypeAlias

from crossover_comm import _C
from crossover_comm.context import Context
from crossover_comm.errors import InvalidArgument
from crossover_comm.interfaces import Locality

__all__ = [
    "GroupRule",
    "Groups",
    "Hierarchy",
    "SegmentSize",
    "frozen_rule",
    "groups_of",
    "hosts",
    "shards_of",
    "within_groups",
]

Groups: TypeAlias = tuple[tuple[int, ...], ...]
"""Members by group, the root first."""
GroupRule: TypeAlias = Literal["host", "world"] | int | Groups
Hierarchy: TypeAlias = Literal["sharded", "root"]
SegmentSize: TypeAlias = tuple[Sequence[int], int]
"""Elements of each tensor of a segment, and bytes of an element."""

GROUP_NAMES: Final = ("host", "world")


def frozen_rule(rule: object) -> GroupRule:
    """The rule with lists made tuples.

    Raises:
        InvalidArgument: It is not a rule.
    """
    if rule in GROUP_NAMES and isinstance(rule, str):
        return rule
    if isinstance(rule, int) and not isinstance(rule, bool) and rule >= 1:
        return rule
    if isinstance(rule, Sequence) and not isinstance(rule, str):
        try:
            groups = tuple(tuple(int(rank) for rank in members) for members in rule)
        except (TypeError, ValueError):
            groups = ()
        if groups and all(groups):
            return groups
    raise InvalidArgument(
        "groups: expected 'host', 'world', a number of ranks per group >= 1, or lists of ranks, "
        f"got {rule!r}"
    )


def groups_of(rule: GroupRule, size: int, machines: Callable[[], Sequence[str]]) -> Groups:
    """The groups that a rule means in a job of `size` ranks.

    Args:
        rule: ``"host"``: one group for each machine; ``"world"``: one of all ranks; a number:
            consecutive ranks, so many to a group; or the groups themselves.
        size: Number of ranks.
        machines: Asked under ``"host"`` only: an identity of each rank's machine, by rank.

    Raises:
        InvalidArgument: The number does not divide `size`, or the groups are not of its ranks.
    """
    if rule == "world":
        return (tuple(range(size)),)
    if rule == "host":
        of_rank = machines()
        return tuple(
            tuple(rank for rank, other in enumerate(of_rank) if other == machine)
            for machine in dict.fromkeys(of_rank)
        )
    if isinstance(rule, int):
        if size % rule != 0:
            raise InvalidArgument(
                f"groups: expected a divisor of the {size} ranks, got {rule}; for groups of unlike "
                "sizes give lists of ranks"
            )
        return tuple(tuple(range(first, first + rule)) for first in range(0, size, rule))
    assert not isinstance(rule, str)
    if sorted(rank for members in rule for rank in members) != list(range(size)):
        raise InvalidArgument(
            f"groups: expected each of the ranks 0..{size - 1} in one group, got {rule!r}"
        )
    return rule


def shards_of(segments: Sequence[SegmentSize], num_shards: int) -> list[list[tuple[int, int]]]:
    """Cuts segments at whole tensors for the members of a group.

    A segment is cut into at most `num_shards` runs of tensors whose largest is as small as can be;
    the largest run goes to the member with the fewest bytes so far. Some members may get none of a
    small segment.

    Args:
        segments: In model order.
        num_shards: Members that take part, at least 1.

    Returns:
        By segment and member the elements (begin, end).
    """
    load = [0] * num_shards
    shards = []
    for numels, element_bytes in segments:
        runs = _runs(numels, num_shards)
        runs.sort(key=lambda run: run[0] - run[1])
        members = sorted(range(num_shards), key=lambda member: (load[member], member))
        own = [(0, 0)] * num_shards
        for member, run in zip(members, runs, strict=False):
            own[member] = run
            load[member] += (run[1] - run[0]) * element_bytes
        shards.append(own)
    return shards


def within_groups(
    inner: _C.Schedule,
    groups: Groups,
    segments: Sequence[SegmentSize],
    hierarchy: Hierarchy,
    unit_numel: int = 1,
) -> _C.Schedule:
    """`inner`, of as many ranks as there are groups, carried by the members of the groups.

    ``"sharded"``: of each segment member j exchanges its shard with member j of the other group;
    with groups of unlike sizes as many members take part as the smallest has. ``"root"``: the
    first member carries all of it. Then the members copy it from each other. Shards end at
    multiples of `unit_numel` elements, of which the wire's type makes one block.
    """
    num_shards = 1 if hierarchy == "root" else min(map(len, groups))
    shards = shards_of(segments, num_shards)
    if unit_numel > 1:
        numels = [sum(numels) for numels, _ in segments]
        shards = [
            [_in_whole_units(run, numel, unit_numel) for run in runs]
            for runs, numel in zip(shards, numels, strict=True)
        ]
    return _C.hierarchical_schedule(inner, groups, shards)


def _in_whole_units(run: tuple[int, int], numel: int, unit_numel: int) -> tuple[int, int]:
    """The run with its borders moved down to multiples of `unit_numel`, but for the last end."""
    begin, end = (b if b == numel else b - b % unit_numel for b in run)
    return begin, end


def hosts(context: Context) -> list[str]:
    """An identity of the machine of each rank, by rank; a collective call."""
    own = json.dumps(Locality.of_this_process().machine)
    return context.group.gather("the ranks' hosts", own, context.settings.timeout_s)


def _runs(numels: Sequence[int], max_runs: int) -> list[tuple[int, int]]:
    """Consecutive tensors in at most `max_runs` runs of elements, the largest as small as it can
    be."""
    low, high = max(numels, default=0), sum(numels)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(numels, middle)) <= max_runs:
            high = middle
        else:
            low = middle + 1
    return _fill(numels, low)


def _fill(numels: Sequence[int], max_numel: int) -> list[tuple[int, int]]:
    ends = list(accumulate(numels))
    runs: list[tuple[int, int]] = []
    begin = 0
    for numel, end in zip(numels, ends, strict=True):
        if end - begin > max_numel:
            runs.append((begin, end - numel))
            begin = end - numel
    return [*runs, (begin, ends[-1] if ends else 0)]
