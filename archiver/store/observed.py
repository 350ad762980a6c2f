"""A store that tells of its writes and reads, around one that does not. Nothing else changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from archiver.store.base import Entry, Store
from archiver.tasks import loop_time


class Observed:
    """Calls `on_put` with the bytes and the seconds of every write that succeeded, `on_get` with the bytes of reads."""

    def __init__(
        self,
        store: Store,
        *,
        on_put: Callable[[int, float], None] = lambda _size, _seconds: None,
        on_get: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._store = store
        self._on_put = on_put
        self._on_get = on_get

    @property
    def name(self) -> str:
        return self._store.name

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        started = loop_time()
        await self._store.put(key, data, if_absent=if_absent)
        self._on_put(len(data), loop_time() - started)

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        data = await self._store.get(key, most=most)
        self._on_get(len(data))
        return data

    async def size(self, key: str) -> int | None:
        return await self._store.size(key)

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        return self._store.list(prefix, start_after=start_after)

    async def delete(self, key: str) -> None:
        await self._store.delete(key)

    async def check(self) -> None:
        await self._store.check()

    async def close(self) -> None:
        await self._store.close()
