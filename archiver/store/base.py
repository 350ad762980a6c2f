"""The port to object stores: what a region must be able to do, and nothing about how.

A store holds immutable objects under string keys below one prefix. Writes are atomic: an object is there
whole or not at all. Every method raises errors of `archiver.errors` only; whether a retry may help is
`error.transient`. Adapters do not retry (see retry.py) and know nothing of regions (see mirror.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from archiver.errors import ForeignObject

Limit = Callable[[str], int | None]
"""How many bytes an object may have to be read, by its key; None for any number."""


def no_limit(_key: str) -> None:
    """Any number of bytes."""


def require_within(most: int | None, size: int, where: str) -> None:
    """Raise ForeignObject, before an object is read, if it has more bytes than `most`."""
    if most is not None and size > most:
        raise ForeignObject(
            f"the object is larger than it may be: {size} bytes, not {most} at most",
            where=where,
            hint="Run archiver verify; another region may hold it whole.",
        )


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One object in a listing: its key (without the store's prefix) and size in bytes."""

    key: str
    size: int


class Store(Protocol):
    @property
    def name(self) -> str:
        """The region's name in the configuration; errors carry it in `where`."""

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write an object durably, with a SHA-256 checksum that the server verifies.

        With `if_absent` the write is atomic against other writers: ObjectExists if the key is taken. (A Mirror,
        which may have to finish a write that was cut short, accepts a key that is taken by the very same bytes.)
        """

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        """The whole object. Raises ObjectNotFound; ForeignObject, before it is read, if it exceeds `most` bytes."""

    async def size(self, key: str) -> int | None:
        """The object's size in bytes, None if there is none."""

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        """Objects whose key starts with `prefix` and sorts after `start_after`, in byte order of the key."""

    async def delete(self, key: str) -> None:
        """Delete an object; deleting what is not there is no error."""

    async def check(self) -> None:
        """Raise unless the bucket (or folder) exists and may be written: a permanent error says which."""

    async def close(self) -> None:
        """Release connections. The store is not used afterwards."""
