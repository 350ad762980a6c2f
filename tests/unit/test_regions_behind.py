"""Regions that lack a part of the log: what brings them back, and what must never be written behind a hole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from archiver import manifest_log
from archiver.archive import OpenArchive, Place, open_archive
from archiver.errors import RegionsDisagree, StoreUnavailable
from archiver.format import layout, manifest, segment
from archiver.format.manifest import Changes, refs
from archiver.format.seal import Kind
from archiver.policy import catalog
from archiver.store.base import Entry
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from archiver.store.replicas import STRICT, WritePolicy
from archiver.verify import verify
from tests.unit.test_archive_log import FENCE, KEK, NOW, Faulty, changes, regions, reopen, scanned, snapshot, written

PATIENT = WritePolicy(patience=timedelta(seconds=5))


async def with_object(archive: OpenArchive, ordinal: int) -> Changes:
    """The next change segment, its object stored."""
    entry = changes(ordinal)
    sealer = await archive.sealer(Place(Kind.CHANGES, ordinal, entry.start_lsn, entry.end_lsn))
    sealer.write(segment.encode(b"rows"))
    key = layout.segment(ordinal, entry.start_lsn, entry.end_lsn, archive.log.writer)
    return entry.model_copy(update={"object": await archive.store_sealed(key, sealer)})


class Told(Faulty):
    """A region that tells of each write that is done."""

    def __init__(self, inner: MemoryStore, on_put: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(inner, lambda _when, _key: None)
        self._on_put = on_put

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await super().put(key, data, if_absent=if_absent)
        await self._on_put(key)


async def test_a_manifest_that_is_written_while_a_region_rejoins_does_not_come_before_its_object() -> None:
    stores = regions()
    await written(stores, 2)
    early: list[str] = []
    more = [*range(3, 10)]

    async def look(key: str) -> None:
        if (seq := layout.manifest_seq(key)) is None:
            return
        entry = manifest.parse(stores[1].objects[key], archive.identity.verifier).entry
        early.extend(ref.key for ref in refs(entry) if ref.key not in stores[1].objects)
        while seq > 3 and more:
            await archive.log.append(await with_object(archive, more.pop(0)))

    told = Told(stores[1], look)
    archive = await open_archive(Mirror([stores[0], told], policy=PATIENT), "shop", [KEK])
    await archive.take_over(FENCE)
    archive.store.replicas.fall_behind(stores[1].name, "a test")
    await archive.log.append(await with_object(archive, more.pop(0)))
    await archive.log.rejoin(told)
    assert more == []
    assert early == []
    assert stores[0].objects == stores[1].objects


async def test_a_roll_up_that_came_before_the_last_of_its_manifests_does_not_hide_that_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog, "ROLLUP", 3)
    stores = regions()
    archive = await written(stores, 5)
    assert layout.rollup(4, 6) in stores[1].objects
    for seq in (5, 6):
        del stores[1].objects[layout.manifest(seq)]
    assert await archive.log.reader.newest(stores[1]) == 4
    assert await archive.log.reader.newest(stores[0]) == 6
    archive = await reopen(stores)
    await archive.take_over(FENCE)
    assert stores[0].objects == stores[1].objects


@pytest.mark.parametrize("answers", [1000, 4], ids=["and goes on to answer", "and then does not answer either"])
async def test_nothing_is_written_where_the_only_region_that_answers_lacks_the_end_of_the_log(answers: int) -> None:
    """The first region was read, and then does not answer any more."""
    stores = regions()
    await written(stores, 3)
    del stores[1].objects[layout.manifest(4)]
    kept = dict(stores[1].objects)

    class Fleeting(Faulty):
        left = 2

        def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
            self.left -= 1
            return super().list(prefix, start_after=start_after) if self.left >= 0 else _unavailable()

    first, second = (Fleeting(store, lambda _when, _key: None) for store in stores)
    second.left = answers  # two for the scan, two for its newest manifest
    archive = await open_archive(Mirror([first, second], policy=PATIENT), "shop", [KEK])
    with pytest.raises(StoreUnavailable, match="end of the log") as refused:
        await archive.take_over(FENCE)
    assert "lacks manifests 4 to 4" in (refused.value.where or "")
    assert stores[1].objects == kept


async def test_a_region_that_takes_longer_to_list_than_the_policy_waits_is_waited_for_if_it_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest_log, "_ANSWER_SECONDS", 0.0)
    stores = regions()
    await written(stores, 3)

    class Slow(Faulty):
        async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
            await asyncio.sleep(0.05)
            async for entry in super().list(prefix, start_after=start_after):
                yield entry

    slow = [Slow(store, lambda _when, _key: None) for store in stores]
    policy = WritePolicy(patience=timedelta(seconds=0.07))
    archive = await open_archive(Mirror(slow, policy=policy), "shop", [KEK])
    async with asyncio.timeout(5):
        await archive.take_over(FENCE)
    assert archive.log.unseen == {"primary", "secondary"}


async def _unavailable() -> AsyncIterator[Entry]:
    raise StoreUnavailable("gone")
    yield Entry("", 0)


async def test_a_key_that_nothing_was_sealed_with_may_be_missing_in_a_region_and_no_other() -> None:
    """Its maker died before it stood everywhere, and the day was over before anyone else wanted it."""
    stores = regions()
    archive = await written(stores, 1)
    await archive.log.append(await with_object(archive, 2))
    unneeded = layout.key(await archive.keys.data_key("snapshots", NOW))
    del stores[1].objects[unneeded]
    reopened = await reopen(stores)
    assert (await verify(reopened, read_data=True)).findings == []
    (needed,) = (key for key in stores[1].objects if key.startswith("keys/changes-"))
    del stores[1].objects[needed]
    assert [finding.object for finding in (await verify(reopened)).findings] == [needed]


@pytest.mark.parametrize("more", [1, 2], ids=["another manifest in one place", "manifests that we have not seen"])
async def test_no_gap_is_recorded_over_the_head_of_what_another_daemon_wrote_elsewhere_meanwhile(more: int) -> None:
    """Ours was frozen between reading the log and looking at the slot."""
    stores = regions()
    await written(stores, 2)
    ours = await open_archive(Mirror(stores, policy=PATIENT), "shop", [KEK])
    await ours.follow()
    await ours.log.require_nothing_beyond()
    ours.store.replicas.fall_behind(stores[1].name, "a test")
    await ours.log.append(FENCE)
    other = await open_archive(Mirror([stores[1]]), "shop", [KEK])
    await other.take_over(FENCE)
    for ordinal in range(3, 2 + more):
        await other.log.append(changes(ordinal))
    with pytest.raises((RegionsDisagree, StoreUnavailable)):
        await ours.log.require_nothing_beyond()


async def test_what_a_command_appended_meanwhile_does_not_stand_in_the_way_of_a_gap() -> None:
    stores = regions()
    await written(stores, 2)
    ours = await open_archive(Mirror(stores), "shop", [KEK])
    await ours.take_over(FENCE)
    command = await reopen(stores)
    await command.follow()
    await command.log.append(snapshot(1))
    await ours.log.require_nothing_beyond()
    await ours.log.append(FENCE)
    assert [signed.entry.kind for signed in await scanned(await reopen(stores))][-3:] == ["fence", "snapshot", "fence"]


async def test_what_another_writer_left_in_one_region_is_completed_with_the_key_that_opens_it() -> None:
    stores = regions()
    await written(stores, 1)
    ours = await open_archive(Mirror(stores), "shop", [KEK])
    await ours.follow()
    other = await open_archive(Mirror([stores[0]]), "shop", [KEK])
    await other.follow()
    await other.log.append(await with_object(other, 2))
    await ours.log.append(FENCE)
    assert stores[0].objects == stores[1].objects


async def test_regions_whose_logs_are_of_one_length_and_not_the_same_halt_a_daemon_before_it_writes() -> None:
    stores = regions()
    await written(stores, 1)
    for store in stores:
        await (await open_archive(Mirror([store]), "shop", [KEK])).take_over(FENCE)
    kept = [dict(store.objects) for store in stores]
    for policy in (STRICT, PATIENT):
        archive = await open_archive(Mirror(stores, policy=policy), "shop", [KEK])
        with pytest.raises(RegionsDisagree, match=layout.manifest(3)):
            await archive.take_over(FENCE)
    assert [store.objects for store in stores] == kept
