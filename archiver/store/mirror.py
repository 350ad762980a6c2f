"""Several regions as one store: written as the durability policy says, read from whichever answers.

In: one Store for each region, the first being the primary. Out: a Store whose writes go to all regions that are in
step (archiver.store.replicas), and which reads on in the next region where one fails. Never retries a write (wrap
the regions for that), and never picks a side when regions disagree.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import structlog

from archiver.errors import ArchiverError, IntegrityError, ObjectNotFound, StoreError, StoreUnavailable
from archiver.store.base import Entry, Store
from archiver.store.replicas import STRICT, Replicas, WritePolicy
from archiver.tasks import loop_time

log = structlog.get_logger()
T = TypeVar("T")

# A region that failed is asked last for this long, so that a restore pays a dead region's timeout once and not
# for every object.
COOL_DOWN = timedelta(seconds=30)
ROUND_PAUSE = timedelta(seconds=1)  # between asking all regions in vain and asking them again
_PATIENCE_CAP = 300.0
# What makes a read go on in the next region: whatever is wrong with one store says nothing about another.
_ELSEWHERE = (StoreError, IntegrityError)


class Mirror:
    """A Store over `stores`; reads ask the region named `prefer` first, by default the primary.

    With `patience` no region is waited for longer than that by a read, and a read that no region answers is repeated
    for ever, with twice the patience each time: the daemon's way. Without it a region's own deadline counts, and errors
    are raised. `clock` is there for tests.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        *,
        prefer: str | None = None,
        policy: WritePolicy = STRICT,
        patience: timedelta | None = None,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._stores = tuple(stores)
        self.replicas = Replicas(stores, policy)
        self._prefer = prefer
        self._patience = patience.total_seconds() if patience else None
        self._clock = clock
        self._failed_at: dict[str, float] = {}
        self.damaged: dict[str, str] = {}
        """What is wrong with a region that answers, and holds what it should not, or not what it should."""

    @property
    def name(self) -> str:
        return "+".join(store.name for store in self._stores)

    @property
    def stores(self) -> tuple[Store, ...]:
        """The regions, the primary first."""
        return self._stores

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Return when the object is durable as the policy says; by default, when every region holds it.

        Without `if_absent` all regions are written at once; the first error stops the rest. With it the first region
        in step decides the race and the others follow: an equal object found anywhere is a write of the same bytes
        that a crash or a lost answer cut short, and is completed; a different one is ObjectExists in the region that
        decides, and an IntegrityError in the others.
        """
        if if_absent:
            await self.replicas.put_if_absent(key, data)
        else:
            await self.replicas.put(key, data)

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        """The object from the first region that has it; see `get_verified` for the error if none has."""
        return await self.get_verified(key, lambda _: True, most=most)

    async def get_verified(self, key: str, check: Callable[[bytes], bool], *, most: int | None = None) -> bytes:
        """The object from the first region whose bytes pass `check`; one of more than `most` bytes is not read.

        If none has it, raises the first error that is not ObjectNotFound, for an object is missing only when
        every region says so; bytes that fail the check count as an IntegrityError.
        """

        async def read(store: Store) -> bytes:
            data = await store.get(key, most=most)
            if not check(data):
                raise IntegrityError("the object is not what it should be", where=f"{store.name}: {key}")
            return data

        return await self.first(read)

    async def size(self, key: str) -> int | None:
        return await self.first(lambda store: store.size(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        """What any region that answers holds: one that lost objects cannot hide those of another.

        Raises only when no region answers.
        """
        last, patience = start_after, self._patience
        while True:
            errors: dict[str, ArchiverError] = {}

            def failed(store: Store, error: ArchiverError, errors: dict[str, ArchiverError] = errors) -> None:
                self._note(store, error)
                errors[store.name] = error

            listings = [_Listing(store, prefix, last, patience) for store in self._in_order()]
            async for entry in _merged(listings, failed):
                if entry.key > last:
                    last = entry.key
                    yield entry
            if len(errors) < len(self._stores):
                return
            await self._pause_or_raise(_most_telling(tuple(errors.values())))
            patience = _more(patience)

    async def delete(self, key: str) -> None:
        """Delete in all regions; a region that fails does not keep the others from it."""
        await self._everywhere(lambda store: store.delete(key))

    async def check(self) -> None:
        """Check all regions; one error speaks for all that failed."""
        await self._everywhere(lambda store: store.check())

    async def close(self) -> None:
        """Release connections; writes that still trail behind are ended, so wait for `replicas.finish` first."""
        await self.replicas.abandon()
        await self._everywhere(lambda store: store.close())

    async def first(self, read: Callable[[Store], Awaitable[T]]) -> T:
        """What `read` makes of the first region in which it fails with neither a StoreError nor an IntegrityError."""
        patience = self._patience
        while True:
            errors: list[ArchiverError] = []
            wrong: dict[str, str] = {}
            for store in self._in_order():
                if errors and self._is_answered(store, errors):
                    break
                try:
                    found = await _within(patience, store, read(store))
                except _ELSEWHERE as error:
                    self._note(store, error)
                    errors.append(error)
                    wrong |= {store.name: str(error)} if isinstance(error, IntegrityError) else {}
                else:
                    for region, what in wrong.items():
                        self.tell_damaged(region, what)
                    return found
            await self._pause_or_raise(_most_telling(errors))
            patience = _more(patience)

    async def each_in_full(self, work: Callable[[Store], Awaitable[T]]) -> dict[Store, T | ArchiverError]:
        """The same of regions in step, for work of many requests: only the region's own patience bounds each."""

        async def attempt(store: Store) -> T | ArchiverError:
            try:
                return await work(store)
            except _ELSEWHERE as error:
                self._note(store, error)
                return error

        stores = self.replicas.in_step
        return dict(zip(stores, await asyncio.gather(*map(attempt, stores)), strict=True))

    async def each(self, read: Callable[[Store], Awaitable[T]]) -> dict[Store, T | ArchiverError]:
        """What `read` makes of every region, or its error; all are asked at once, each is waited for as by `first`."""

        async def ask(store: Store) -> T | ArchiverError:
            try:
                return await _within(self._patience, store, read(store))
            except _ELSEWHERE as error:
                self._note(store, error)
                return error

        return dict(zip(self._stores, await asyncio.gather(*map(ask, self._stores)), strict=True))

    def _is_answered(self, store: Store, errors: Sequence[ArchiverError]) -> bool:
        """A region that is behind is not asked for what the regions in step say is nowhere."""
        return store in self.replicas.behind and all(isinstance(error, ObjectNotFound) for error in errors)

    async def _pause_or_raise(self, error: ArchiverError) -> None:
        if self._patience is None or not error.transient:
            raise error
        await asyncio.sleep(ROUND_PAUSE.total_seconds())

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

        behind = self.replicas.behind

        def rank(store: Store) -> tuple[bool, bool, bool]:
            failed_at = self._failed_at.get(store.name)
            failing = failed_at is not None and now - failed_at < horizon
            return (store in behind, failing, store.name != self._prefer)

        return sorted(self._stores, key=rank)  # stable: otherwise the configured order

    def _note(self, store: Store, error: ArchiverError) -> None:
        if error.transient:
            self._failed_at[store.name] = self._clock()

    def tell_damaged(self, region: str, what: str) -> None:
        """A region is damaged: it is said, once, and the others are used."""
        if region not in self.damaged:
            log.error("a region is damaged: the others are used", region=region, what=what, hint="archiver verify")
        self.damaged.setdefault(region, what)


class _Listing:
    """One region's listing, an entry at a time."""

    def __init__(self, store: Store, prefix: str, start_after: str, patience: float | None) -> None:
        self.store = store
        self._patience = patience
        self._entries = store.list(prefix, start_after=start_after)

    async def next(self) -> Entry | None:
        return await _within(self._patience, self.store, anext(self._entries, None))


def _more(patience: float | None) -> float | None:
    """After a round in which no region answered: a slow one may just need longer for what is asked."""
    return None if patience is None else min(2 * patience, _PATIENCE_CAP)


async def _within(patience: float | None, store: Store, reading: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(patience):
            return await reading
    except TimeoutError:
        raise StoreUnavailable("the region does not answer", where=store.name) from None


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
