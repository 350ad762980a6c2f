"""Writing to several regions: which of them, and when a write counts, as the durability policy says.

In: the regions, the first being the primary, and a policy. Out: writes that return when they are durable as the policy
says. A region that falls behind is written no more until it has been repaired and is told to `rejoin`: what it holds
stays a beginning of what the others hold, never something with holes. Never raises because of a region that is merely
behind; the last region that is in step never falls behind, and a write waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from archiver.errors import (
    ArchiverError,
    ForeignObject,
    IntegrityError,
    ObjectExists,
    RegionsDisagree,
    StoreError,
    StoreUnavailable,
)
from archiver.store.base import Store

TRAILING = 4
"""Writes of one region that may still be under way after they counted: each holds a change segment in memory."""

ANSWER_SECONDS = 3.0
PROBE = "archive.json"  # there or not, a region that works says which


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """When a write counts.

    `first`: as soon as one region has it, and otherwise when every region in step has it. `patience`: a region that
    has not finished a write so long after it began, while another has, falls behind; None never lets one fall behind.
    """

    first: bool = False
    patience: timedelta | None = None


STRICT = WritePolicy()


async def _never(_key: str, _data: bytes) -> bool:
    return False


class Replicas:
    """The regions as those who write see them. `on_behind` hears of each region that falls behind, and why."""

    def __init__(
        self,
        stores: Sequence[Store],
        policy: WritePolicy = STRICT,
        on_behind: Callable[[str, str], None] = lambda _region, _why: None,
    ) -> None:
        self._stores = tuple(stores)
        self.policy = policy
        self.on_behind = on_behind
        self.is_foreign: Callable[[str, bytes], Awaitable[bool]] = _never
        """Whether what stands in an object's place is none of the archive's: its region falls behind, at any policy."""
        self._missed: dict[str, set[str]] = {}
        self._trailing: dict[str, dict[asyncio.Task[None], str]] = {store.name: {} for store in stores}
        self._failure: BaseException | None = None

    @property
    def in_step(self) -> list[Store]:
        """The regions that hold everything; the first of them decides who wins a conditional write."""
        return [store for store in self._stores if store.name not in self._missed]

    @property
    def behind(self) -> list[Store]:
        return [store for store in self._stores if store.name in self._missed]

    def missed(self, region: str) -> set[str]:
        """Objects that a region did not get since it fell behind, and that no manifest may name yet."""
        return self._missed.get(region, set())

    def fall_behind(self, region: str, why: str) -> None:
        """Write this region no more until it rejoins. The last one in step is kept."""
        if region in self._missed or len(self.in_step) == 1:
            return
        self._missed[region] = set(self._trailing[region].values())
        for task in self._trailing[region]:
            task.cancel()
        self.on_behind(region, why)

    def rejoin(self, region: str) -> None:
        """This region holds everything again; call it when nothing can have been written meanwhile."""
        self._missed.pop(region, None)

    async def put(self, key: str, data: bytes) -> None:
        """Write an object, also to a region that rejoins meanwhile."""
        self._raise_failure()
        have: set[Store] = set()
        while todo := [store for store in self.in_step if store not in have]:
            await self._spread({store: store.put(key, data) for store in todo}, key, have)
        self._note_missed(key)

    async def put_if_absent(self, key: str, data: bytes) -> None:
        """The first region in step decides the race, the others follow, also one that rejoins; see Mirror.put."""
        self._raise_failure()
        decided = await self._decide(key, data)
        have = {decided}
        while followers := [store for store in self.in_step if store not in have]:
            writes = {store: self._follow(decided, store, key, data, self._under_way(store)) for store in followers}
            await self._spread(writes, key, have)
        self._note_missed(key)

    def _note_missed(self, key: str) -> None:
        for missed in self._missed.values():
            missed.add(key)

    async def finish(self) -> None:
        """Wait for what is still under way, and end it where its region has fallen behind."""
        tasks = [task for trailing in self._trailing.values() for task in trailing]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def abandon(self) -> None:
        """End what is still under way."""
        for trailing in self._trailing.values():
            for task in trailing:
                task.cancel()
        await self.finish()

    # --- one write in several regions ---

    async def _spread(self, writes: dict[Store, Coroutine[Any, Any, Any]], key: str, have: set[Store]) -> None:
        """Run the writes at once, until the policy is content. `have`: the regions that hold it, or are getting it.

        Only a region that is in step counts: one that falls behind meanwhile may not be the only one that has it.
        """
        tasks = {asyncio.create_task(write, name=f"put {store.name}"): store for store, write in writes.items()}
        started = asyncio.get_running_loop().time()
        pending = set(tasks)
        try:
            while pending and not (self.policy.first and self._counts(have)):
                left = self._left(started) if self._counts(have) else None
                done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if self._finished(task, tasks[task], have):
                        have.add(tasks[task])
                if self._counts(have) and self._left(started) == 0:
                    break
        except BaseException:
            await _cancel(pending)
            raise
        if self.policy.first:
            for task in pending:
                have.add(tasks[task])
                self._trail(tasks[task], task, key)
            return
        for task in pending:
            self.fall_behind(tasks[task].name, f"{key} was not written within {self.policy.patience}")
        await _cancel(pending)

    def _counts(self, have: set[Store]) -> bool:
        return not have.isdisjoint(self.in_step)

    def _left(self, started: float) -> float | None:
        """Seconds until patience ends."""
        if self.policy.patience is None:
            return None
        return max(0.0, started + self.policy.patience.total_seconds() - asyncio.get_running_loop().time())

    def _finished(self, task: asyncio.Task[Any], store: Store, have: set[Store]) -> bool:
        """Whether the write was done. An error ends all, unless the policy lets its region fall behind.

        What cannot be read back is no disagreement yet: whoever repairs the region finds out.
        """
        error = task.exception()
        if error is None:
            return task.result() is not False  # of a follower that fell behind before it was written
        is_borne = self.policy.patience is not None or isinstance(error, ForeignObject)
        if not is_borne or not isinstance(error, ArchiverError) or isinstance(error, RegionsDisagree):
            raise error
        if self.in_step == [store] and not self._counts(have):
            raise error
        self.fall_behind(store.name, str(error))
        return False

    # --- manifests: who decides, who follows ---

    async def _decide(self, key: str, data: bytes) -> Store:
        while True:
            store, *others = self.in_step
            patience = self.policy.patience if others else None
            try:
                async with asyncio.timeout(patience.total_seconds() if patience else None):
                    if await self._write_after(self._under_way(store), store, key, data):
                        return store
            except ObjectExists:
                raise
            except (TimeoutError, StoreError, IntegrityError) as error:
                is_borne = patience is not None or (others and isinstance(error, ForeignObject))
                if is_borne and await _answers(others):
                    self.fall_behind(store.name, str(error) or f"{key} was not written within {patience}")
                elif not isinstance(error, TimeoutError):
                    raise

    def _under_way(self, store: Store) -> Sequence[asyncio.Task[None]]:
        return tuple(self._trailing[store.name])

    async def _follow(
        self, decided: Store, store: Store, key: str, data: bytes, objects: Sequence[asyncio.Task[Any]]
    ) -> bool:
        try:
            return await self._write_after(objects, store, key, data)
        except ObjectExists as exc:
            raise RegionsDisagree(key, decided.name, store.name) from exc

    async def _write_after(self, objects: Sequence[asyncio.Task[None]], store: Store, key: str, data: bytes) -> bool:
        """A conditional write, once the region has the objects under way; False when it fell behind meanwhile.

        What is there already and is the very same is ours, and its answer was lost.
        """
        if objects:
            await asyncio.wait(objects)
        if store.name in self._missed:
            return False
        if any(task.cancelled() or task.exception() for task in objects):  # abandoned: we are about to end
            raise StoreUnavailable("what belongs before this object did not get there", where=f"{store.name}: {key}")
        try:
            await store.put(key, data, if_absent=True)
        except ObjectExists:
            if (held := await store.get(key)) != data:
                if await self.is_foreign(key, held):
                    raise _foreign(store, key) from None
                raise
        return True

    # --- writes that already count ---

    def _trail(self, store: Store, task: asyncio.Task[None], key: str) -> None:
        trailing = self._trailing[store.name]
        trailing[task] = key
        task.add_done_callback(lambda task: self._trailed(store, task))
        if len(trailing) > TRAILING:
            self.fall_behind(store.name, f"{len(trailing)} writes wait for it")
        elif self.policy.patience is not None:
            loop = asyncio.get_running_loop()
            late = loop.call_later(self.policy.patience.total_seconds(), self._late, store, task)
            task.add_done_callback(lambda _task: late.cancel())

    def _late(self, store: Store, task: asyncio.Task[None]) -> None:
        key = self._trailing[store.name].get(task)
        if key is not None:
            self.fall_behind(store.name, f"{key} was not written within {self.policy.patience}")

    def _trailed(self, store: Store, task: asyncio.Task[None]) -> None:
        key = self._trailing[store.name].pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fall_behind(store.name, str(error))
            if isinstance(error, RegionsDisagree) or store.name not in self._missed:
                self._failure = error  # a disagreement, or the last region in step lacks what counts already
        if (task.cancelled() or error) and store.name in self._missed:
            self._missed[store.name].add(key)

    def _raise_failure(self) -> None:
        """What failed while nobody waited for it; the next write says so."""
        if self._failure is not None:
            raise self._failure


def _foreign(store: Store, key: str) -> ForeignObject:
    return ForeignObject("what stands in the place of this object is none of archiver's", where=f"{store.name}: {key}")


async def _answers(stores: Iterable[Store]) -> bool:
    """Whether any of these regions works: only then is it worth giving another one up."""
    for store in stores:
        with suppress(ArchiverError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await store.size(PROBE)
                return True
    return False


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
