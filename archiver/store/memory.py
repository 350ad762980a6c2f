"""A region in memory, for tests and for trying things out.

In: keys and whole objects. Out: the same. Keeps nothing beyond the process. `objects` is open so that a test can
alter, drop or add what a store never would.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from archiver.errors import ObjectExists, ObjectNotFound
from archiver.store.base import Entry, require_within


class MemoryStore:
    """A Store in a dictionary."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.objects: dict[str, bytes] = {}

    @property
    def name(self) -> str:
        return self._name

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if if_absent and key in self.objects:
            raise ObjectExists("the object is already there", where=self._where(key))
        self.objects[key] = bytes(data)

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        try:
            data = self.objects[key]
        except KeyError:
            raise ObjectNotFound("no such object", where=self._where(key)) from None
        require_within(most, len(data), self._where(key))
        return data

    async def size(self, key: str) -> int | None:
        data = self.objects.get(key)
        return None if data is None else len(data)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        # Python orders strings by code point, which is the byte order of their UTF-8.
        for key in sorted(key for key in self.objects if key.startswith(prefix) and key > start_after):
            if (data := self.objects.get(key)) is not None:
                yield Entry(key, len(data))

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    async def check(self) -> None:
        return

    async def close(self) -> None:
        return

    def _where(self, key: str) -> str:
        return f"{self._name}: {key}"
