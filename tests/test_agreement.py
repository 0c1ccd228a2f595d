"""Values through the store: matched calls, absent ranks, differences."""

from __future__ import annotations

import threading

import pytest
from threads import in_ranks, outcomes
from torch._C._distributed_c10d import HashStore

from crossover_comm.agreement import StoreGroup, canonical_json, describe_difference
from crossover_comm.errors import ProgressTimeout, TransportError

LONG_S = 60.0
SHORT_S = 0.2


def test_gather_returns_every_ranks_value_by_rank() -> None:
    gathered = in_ranks(3, lambda group: group.gather("ask", {"is": group.rank}, LONG_S))
    assert gathered == [[{"is": 0}, {"is": 1}, {"is": 2}]] * 3


def test_one_rank_alone_needs_no_store() -> None:
    group = StoreGroup(None, 0, 1)
    assert group.gather("ask", 7, LONG_S) == [7]
    group.agree("ask", "{}", LONG_S)
    group.announce_end("over")
    assert group.ends([0]) == {}


def test_old_keys_leave_the_store() -> None:
    store = HashStore()
    group = StoreGroup(store, 0, 1)
    for _ in range(20):
        group.gather("ask", 1, LONG_S)
    assert store.num_keys() <= 2


def test_a_missing_rank_is_named_and_later_calls_match_again() -> None:
    store = HashStore()
    waiting, late = (StoreGroup(store, rank, 2) for rank in range(2))
    text = r"barrier \(collective 0\): ranks \[1\] did not call it within 0.2 s of rank 0"
    with pytest.raises(ProgressTimeout, match=text):
        waiting.gather("barrier", None, SHORT_S)
    with pytest.raises(ProgressTimeout, match=text):
        late.gather("barrier", None, LONG_S)
    other = threading.Thread(target=late.gather, args=("again", 1, LONG_S))
    other.start()
    assert waiting.gather("again", 0, LONG_S) == [0, 1]
    other.join()


def test_ranks_that_wait_longer_learn_at_once_that_another_gave_up() -> None:
    def work(group: StoreGroup) -> None:
        if group.rank < 2:
            group.gather("barrier", None, SHORT_S if group.rank == 0 else LONG_S)

    first, second, absent = outcomes(3, work)
    assert first == second
    assert "ranks [2] did not call it within 0.2 s of rank 0" in first
    assert absent == "returned"


def test_different_calls_are_named_on_every_rank() -> None:
    said = outcomes(3, lambda group: group.gather(["a", "b", "b"][group.rank], None, LONG_S))
    expected = "collective 0: rank 0 called a; ranks [1, 2] called b; every rank must make"
    assert all(text.startswith(f"InvalidArgument: {expected}") for text in said)


def test_a_rank_that_has_ended_wakes_the_waiting_ones_with_its_cause() -> None:
    def work(group: StoreGroup) -> None:
        if group.rank == 1:
            group.announce_end("ValueError: boom")
            group.announce_end("it has shut down")
        else:
            group.gather("barrier", None, LONG_S)

    said = outcomes(3, work)
    cause = "TransportError: barrier (collective 0): rank 1 will not call it: ValueError: boom"
    assert said == [cause, "returned", cause]


def test_ends_tells_who_has_ended_before_the_next_call() -> None:
    store = HashStore()
    first, second = (StoreGroup(store, rank, 2) for rank in range(2))
    assert first.ends([1]) == {}
    second.announce_end("out of memory")
    assert first.ends([0, 1]) == {1: "out of memory"}
    with pytest.raises(TransportError, match="out of memory"):
        first.gather("barrier", None, LONG_S)


def test_agree_returns_when_all_say_the_same() -> None:
    assert outcomes(3, lambda group: group.agree("plan", '{"a":1}', LONG_S)) == ["returned"] * 3


def test_agree_names_the_difference_on_every_rank() -> None:
    def work(group: StoreGroup) -> None:
        numels = [640, 10] if group.rank != 2 else [650, 10]
        plan = {"segments": [{"name": "stem", "numels": [9]}, {"name": "fc", "numels": numels}]}
        group.agree("plan", canonical_json(plan), LONG_S)

    for text in outcomes(4, work):
        assert text == (
            "InvalidArgument: plan: not the same on every rank:\n"
            "  segments[1] 'fc', numels: rank 0 has [640,10], rank 2 has [650,10]"
        )


def test_agree_groups_ranks_that_are_alike() -> None:
    for text in outcomes(3, lambda group: group.agree("seed", str(min(group.rank, 1)), LONG_S)):
        assert "ranks [1, 2] are alike" in text
        assert "rank 0 has 0, rank 1 has 1" in text


def test_a_lost_store_is_said_to_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    class LostStore:
        def compare_set(self, *_: str) -> bytes:
            raise dist.DistNetworkError("Connection reset by peer\nat frame #0")

    group = StoreGroup(LostStore(), 1, 2)  # type: ignore[arg-type]
    with pytest.raises(TransportError, match=r"barrier .*has rank 0 ended\? \(Connection reset"):
        group.gather("barrier", None, LONG_S)


def test_equal_values_have_no_difference() -> None:
    value = {"a": [1, {"b": None}]}
    assert describe_difference(value, value) == []


@pytest.mark.parametrize(
    ("reference", "other", "line"),
    [
        ({"a": 1}, {"a": 2}, "a: rank 0 has 1, the other has 2"),
        ({"a": {"b": 1}}, {"a": {}}, "a.b: rank 0 has 1, the other has nothing"),
        ({"a": True}, {"a": 1}, "a: rank 0 has true, the other has 1"),
        (3, "3", 'value: rank 0 has 3, the other has "3"'),
        ([[1], [2]], [[1]], "value: rank 0 has 2 items, the other has 1 items"),
        (
            {"x": list(range(99))},
            {"x": [*range(98), 0]},
            "x[98]: rank 0 has 98, the other has 0",
        ),
    ],
)
def test_a_difference_has_its_path_and_both_values(
    reference: object, other: object, line: str
) -> None:
    assert describe_difference(reference, other) == [line]


def test_many_differences_are_cut_short() -> None:
    lines = describe_difference({str(i): i for i in range(30)}, {}, limit=5)
    assert len(lines) == 6
    assert lines[-1] == "... and 25 more differences"


def test_a_long_value_is_cut_short() -> None:
    (line,) = describe_difference("x" * 10_000, "y")
    assert len(line) < 300
