"""The manifest log over two regions in memory: crashes at every write, lost answers, races, roll-ups, damage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from archiver.archive import OpenArchive, create_archive, open_archive
from archiver.errors import Fenced, IntegrityError, StoreUnavailable
from archiver.format import layout
from archiver.format.manifest import Changes, Fence, Signed, Snapshot
from archiver.keys import LocalKek
from archiver.lsn import Lsn
from archiver.policy import catalog
from archiver.store.base import Entry
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror

KEK = LocalKek(bytes(range(32)))
NOW = datetime(2026, 11, 22, tzinfo=UTC)
FENCE = Fence(host="here", pid=1, version="0")


class Crash(Exception):
    """The process ends here."""


class Faulty:
    """A region whose `trap` is told of every write before and after it is done, and may raise."""

    def __init__(self, inner: MemoryStore, trap: Callable[[str, str], None]) -> None:
        self.inner = inner
        self.name = inner.name
        self._trap = trap

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await asyncio.sleep(0)
        self._trap("before", key)
        await self.inner.put(key, data, if_absent=if_absent)
        self._trap("after", key)

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        return await self.inner.get(key, most=most)

    async def size(self, key: str) -> int | None:
        return await self.inner.size(key)

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        return self.inner.list(prefix, start_after=start_after)

    async def delete(self, key: str) -> None:
        await self.inner.delete(key)

    async def check(self) -> None:
        return

    async def close(self) -> None:
        return


class Trap:
    """Raises `error` at the n-th event of all regions together, and counts them."""

    def __init__(self, at: int | None = None, error: Exception | None = None) -> None:
        self.events = 0
        self._at = at
        self._error = error or Crash()

    def __call__(self, _when: str, _key: str) -> None:
        self.events += 1
        if self.events == self._at:
            raise self._error


Regions = tuple[MemoryStore, MemoryStore]


def regions() -> Regions:
    return MemoryStore("primary"), MemoryStore("secondary")


def mirror(stores: Regions, trap: Callable[[str, str], None] = lambda _when, _key: None) -> Mirror:
    return Mirror([Faulty(store, trap) for store in stores])


async def create(store: Mirror) -> OpenArchive:
    return await create_archive(store, "shop", [KEK], system_identifier="42", database="shop")


async def reopen(stores: Regions, trap: Callable[[str, str], None] = lambda _when, _key: None) -> OpenArchive:
    return await open_archive(mirror(stores, trap), "shop", [KEK])


def changes(ordinal: int) -> Changes:
    start, end = Lsn(ordinal * 10), Lsn(ordinal * 10 + 10)
    return Changes(ordinal=ordinal, connection=1, start_lsn=start, end_lsn=end, covered_until=NOW)


def snapshot(lsn: int) -> Snapshot:
    times = {"consistent_at": NOW, "finished_at": NOW}
    return Snapshot(snapshot_id=uuid4(), lsn=Lsn(lsn), **times, server_version=180000, tables=0, rows=0, parts=())


async def scanned(archive: OpenArchive) -> list[Signed]:
    return [signed async for signed in archive.log.scan()]


def ordinals(log: list[Signed]) -> list[int]:
    return [signed.entry.ordinal for signed in log if isinstance(signed.entry, Changes)]


async def written(stores: Regions, count: int = 0) -> OpenArchive:
    """An archive with a fence and `count` segments, open for more."""
    archive = await create(mirror(stores))
    await archive.take_over(FENCE)
    for ordinal in range(1, count + 1):
        await archive.log.append(changes(ordinal))
    return archive


# --- a crash, or a lost answer, at each single write ---


async def events_of(work: Callable[[Regions, Trap], object]) -> int:
    trap = Trap()
    await work(regions(), trap)  # type: ignore[misc]
    return trap.events


async def make(stores: Regions, trap: Trap) -> None:
    await create(mirror(stores, trap))


async def make_and_write(stores: Regions, trap: Trap) -> None:
    """Everything a daemon writes: archive, fence, data key, segments, and a roll-up on the way."""
    await create(mirror(stores, trap))
    archive = await reopen(stores, trap)
    await archive.take_over(FENCE)
    await archive.keys.data_key("changes", NOW)
    for ordinal in range(1, 4):
        await archive.log.append(changes(ordinal))


async def test_the_making_of_an_archive_can_be_cut_short_anywhere_and_repeated() -> None:
    for at in range(1, await events_of(make) + 1):
        stores = regions()
        with pytest.raises(Crash):
            await make(stores, Trap(at))
        archive = await create(mirror(stores))
        again = await create(mirror(stores))
        assert archive.identity == again.identity
        assert stores[0].objects == stores[1].objects, f"crash at event {at}"


async def test_a_daemon_can_die_at_any_write_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROLLUP", 2)
    for at in range(1, await events_of(make_and_write) + 1):
        stores = regions()
        with pytest.raises(Crash):
            await make_and_write(stores, Trap(at))
        await create(mirror(stores))
        archive = await reopen(stores)
        await archive.take_over(FENCE)
        await archive.keys.data_key("changes", NOW)
        last = archive.log.state.changes
        await archive.log.append(changes(last.ordinal + 1 if last else 1))
        log = await scanned(await reopen(stores))
        assert ordinals(log) == list(range(1, len(ordinals(log)) + 1)), f"crash at event {at}"
        assert without_rollups(stores[0]) == without_rollups(stores[1]), f"crash at event {at}"


async def test_a_lost_answer_at_any_write_ends_the_command_and_harms_nothing() -> None:
    for at in range(1, await events_of(make_and_write) + 1):
        stores = regions()
        with pytest.raises(StoreUnavailable):
            await make_and_write(stores, Trap(at, StoreUnavailable("the answer was lost")))
        await make_and_write(stores, Trap())
        assert stores[0].objects == stores[1].objects, f"lost answer at event {at}"
        await scanned(await reopen(stores))


def without_rollups(store: MemoryStore) -> dict[str, bytes]:
    """They only save time, so one may be missing anywhere."""
    return {key: data for key, data in store.objects.items() if not key.startswith(layout.CATALOG)}


# --- several writers ---


async def test_a_base_snapshot_is_written_beside_a_daemon_that_goes_on() -> None:
    stores = regions()
    daemon = await written(stores, 1)
    command = await reopen(stores)
    await command.follow()
    await daemon.log.append(changes(2))
    await command.log.append(snapshot(15))
    await daemon.log.append(changes(3))
    log = await scanned(daemon)
    assert [signed.entry.kind for signed in log] == ["fence", "changes", "changes", "snapshot", "changes"]
    assert daemon.log.state.snapshot is not None
    assert stores[0].objects == stores[1].objects


async def test_many_writers_at_once_make_one_chain() -> None:
    stores = regions()
    daemon = await written(stores)
    commands = [await reopen(stores) for _ in range(3)]
    for command in commands:
        await command.follow()

    async def capture() -> None:
        for ordinal in range(1, 21):
            await daemon.log.append(changes(ordinal))

    async def add(command: OpenArchive) -> None:
        for lsn in range(5):
            await command.log.append(snapshot(lsn))

    await asyncio.gather(capture(), *map(add, commands))
    log = await scanned(await reopen(stores))
    assert (len(log), ordinals(log)) == (36, list(range(1, 21)))
    assert stores[0].objects == stores[1].objects


async def test_a_daemon_stops_at_the_fence_of_another_and_writes_nothing() -> None:
    stores = regions()
    old = await written(stores, 1)
    new = await reopen(stores)
    await new.take_over(FENCE)
    before = dict(stores[0].objects)
    for _ in range(2):
        with pytest.raises(Fenced, match="taken over"):
            await old.log.append(changes(2))
    assert stores[0].objects == before


async def test_a_manifest_that_its_dead_writer_left_in_one_region_is_completed_by_whoever_meets_it() -> None:
    stores = regions()
    daemon = await written(stores, 1)
    command = await reopen(stores)
    await command.follow()
    with pytest.raises(Crash):  # another command dies between the regions
        dying = await reopen(stores, Trap(at=3))  # before the second region gets its manifest
        await dying.follow()
        await dying.log.append(snapshot(5))
    assert len(stores[0].objects) == len(stores[1].objects) + 1
    await command.log.append(snapshot(6))
    await daemon.log.append(changes(2))
    assert stores[0].objects == stores[1].objects
    assert len(await scanned(await open_archive(Mirror([stores[1]]), "shop", [KEK]))) == 5


async def test_regions_that_disagree_about_a_manifest_are_an_error() -> None:
    stores = regions()
    archive = await written(stores, 1)
    signed = archive.log._next(snapshot(5))
    stores[1].objects[layout.manifest(3)] = signed.data
    with pytest.raises(IntegrityError, match="regions disagree"):
        await archive.log.append(changes(2))


# --- reading ---


@pytest.mark.parametrize("region", [0, 1])
async def test_a_manifest_altered_or_lost_in_one_region_is_read_from_the_other(region: int) -> None:
    stores = regions()
    archive = await written(stores, 3)
    expected = await scanned(archive)
    name = layout.manifest(2)
    whole = stores[region].objects[name]
    for damage in (whole[:-9] + b"x" + whole[-8:], whole[:50], b"", stores[region].objects[layout.manifest(3)]):
        stores[region].objects[name] = damage
        assert await scanned(await reopen(stores)) == expected
    del stores[region].objects[name]
    assert await scanned(await reopen(stores)) == expected


async def test_a_manifest_altered_in_both_regions_is_an_error_and_not_passed_over() -> None:
    stores = regions()
    archive = await written(stores, 3)
    for store in stores:
        store.objects[layout.manifest(2)] = store.objects[layout.manifest(2)].replace(b'"pid":1', b'"pid":2') + b" "
    with pytest.raises(IntegrityError):
        await scanned(archive)


async def test_a_manifest_missing_in_both_regions_is_an_error_and_not_passed_over() -> None:
    stores = regions()
    archive = await written(stores, 3)
    for store in stores:
        del store.objects[layout.manifest(2)]
    with pytest.raises(IntegrityError, match="manifest 2 is missing"):
        await scanned(archive)


# --- regions that come and go ---


async def test_what_only_a_region_holds_that_missed_the_scan_is_not_written_over() -> None:
    """The first region is behind, the second answers only after the first has been read."""
    stores = regions()
    await written(stores, 3)
    kept = dict(stores[0].objects)
    for name in (layout.manifest(3), layout.manifest(4)):
        del stores[0].objects[name]

    class Late(Faulty):
        failed = 0

        def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
            self.failed += 1
            return _unavailable() if self.failed <= 2 else super().list(prefix, start_after=start_after)

    late = Late(stores[1], lambda _when, _key: None)
    archive = await open_archive(Mirror([stores[0], late]), "shop", [KEK])
    await archive.take_over(FENCE)
    assert late.failed > 2
    assert {name: stores[0].objects[name] for name in kept} == kept
    assert stores[0].objects == stores[1].objects


async def _unavailable() -> AsyncIterator[Entry]:
    raise StoreUnavailable("not yet")
    yield Entry("", 0)
