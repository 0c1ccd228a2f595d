"""Marks by which the ranks of a job know values of each other's that strangers may have touched."""

from __future__ import annotations

import hashlib
import hmac

from crossover_comm.errors import TransportError

__all__ = ["Seal"]


class Seal:
    """HMAC-SHA256 by the job key, over the job's id, the value's name and the value.

    It shows that a value in the store is of this job and under this name. It hides nothing, and is
    as good as the key: one that came through the store keeps out nobody who can write the store.

    Args:
        key: The job key, equal on all ranks.
        job: Id of this start of the job.
    """

    def __init__(self, key: bytes, job: bytes) -> None:
        self._key = key
        self._job = job

    def mark(self, name: str, value: bytes) -> str:
        """To be published beside `value`."""
        label = f"crossover_comm seal\0{name}\0".encode()
        digest = hashlib.sha256(self._job).digest() + hashlib.sha256(value).digest()
        return hmac.new(self._key, label + digest, hashlib.sha256).hexdigest()

    def require(self, name: str, value: bytes, mark: str) -> None:
        """Returns if the mark is that of a rank of this job.

        Raises:
            TransportError: It is not.
        """
        if not hmac.compare_digest(self.mark(name, value), mark):
            raise TransportError(
                f"{name}: what the store holds does not come from a rank of this job; somebody "
                "else writes to the store, or the ranks have other job keys "
                "(see CROSSOVER_JOB_KEY_FILE)"
            )
