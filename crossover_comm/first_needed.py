"""The order in which a forward needs segments, the same on every rank."""

from __future__ import annotations

import json

from crossover_comm.context import Context
from crossover_comm.store import await_key

__all__ = ["FirstNeeded"]


class FirstNeeded:
    """Learns the order from rank 0's first forward, and tells it to all before the second post.

    The others wait at most for rank 0 to come to its first post, once.

    Args:
        context: Of the ranks that share the order.
        key: Of the model among them.
        num_segments: Those that no forward needs come last.
    """

    def __init__(self, context: Context, key: str, num_segments: int) -> None:
        self._context = context
        self._key = f"order/{key}"
        self._num_segments = num_segments
        self._needed: dict[int, None] = {}
        self._num_posts = 0

    def needed(self, index: int) -> None:
        """Called where a forward needs a segment."""
        self._needed.setdefault(index)

    def before_post(self) -> list[int] | None:
        """Called before a round is posted. The order from this round on, told once; else None.

        Raises:
            CrossoverError: The engine's first failure.
            ProgressTimeout: Rank 0 has posted nothing within the stall timeout.
        """
        store, settings = self._context.group.store, self._context.settings
        assert store is not None
        self._num_posts += 1
        if self._num_posts == 1:
            if self._context.launch.rank == 0:
                order = dict.fromkeys([*self._needed, *range(self._num_segments)])
                store.set(self._key, json.dumps(list(order)))
            return None
        if self._num_posts > 2:
            return None
        check = self._context.engine.check_failure
        await_key(store, self._key, check, settings.stall_timeout_s, "rank 0 has posted no round")
        return [int(index) for index in json.loads(store.get(self._key))]
