"""What `verify --repair` does where regions parted: which history goes on, and which of two keys is the right one."""

from __future__ import annotations

import pytest

from archiver.archive import OpenArchive, open_archive
from archiver.errors import StoreUnavailable
from archiver.format import layout
from archiver.format.manifest import Entry, Gap
from archiver.lsn import Lsn
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from archiver.verify import repair, verify
from tests.unit.test_archive_log import (
    FENCE,
    KEK,
    changes,
    mirror,
    ordinals,
    regions,
    reopen,
    scanned,
    snapshot,
    written,
)
from tests.unit.test_regions_behind import with_object

Regions = tuple[MemoryStore, MemoryStore]


async def alone(store: MemoryStore) -> OpenArchive:
    """The archive as one region alone holds it, taken over by a daemon that sees no other."""
    archive = await open_archive(Mirror([store]), "shop", [KEK])
    await archive.take_over(FENCE)
    return archive


async def parted(stores: Regions, dead: list[Entry], going_on: list[Entry]) -> None:
    """Both regions hold two segments and a base snapshot; then one daemon writes to the first, another to the second."""
    archive = await written(stores, 2)
    await archive.log.append(snapshot(20))
    for store, entries in zip(stores, (dead, going_on), strict=True):
        daemon = await alone(store)
        for entry in entries:
            await daemon.log.append(entry)


GAP = Gap(after_lsn=Lsn(30), before_lsn=Lsn(40), reason="dropped")


@pytest.mark.parametrize(
    ("dead", "going_on"),
    [
        ([changes(3)], [changes(3), changes(4)]),
        ([changes(3), snapshot(35)], [changes(3), changes(4)]),
        ([snapshot(30)], [GAP, snapshot(40)]),
    ],
    ids=["changes", "a base snapshot", "a gap behind it"],
)
async def test_a_history_that_ended_is_replaced_where_nothing_is_lost(dead: list[Entry], going_on: list[Entry]) -> None:
    stores = regions()
    await parted(stores, dead, going_on)
    kept = dict(stores[1].objects)
    report = await repair(await reopen(stores))
    assert report.findings == []
    assert stores[1].objects == kept
    expected = [1, 2, *(entry.ordinal for entry in going_on if entry.kind == "changes")]
    assert ordinals(await scanned(await reopen(stores))) == expected


@pytest.mark.parametrize(
    ("dead", "going_on"),
    [
        ([changes(3)], [GAP, changes(4).model_copy(update={"ordinal": 3})]),
        ([GAP, snapshot(40)], [GAP, changes(4).model_copy(update={"ordinal": 3})]),
        ([changes(3), *[snapshot(30)] * 5], [changes(3), changes(4)]),
    ],
    ids=["changes", "a base snapshot", "more manifests, though they reach no further"],
)
async def test_a_history_that_holds_what_the_other_lacks_is_left(dead: list[Entry], going_on: list[Entry]) -> None:
    stores = regions()
    await parted(stores, dead, going_on)
    before = [dict(store.objects) for store in stores]
    assert not (await repair(await reopen(stores))).ok
    assert [store.objects for store in stores] == before


async def test_of_two_keys_of_one_day_the_one_stays_that_the_log_was_sealed_under() -> None:
    """Each of two daemons saw another region, and made the day's key there."""
    stores = regions()
    await written(stores, 2)
    dead, going_on = await alone(stores[0]), await alone(stores[1])
    await dead.log.append(await with_object(dead, 3))
    for ordinal in (3, 4):
        await going_on.log.append(await with_object(going_on, ordinal))
    (key,) = (name for name in stores[0].objects if name.startswith(f"{layout.KEYS}changes-"))
    right = stores[1].objects[key]
    assert stores[0].objects[key] != right
    report = await repair(await open_archive(mirror(stores), "shop", [KEK]), read_data=True)
    assert report.findings == []
    assert stores[0].objects[key] == stores[1].objects[key] == right
    assert (await verify(await alone(stores[0]), read_data=True)).ok


NEW_HISTORY = Gap(after_lsn=Lsn(30), before_lsn=Lsn(5), new_history=True, reason="a standby took over")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([changes(3), changes(4), changes(5)], [NEW_HISTORY, changes(3)]),
        ([changes(3), changes(4)], [changes(3).model_copy(update={"timeline": 2})]),
    ],
    ids=["a new history", "another timeline"],
)
async def test_what_is_another_history_is_never_taken_for_covered(one: list[Entry], other: list[Entry]) -> None:
    """Its positions are lower or the same numbers, and mean something else."""
    stores = regions()
    await parted(stores, one, other)
    kept = [dict(store.objects) for store in stores]
    report = await repair(await reopen(stores))
    assert report.findings
    assert [store.objects for store in stores] == kept


async def test_a_command_makes_room_for_a_daemon_that_goes_on_without_a_region() -> None:
    """Otherwise a base snapshot taken by hand, while a region is late, would part the regions."""
    stores = regions()
    await written(stores, 2)
    command = await reopen(stores)
    await command.follow()
    daemon = await alone(stores[1])
    await daemon.log.append(changes(3))
    with pytest.raises(StoreUnavailable, match="fell behind"):
        await command.log.append(snapshot(30))
    assert (await repair(await reopen(stores))).findings == []
    assert ordinals(await scanned(await reopen(stores))) == [1, 2, 3]
