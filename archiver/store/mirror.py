"""Several regions as one store: written to all, read from whichever answers.

In: one Store for each region, the first being the primary. Out: a Store that acknowledges a write when every
region holds it, and reads on in the next region where one fails. Never retries (wrap the regions for that, with
a deadline where reads must fall over), and never picks a side when regions disagree.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from archiver.errors import ArchiverError, IntegrityError, ObjectExists, ObjectNotFound, StoreError
from archiver.store.base import Entry, Store

T = TypeVar("T")

# A region that failed is asked last for this long, so that a restore pays a dead region's timeout once and not
# for every object.
COOL_DOWN = timedelta(seconds=30)
# What makes a read go on in the next region: whatever is wrong with one store says nothing about another.
_ELSEWHERE = (StoreError, IntegrityError)


class Mirror:
    """A Store over `stores`; reads ask the region named `prefer` first, by default the primary.

    `clock` is there for tests.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        *,
        prefer: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores = tuple(stores)
        self._prefer = prefer
        self._clock = clock
        self._failed_at: dict[str, float] = {}

    @property
    def name(self) -> str:
        return "+".join(store.name for store in self._stores)

    @property
    def stores(self) -> tuple[Store, ...]:
        """The regions, the primary first."""
        return self._stores

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Return when every region holds the object.

        Without `if_absent` all regions are written at once; the first error stops the rest. With it the primary
        decides the race and the others follow: an equal object found anywhere is a write of the same bytes that
        a crash or a lost answer cut short, and is completed; a different one is ObjectExists in the primary, and
        an IntegrityError in the others.
        """
        if not if_absent:
            await _all_or_first_error(store.put(key, data) for store in self._stores)
            return
        try:
            await self._stores[0].put(key, data, if_absent=True)
        except ObjectExists:
            if await self._stores[0].get(key) != data:
                raise
        await _all_or_first_error(self._follow(store, key, data) for store in self._stores[1:])

    async def _follow(self, store: Store, key: str, data: bytes) -> None:
        try:
            await store.put(key, data, if_absent=True)
        except ObjectExists as exc:
            if await store.get(key) != data:
                raise IntegrityError(
                    f"regions disagree about {key}",
                    hint="Compare the regions: archiver verify",
                    where=f"{self._stores[0].name}, {store.name}",
                ) from exc

    async def get(self, key: str) -> bytes:
        """The object from the first region that has it; see `get_verified` for the error if none has."""
        return await self.get_verified(key, lambda _: True)

    async def get_verified(self, key: str, check: Callable[[bytes], bool]) -> bytes:
        """The object from the first region whose bytes pass `check`.

        If none has it, raises the first error that is not ObjectNotFound, for an object is missing only when
        every region says so; bytes that fail the check count as an IntegrityError.
        """

        async def read(store: Store) -> bytes:
            data = await store.get(key)
            if not check(data):
                raise IntegrityError("the object is not what it should be", where=f"{store.name}: {key}")
            return data

        return await self._first(read)

    async def size(self, key: str) -> int | None:
        return await self._first(lambda store: store.size(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        """What any region that answers holds: one that lost objects cannot hide those of another.

        Raises only when no region answers.
        """
        errors: dict[str, ArchiverError] = {}

        def failed(store: Store, error: ArchiverError) -> None:
            self._note(store, error)
            errors[store.name] = error

        last = start_after
        async for entry in _merged([_Listing(s, prefix, start_after) for s in self._in_order()], failed):
            if entry.key > last:
                last = entry.key
                yield entry
        if len(errors) == len(self._stores):
            raise _most_telling(tuple(errors.values()))

    async def delete(self, key: str) -> None:
        """Delete in all regions; a region that fails does not keep the others from it."""
        await self._everywhere(lambda store: store.delete(key))

    async def check(self) -> None:
        """Check all regions; one error speaks for all that failed."""
        await self._everywhere(lambda store: store.check())

    async def close(self) -> None:
        await self._everywhere(lambda store: store.close())

    async def _first(self, read: Callable[[Store], Awaitable[T]]) -> T:
        errors: list[ArchiverError] = []
        for store in self._in_order():
            try:
                return await read(store)
            except _ELSEWHERE as error:
                self._note(store, error)
                errors.append(error)
        raise _most_telling(errors)

    async def _everywhere(self, act: Callable[[Store], Awaitable[None]]) -> None:
        results = await asyncio.gather(*(act(store) for store in self._stores), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        errors = [failure for failure in failures if isinstance(failure, ArchiverError)]
        for failure in failures:
            if failure not in errors:
                raise failure
        if len(errors) == 1:
            raise errors[0]
        if errors:
            message = "; ".join(str(error) for error in errors)
            raise type(errors[0])(message, hint=errors[0].hint)

    def _in_order(self) -> Sequence[Store]:
        now = self._clock()
        horizon = COOL_DOWN.total_seconds()

        def rank(store: Store) -> tuple[bool, bool]:
            failed_at = self._failed_at.get(store.name)
            return (failed_at is not None and now - failed_at < horizon, store.name != self._prefer)

        return sorted(self._stores, key=rank)  # stable: otherwise the configured order

    def _note(self, store: Store, error: ArchiverError) -> None:
        if error.transient:
            self._failed_at[store.name] = self._clock()


class _Listing:
    """One region's listing, an entry at a time."""

    def __init__(self, store: Store, prefix: str, start_after: str) -> None:
        self.store = store
        self._entries = store.list(prefix, start_after=start_after)

    async def next(self) -> Entry | None:
        return await anext(self._entries, None)


async def _merged(listings: Sequence[_Listing], failed: Callable[[Store, ArchiverError], None]) -> AsyncIterator[Entry]:
    """The entries of all listings in order of their keys; one that breaks off is told of and left out."""
    heads: list[tuple[Entry, int]] = []

    async def advance(number: int) -> None:
        try:
            entry = await listings[number].next()
        except _ELSEWHERE as error:
            failed(listings[number].store, error)
        else:
            if entry is not None:
                heapq.heappush(heads, (entry, number))

    for number in range(len(listings)):
        await advance(number)
    while heads:
        entry, number = heapq.heappop(heads)
        yield entry
        await advance(number)


def _most_telling(errors: Sequence[ArchiverError]) -> ArchiverError:
    return next((error for error in errors if not isinstance(error, ObjectNotFound)), errors[0])


async def _all_or_first_error(writes: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run the writes at once. The first error cancels the rest, is waited for and raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for number, write in enumerate(writes):
                group.create_task(write, name=f"mirror-put-{number}")
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
