"""A store that asks again, around a store that does not.

In: any Store. Out: the same store, whose transient errors are tried again, with exponential backoff and full
jitter, until a deadline or for ever. Permanent errors pass at once, but for a region that worked before and is tried
for ever: credentials expire and are restored. Never changes what is written or read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from archiver.errors import (
    AccessDenied,
    ArchiverError,
    BucketNotFound,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    StoreUnavailable,
)
from archiver.store.base import Entry, Store
from archiver.tasks import loop_time

T = TypeVar("T")

# Answers of a store that works: nothing is wrong with the region.
_ANSWERS = (ObjectExists, ObjectNotFound)
_DOUBTS = 2
# What is permanent in a region that never worked, and may pass in one that did.
_REFUSALS = (AccessDenied, BucketNotFound)


@dataclass(frozen=True, slots=True)
class _Policy:
    deadline: float
    base: float
    cap: float
    on_result: Callable[[bool], None]
    sleep: Callable[[float], Awaitable[None]]
    clock: Callable[[], float]
    jitter: Callable[[], float]


class Retry:
    """A Store that retries `store` for up to `deadline`, or for ever if that is None (the daemon).

    The pause before attempt n is random between nothing and min(cap, base * 2**n). `on_result` hears of each
    attempt whether the region did its work; "no such object" is work done. The error raised at the deadline is
    the last one. `sleep`, `clock` and `jitter` are there for tests.
    """

    def __init__(
        self,
        store: Store,
        *,
        deadline: timedelta | None,
        base: timedelta = timedelta(milliseconds=100),
        cap: timedelta = timedelta(seconds=5),
        on_result: Callable[[bool], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = loop_time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._worked = False
        self._policy = _Policy(
            deadline.total_seconds() if deadline is not None else float("inf"),
            base.total_seconds(),
            cap.total_seconds(),
            on_result or (lambda _ok: None),
            sleep,
            clock,
            jitter,
        )

    @property
    def name(self) -> str:
        return self._store.name

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """As the store's, where a write of this very call whose answer was lost counts as done.

        Only after a failure in this call is an object in its place compared with ours. On the first attempt it
        cannot be ours, and comparing always would let two writers of equal bytes both win the race.
        """

        async def attempt(failures: int) -> None:
            try:
                await self._store.put(key, data, if_absent=if_absent)
            except ObjectExists as exc:
                if not if_absent or await self._store.size(key) is None:
                    raise StoreUnavailable("the store answers that an object is in the way, and none is") from exc
                if not failures or await self.get(key) != data:
                    raise

        await self._persist(attempt)

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        """As the store's. Bytes that do not match their checksum are doubted: that may have come on their way."""
        for _ in range(_DOUBTS):
            try:
                return await self._persist(lambda _: self._store.get(key, most=most))
            except IntegrityError:
                continue
        return await self._persist(lambda _: self._store.get(key, most=most))

    async def size(self, key: str) -> int | None:
        return await self._persist(lambda _: self._store.size(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        """As the store's; after a failure the listing goes on behind the last key it gave."""
        last = start_after
        patience = self._patience()
        while True:
            try:
                async for entry in self._store.list(prefix, start_after=last):
                    last = entry.key
                    patience = self._patience()
                    yield entry
            except ArchiverError as error:
                await patience.wait_or_raise(error)
            else:
                self._succeeded()
                return

    async def delete(self, key: str) -> None:
        await self._persist(lambda _: self._store.delete(key))

    async def check(self) -> None:
        await self._persist(lambda _: self._store.check())

    async def close(self) -> None:
        await self._store.close()

    async def _persist(self, attempt: Callable[[int], Awaitable[T]]) -> T:
        """The result of `attempt`, called with the number of failures before it until it does not fail."""
        patience = self._patience()
        while True:
            try:
                result = await attempt(patience.failures)
            except ArchiverError as error:
                await patience.wait_or_raise(error)
            else:
                self._succeeded()
                return result

    def _succeeded(self) -> None:
        self._worked = True
        self._policy.on_result(True)

    def _patience(self) -> _Patience:
        return _Patience(self._policy, _REFUSALS if self._worked and self._policy.deadline == float("inf") else ())


class _Patience:
    """How long one operation has been failing, and what to do about one more failure."""

    def __init__(self, policy: _Policy, forgiven: tuple[type[ArchiverError], ...]) -> None:
        self._policy = policy
        self._forgiven = forgiven
        self._until = policy.clock() + policy.deadline
        self.failures = 0

    async def wait_or_raise(self, error: ArchiverError) -> None:
        """Pause before the next attempt; raise `error` if it is permanent or the time is up."""
        policy = self._policy
        policy.on_result(isinstance(error, _ANSWERS))
        left = self._until - policy.clock()
        if not (error.transient or isinstance(error, self._forgiven)) or left <= 0:
            raise error
        await policy.sleep(min(left, policy.jitter() * self._ceiling()))
        self.failures += 1

    def _ceiling(self) -> float:
        # The exponent is bounded because after days of failures a float is not.
        return min(self._policy.cap, self._policy.base * 2.0 ** min(self.failures, 32))
