"""A set of weakly held objects that tells when its first member comes and its last one goes."""

from __future__ import annotations

from crossover_comm.live import LiveObjects


class Member:
    pass


def test_members_are_found_in_order_while_somebody_holds_them() -> None:
    members: LiveObjects[Member] = LiveObjects(lambda: None, lambda: None)
    first, second = Member(), Member()
    members.add(first)
    members.add(second)
    assert list(members) == [first, second]
    del first
    assert list(members) == [second]


def test_start_and_stop_are_called_at_the_ends_only() -> None:
    log: list[str] = []
    members: LiveObjects[Member] = LiveObjects(
        lambda: log.append("start"), lambda: log.append("stop")
    )
    first, second = Member(), Member()
    members.add(first)
    members.add(second)
    del first
    assert log == ["start"]
    del second
    assert log == ["start", "stop"]
    members.add(third := Member())
    assert log == ["start", "stop", "start"]
    assert list(members) == [third]


def test_a_member_may_come_while_the_set_is_walked() -> None:
    members: LiveObjects[Member] = LiveObjects(lambda: None, lambda: None)
    held = [Member()]
    members.add(held[0])
    for _ in members:
        held.append(Member())
        members.add(held[-1])
    assert list(members) == held
