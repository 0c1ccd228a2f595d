"""Small values that all ranks exchange through the store, and what to say when they differ."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from crossover_comm.errors import CrossoverError, InvalidArgument, ProgressTimeout, TransportError

__all__ = ["StoreGroup", "canonical_json", "describe_difference"]

_READ_TIMEOUT_S = 5.0
_MAX_VALUE_CHARS = 120
_MAX_DIFFERENCES = 8
_MAX_DIFFERENT_GROUPS = 3


def canonical_json(value: object) -> str:
    """One text for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class StoreGroup:
    """Calls that every rank makes in the same order, matched through a store.

    Each call is numbered. Ranks that wait in vain, and one that comes too late, raise the same
    error; the number has then been used up on all, so that the next call matches again.

    Args:
        store: Shared by all ranks; its keys are this group's alone. None with one rank.
        rank: This rank.
        size: Number of ranks.
    """

    def __init__(self, store: Store | None, rank: int, size: int) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self._next_call = 0
        self._has_ended = False
        self._stale_keys: list[str] = []

    @property
    def next_call(self) -> int:
        """The number of the call to come."""
        return self._next_call

    def gather(self, call: str, value: object, timeout_s: float) -> list[Any]:
        """Every rank's value, by rank.

        Args:
            call: What is called, for messages; the same on every rank.
            value: Anything that json can write.
            timeout_s: How long to wait for the other ranks.

        Raises:
            ProgressTimeout: Some ranks did not make this call in time.
            InvalidArgument: Some ranks made another call.
            TransportError: A rank has failed or left, or the store is gone.
        """
        number = self._next_call
        self._next_call += 1
        if self.store is None:
            return [value]
        place = f"{call} (collective {number})"
        try:
            records = self._exchange(number, place, {"call": call, "value": value}, timeout_s)
        except dist.DistError as error:
            raise _store_lost(place, error) from error
        self._require_same_call(number, records)
        return [record["value"] for record in records]

    def agree(self, call: str, payload: str, timeout_s: float) -> None:
        """Returns if `payload`, a JSON text, is the same on every rank.

        Only digests travel unless they differ.

        Raises:
            InvalidArgument: On every rank, naming what differs and where.
            ProgressTimeout, TransportError: As in `gather`.
        """
        number = self._next_call
        digest = hashlib.sha256(payload.encode()).hexdigest()
        digests = self.gather(call, digest, timeout_s)
        if self.store is None or len(set(digests)) == 1:
            return
        try:
            self._raise_difference(number, call, payload, digests, timeout_s)
        except dist.DistError as error:
            raise _store_lost(f"{call} (collective {number})", error) from error

    def announce_end(self, cause: str) -> None:
        """Tells whoever waits for this rank's next call that it will not come.

        The first cause stays. Never raises.
        """
        if self.store is None or self._has_ended:
            return
        self._has_ended = True
        try:
            key = self._record_key(self._next_call, self.rank)
            self.store.set(key, canonical_json({"ended": cause}))
        except dist.DistError:
            return

    def ends(self, ranks: Sequence[int]) -> dict[int, str]:
        """What those of `ranks` that have announced their end in the next call said."""
        if self.store is None:
            return {}
        causes = {}
        for rank in ranks:
            key = self._record_key(self._next_call, rank)
            if self.store.check([key]):
                record = json.loads(self.store.get(key))
                if "ended" in record:
                    causes[rank] = str(record["ended"])
        return causes

    def _exchange(
        self, number: int, place: str, record: dict[str, object], timeout_s: float
    ) -> list[dict[str, Any]]:
        """Every record is decided once: by its rank, or by the first that waited in vain for it."""
        store = self._store()
        keys = [self._record_key(number, rank) for rank in range(self.size)]
        own = canonical_json(record)
        found = store.compare_set(keys[self.rank], "", own).decode()
        self._stale_keys.append(keys[self.rank])
        if found != own:
            raise _absence(place, {self.rank: json.loads(found)})
        given_up = canonical_json({"absent": {"timeout_s": timeout_s, "of": self.rank}})
        for rank in self._wait(keys, timeout_s):
            store.compare_set(keys[rank], "", given_up)
        records: list[dict[str, Any]] = [json.loads(text) for text in store.multi_get(keys)]
        lost = {rank: other for rank, other in enumerate(records) if "call" not in other}
        if lost:
            self._let_all_read(number, self.size - len(lost))
            raise _absence(place, lost)
        self._drop_stale_keys(keep=keys[self.rank])
        return records

    def _let_all_read(self, number: int, num_readers: int) -> None:
        """Before an error that may end this process, and the store with it if this is rank 0."""
        store = self._store()
        key = f"{number}/all read"
        with contextlib.suppress(RuntimeError):
            if store.add(f"{number}/num read", 1) == num_readers:
                store.set(key, "")
            store.wait([key], timedelta(seconds=_READ_TIMEOUT_S))

    def _wait(self, keys: Sequence[str], timeout_s: float) -> list[int]:
        """Waits for all keys; the indices of those that did not come."""
        store = self._store()
        try:
            store.wait(list(keys), timedelta(seconds=timeout_s))
        except RuntimeError:  # out of time; if the store is gone instead, check() says so
            return [index for index, key in enumerate(keys) if not store.check([key])]
        return []

    def _drop_stale_keys(self, keep: str) -> None:
        # Whoever makes this call has finished reading the ones before.
        store = self._store()
        for key in self._stale_keys:
            if key != keep:
                store.delete_key(key)
        self._stale_keys = [keep]

    def _require_same_call(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        callers: dict[str, list[int]] = {}
        for rank, record in enumerate(records):
            callers.setdefault(record["call"], []).append(rank)
        if len(callers) > 1:
            self._let_all_read(number, self.size)
            what = "; ".join(f"{_ranks(ranks)} called {call}" for call, ranks in callers.items())
            raise InvalidArgument(
                f"collective {number}: {what}; every rank must make the same calls in the same "
                "order"
            )

    def _raise_difference(
        self, number: int, call: str, payload: str, digests: Sequence[str], timeout_s: float
    ) -> NoReturn:
        groups: dict[str, list[int]] = {}
        for rank, digest in enumerate(digests):
            groups.setdefault(digest, []).append(rank)
        speakers = [ranks[0] for ranks in groups.values()][: _MAX_DIFFERENT_GROUPS + 1]
        if self.rank in speakers:
            key = f"{number}/text/{self.rank}"
            self._store().set(key, payload)
            self._stale_keys.append(key)
        keys = [f"{number}/text/{rank}" for rank in speakers]
        silent = self._wait(keys, timeout_s)
        if silent:
            raise ProgressTimeout(
                f"{call}: ranks {[speakers[index] for index in silent]} differ from the others and "
                f"did not say how within {timeout_s:g} s"
            )
        texts = [json.loads(text) for text in self._store().multi_get(keys)]
        self._let_all_read(number, self.size)
        lines = []
        for speaker, ranks, text in zip(
            speakers[1:], list(groups.values())[1:], texts[1:], strict=False
        ):
            if len(ranks) > 1:
                lines.append(f"{_ranks(ranks)} are alike:")
            lines += describe_difference(
                texts[0], text, reference_name="rank 0", other_name=f"rank {speaker}"
            )
        raise InvalidArgument(f"{call}: not the same on every rank:\n  " + "\n  ".join(lines))

    def _store(self) -> Store:
        assert self.store is not None
        return self.store

    @staticmethod
    def _record_key(number: int, rank: int) -> str:
        return f"{number}/{rank}"


def _absence(place: str, lost: Mapping[int, dict[str, Any]]) -> CrossoverError:
    """The error for ranks whose record is not an arrival."""
    for rank, record in lost.items():
        if "ended" in record:
            return TransportError(f"{place}: rank {rank} will not call it: {record['ended']}")
    waited = next(iter(lost.values()))["absent"]
    return ProgressTimeout(
        f"{place}: ranks {list(lost)} did not call it within {waited['timeout_s']:g} s of rank "
        f"{waited['of']}"
    )


def _store_lost(place: str, error: Exception) -> TransportError:
    cause = str(error).partition("\n")[0]
    return TransportError(f"{place}: the store does not answer; has rank 0 ended? ({cause})")


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {list(ranks)}"


def describe_difference(
    reference: Any,
    other: Any,
    *,
    reference_name: str = "rank 0",
    other_name: str = "the other",
    limit: int = _MAX_DIFFERENCES,
) -> list[str]:
    """What differs between two JSON values, one line each: the path and both values.

    An item of a list that is an object with a "name" is also called by it, as in
    "segments[3] 'fc', numels: rank 0 has [640,10], rank 2 has [650,10]".

    Args:
        reference: A value as json.loads returns it.
        other: The value compared with it.
        reference_name: Whose `reference` is.
        other_name: Whose `other` is.
        limit: Most lines; one more then tells how many were left out.
    """
    found: list[tuple[str, str, str]] = []
    _compare("", reference, other, found)
    lines = [
        f"{path or 'value'}: {reference_name} has {a}, {other_name} has {b}"
        for path, a, b in found[:limit]
    ]
    if len(found) > limit:
        lines.append(f"... and {len(found) - limit} more differences")
    return lines


def _compare(path: str, a: Any, b: Any, found: list[tuple[str, str, str]]) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            inner = f"{path}, {key}" if path.endswith("'") else f"{path}.{key}".lstrip(".")
            if key not in a or key not in b:
                found.append((inner, _show_entry(a, key), _show_entry(b, key)))
            else:
                _compare(inner, a[key], b[key], found)
    elif isinstance(a, list) and isinstance(b, list) and not _is_short(a, b):
        if len(a) != len(b):
            found.append((path, f"{len(a)} items", f"{len(b)} items"))
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            _compare(f"{path}[{index}]{_name_of(x, y)}", x, y, found)
    elif type(a) is not type(b) or a != b:
        found.append((path, _show(a), _show(b)))


def _is_short(a: list[Any], b: list[Any]) -> bool:
    scalars = not any(isinstance(item, dict | list) for item in (*a, *b))
    return scalars and max(len(canonical_json(a)), len(canonical_json(b))) <= _MAX_VALUE_CHARS


def _name_of(x: Any, y: Any) -> str:
    if isinstance(x, dict) and isinstance(y, dict) and "name" in x and x["name"] == y.get("name"):
        return f" '{x['name']}'"
    return ""


def _show_entry(mapping: dict[str, Any], key: str) -> str:
    return _show(mapping[key]) if key in mapping else "nothing"


def _show(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[:_MAX_VALUE_CHARS] + "..."
