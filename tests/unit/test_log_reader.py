"""Reading the manifest log: by roll-ups as far as they are whole, then one by one, and never much at once."""

from __future__ import annotations

import asyncio

import pytest

from archiver import log_reader
from archiver.archive import open_archive
from archiver.format import layout
from archiver.policy import catalog
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from tests.unit.test_archive_log import (
    FENCE,
    KEK,
    Faulty,
    regions,
    reopen,
    scanned,
    written,
)


@pytest.fixture
def small_rollups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROLLUP", 3)


def rollups(store: MemoryStore) -> list[str]:
    return sorted(key for key in store.objects if key.startswith(layout.CATALOG))


async def test_rolled_up_manifests_are_read_without_opening_each(small_rollups: None) -> None:
    stores = regions()
    archive = await written(stores, 9)
    expected = await scanned(archive)
    assert rollups(stores[0]) == rollups(stores[1]) == [layout.rollup(n, n + 2) for n in (1, 4, 7)]
    for store in stores:
        for seq in range(1, 10):
            del store.objects[layout.manifest(seq)]
    assert await scanned(await reopen(stores)) == expected


async def test_what_is_rolled_up_is_not_held_or_written_again_after_a_restart(small_rollups: None) -> None:
    stores = regions()
    await written(stores, 9)
    puts: list[str] = []
    archive = await reopen(stores, lambda _when, key: puts.append(key))
    await archive.take_over(FENCE)
    assert len(archive.log._unrolled) < catalog.ROLLUP
    assert [key for key in puts if key.startswith(layout.CATALOG)] == []


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_missing_roll_up_costs_only_time(small_rollups: None, number: int) -> None:
    stores = regions()
    archive = await written(stores, 9)
    expected = await scanned(archive)
    for store in stores:
        del store.objects[rollups(store)[number]]
    assert await scanned(await reopen(stores)) == expected


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_damaged_roll_up_costs_only_time(small_rollups: None, number: int) -> None:
    """All it says stands in the manifests too: it must never keep anyone from restoring."""
    stores = regions()
    archive = await written(stores, 9)
    expected = await scanned(archive)
    name = rollups(stores[0])[number]
    whole = stores[0].objects[name]
    for damage in (whole[: len(whole) // 2], b"", b"x" * 50, catalog.pack([b"{}"] * 3), catalog.pack([])):
        for store in stores:
            store.objects[name] = damage
        assert await scanned(await reopen(stores)) == expected


async def test_a_roll_up_that_claims_more_than_it_holds_does_not_hide_the_end_of_the_log() -> None:
    """Whoever may write into one region could otherwise turn the whole archive back, unseen."""
    stores = regions()
    archive = await written(stores, 5)
    expected = await scanned(archive)
    first = [signed.data for signed in expected[:2]]
    stores[1].objects[layout.rollup(1, 999_999)] = catalog.pack(first)
    assert await scanned(await reopen(stores)) == expected


async def test_roll_ups_that_overlap_or_are_not_whole_leave_little_to_be_read_one_by_one(small_rollups: None) -> None:
    stores = regions()
    archive = await written(stores, 9)
    expected = await scanned(archive)
    lines = [signed.data for signed in expected]
    for first, last in [(1, 1), (1, 2), (2, 5), (5, 7)]:
        stores[1].objects[layout.rollup(first, last)] = catalog.pack(lines[first - 1 : last])
    for first, last in [(1, 999), (2, 1000), (1, 3), (4, 8)]:
        stores[1].objects[layout.rollup(first, last)] = catalog.pack([*lines[first - 1 : last - 1], b""])
    read: list[str] = []

    class Watched(Faulty):
        async def get(self, key: str, *, most: int | None = None) -> bytes:
            read.append(key)
            return await super().get(key, most=most)

    watched = await open_archive(Mirror([Watched(store, lambda _when, _key: None) for store in stores]), "shop", [KEK])
    assert await scanned(watched) == expected
    assert [key for key in read if key.startswith(layout.MANIFESTS)] == [layout.manifest(10)]


async def test_a_roll_up_that_is_whole_in_another_region_is_read_there(small_rollups: None) -> None:
    stores = regions()
    expected = await scanned(await written(stores, 9))
    name = rollups(stores[0])[0]
    stores[0].objects[name] = b"rubbish"
    for store in stores:
        for seq in (1, 2, 3):
            del store.objects[layout.manifest(seq)]
    archive = await reopen(stores)
    assert await scanned(archive) == expected
    assert list(archive.store.damaged) == ["primary"]


async def test_of_manifests_that_are_read_at_once_only_one_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "_ORDINARY_BYTES", 10)  # so that all of them are
    stores = regions()
    expected = await scanned(await written(stores, 9))
    stores[1].objects[layout.manifest(11)] = b"rubbish" * 100
    reading, most = 0, 0

    class Counted(Faulty):
        async def get(self, key: str, *, most: int | None = None) -> bytes:
            data = await super().get(key, most=most)
            count(1)
            await asyncio.sleep(0)
            count(-1)
            return data

    def count(more: int) -> None:
        nonlocal reading, most
        reading += more
        most = max(most, reading)

    archive = await open_archive(Mirror([Counted(store, lambda _when, _key: None) for store in stores]), "shop", [KEK])
    most = 0
    assert await scanned(archive) == expected
    assert most == 1
