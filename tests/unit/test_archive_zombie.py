"""A daemon that slept while another took over, and while its place in the log was expired, does no harm."""

from __future__ import annotations

import pytest

from archiver import tasks
from archiver.errors import Fenced
from archiver.format import layout
from tests.unit.test_archive_log import FENCE, Regions, changes, create, mirror, regions, reopen, scanned, snapshot


class Clock:
    """Both clocks of a machine."""

    now = 1000.0

    def __call__(self) -> tuple[float, float]:
        return self.now, self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tasks, "clocks", clock)
    return clock


async def another_goes_on(stores: Regions, expired_up_to: int) -> None:
    """A new daemon writes, and the oldest manifests are expired."""
    other = await reopen(stores)
    await other.take_over(FENCE)
    for ordinal in range(2, 9):
        await other.log.append(changes(ordinal))
    for store in stores:
        for seq in range(1, expired_up_to + 1):
            store.objects.pop(layout.manifest(seq))


@pytest.mark.parametrize("expired_up_to", [2, 5, 9])
async def test_a_zombie_whose_place_was_expired_writes_nothing(clock: Clock, expired_up_to: int) -> None:
    stores = regions()
    zombie = await create(mirror(stores))
    await zombie.take_over(FENCE)
    await zombie.log.append(changes(1))
    await another_goes_on(stores, expired_up_to)
    before = dict(stores[0].objects)
    clock.now += 48 * 3600
    with pytest.raises(Fenced):
        await zombie.log.append(changes(2))
    assert stores[0].objects == stores[1].objects == before


async def test_a_zombie_that_slept_between_its_look_and_its_write_takes_it_back(clock: Clock) -> None:
    stores = regions()
    asleep = True

    def sleep(when: str, key: str) -> None:
        nonlocal asleep
        if asleep and when == "before" and key == layout.manifest(3):
            asleep = False
            clock.now += 48 * 3600
            for store in stores:
                store.objects |= taken_over[store.name]
                for seq in (1, 2, 3, 4):
                    store.objects.pop(layout.manifest(seq))

    zombie = await create(mirror(stores, sleep))
    await zombie.take_over(FENCE)
    await zombie.log.append(changes(1))
    copies = regions()
    for copy, store in zip(copies, stores, strict=True):
        copy.objects |= store.objects
    await another_goes_on(copies, 0)
    taken_over = {store.name: dict(store.objects) for store in copies}
    with pytest.raises(Fenced, match="had gone on"):
        await zombie.log.append(changes(2))
    assert all(layout.manifest(3) not in store.objects for store in stores)


async def test_a_daemon_that_slept_alone_goes_on(clock: Clock) -> None:
    archive = await create(mirror(regions()))
    await archive.take_over(FENCE)
    clock.now += 48 * 3600
    await archive.log.append(changes(1))
    clock.now += 48 * 3600
    await archive.log.append(snapshot(20))
    assert [signed.seq for signed in await scanned(archive)] == [1, 2, 3]
