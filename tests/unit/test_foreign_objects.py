"""Whoever may write into one region can put anything there; it stops nobody while the other region is whole."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from archiver.archive import OpenArchive, create_archive, open_archive
from archiver.errors import ForeignObject, IntegrityError
from archiver.format import layout
from archiver.keys import LocalKek
from archiver.policy import catalog
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from archiver.store.replicas import WritePolicy
from archiver.survey import survey
from archiver.verify import repair, verify
from tests.unit.test_archive_log import FENCE, KEK, NOW, Regions, changes, regions, scanned, written

FAR = "manifests/99999999999999999999.json"
POLICIES = {
    "all": WritePolicy(),
    "degrade": WritePolicy(patience=timedelta(seconds=1)),
    "any": WritePolicy(first=True, patience=timedelta(seconds=1)),
}
OTHER_DIGITS = {ord("0") + digit: chr(0x660 + digit) for digit in range(10)}  # Arabic-Indic ones
IN_OTHER_DIGITS = layout.manifest(2).translate(OTHER_DIGITS)
TODAY = layout.key(f"changes-{NOW:%Y-%m-%d}")


async def another() -> dict[str, bytes]:
    """An archive of somebody else's, of the same name, whole in itself."""
    store = MemoryStore("theirs")
    theirs = LocalKek(bytes(range(1, 33)))
    made = await create_archive(Mirror([store]), "shop", [theirs], system_identifier="42", database="shop")
    await made.take_over(FENCE)
    await made.keys.data_key("changes", NOW)
    return store.objects


Spoil = Callable[[MemoryStore, dict[str, bytes]], None]


def put(key: str, data: bytes = b"rubbish") -> Spoil:
    def spoil(region: MemoryStore, _theirs: dict[str, bytes]) -> None:
        region.objects[key] = data

    return spoil


def theirs(*keys: str) -> Spoil:
    return lambda region, theirs: region.objects.update({key: theirs[key] for key in keys})


def alter(key: str) -> Spoil:
    def spoil(region: MemoryStore, _theirs: dict[str, bytes]) -> None:
        region.objects[key] = region.objects[key][:-9] + b"x" + region.objects[key][-8:]

    return spoil


# The log is a fence and three segments: manifests 1 to 4.
SPOILS: dict[str, Spoil] = {
    "a manifest of no name": put("manifests/zzz"),
    "a folder": put("manifests/", b""),
    "a manifest far away": put(FAR),
    "a manifest in other digits": put(IN_OTHER_DIGITS),
    "the next manifest": put(layout.manifest(5)),
    "the next manifest but one": put(layout.manifest(6)),
    "their manifest in the next place": lambda region, theirs: region.objects.update(
        {layout.manifest(5): theirs[layout.manifest(1)]}
    ),
    "the newest manifest altered": alter(layout.manifest(4)),
    "an older manifest altered": alter(layout.manifest(2)),
    "their archive.json": theirs(layout.ARCHIVE),
    "archive.json altered": alter(layout.ARCHIVE),
    "archive.json deleted": lambda region, _: region.objects.pop(layout.ARCHIVE) and None,
    "their archive.json and signing key": theirs(layout.ARCHIVE, layout.key("signing")),
    "their signing key": theirs(layout.key("signing")),
    "a key of no name": put("keys/zzz"),
    "the next day's key": put(TODAY),
    "their key in the next day's place": theirs(TODAY),
    "a roll-up of no name": put("catalog/zzz"),
    "a roll-up of everything": put(f"catalog/{1:020d}-{10**20 - 1:020d}.json.zst"),
    "a roll-up of nothing": put(layout.rollup(1, 3), b""),
    "a roll-up and a manifest far away": lambda region, _: region.objects.update(
        {FAR: b"", f"catalog/{1:020d}-{10**20 - 1:020d}.json.zst": b""}
    ),
    "an object of no name": put("README.txt"),
}


async def spoiled(how: str, number: int) -> Regions:
    stores = regions()
    await written(stores, 3)
    SPOILS[how](stores[number], await another())
    return stores


async def opened(stores: Regions, policy: WritePolicy = POLICIES["all"]) -> OpenArchive:
    return await open_archive(Mirror(stores, policy=policy), "shop", [KEK])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", SPOILS)
async def test_a_foreign_object_in_one_region_stops_no_reader(how: str, number: int) -> None:
    stores = await spoiled(how, number)
    found = await survey(await opened(stores))
    assert [signed.seq for signed in found.log] == [1, 2, 3, 4]
    assert (found.warnings, found.silent) == ([], [])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", SPOILS)
async def test_a_foreign_object_in_one_region_stops_no_daemon(how: str, number: int, policy: str) -> None:
    stores = await spoiled(how, number)
    archive = await opened(stores, POLICIES[policy])
    await archive.follow(going_on=True)
    await archive.take_over(FENCE)
    await archive.keys.data_key("changes", NOW)
    await archive.log.append(changes(4))
    await archive.store.replicas.finish()
    if policy != "all":
        for region in archive.store.replicas.behind:
            await archive.log.rejoin(region)
    await archive.log.append(changes(5))
    await archive.store.replicas.finish()
    assert archive.store.replicas.behind == []
    log = await scanned(await opened(stores))
    assert [signed.seq for signed in log] == [1, 2, 3, 4, 5, 6, 7]
    for store in stores:
        assert [store.objects[layout.manifest(seq)] for seq in (1, 3, 5, 6, 7)] == [
            log[seq - 1].data for seq in (1, 3, 5, 6, 7)
        ]
    assert stores[0].objects[TODAY] == stores[1].objects[TODAY]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", SPOILS)
async def test_a_foreign_object_is_named_by_verify_and_stops_no_repair(how: str, number: int) -> None:
    stores = await spoiled(how, number)
    report = await verify(await opened(stores))
    assert stores[number].name in {finding.region for finding in report.findings}, report.findings
    assert report.manifests == 4
    left = await repair(await opened(stores))
    harmless = {"manifests/zzz", "manifests/", "keys/zzz", "catalog/zzz", "README.txt", FAR, TODAY, IN_OTHER_DIGITS}
    harmless |= {layout.manifest(5), layout.manifest(6)}
    left_over = {f.object for f in left.findings if not f.object.startswith("catalog/0")}
    assert left_over <= {name.encode("unicode_escape").decode() for name in harmless}


async def test_what_is_no_manifest_in_any_region_is_an_error_where_the_log_would_go_on() -> None:
    """It may have been the log's end: an end that was altered everywhere is not passed over."""
    stores = regions()
    await written(stores, 3)
    for store in stores:
        alter(layout.manifest(4))(store, {})
    with pytest.raises(IntegrityError):
        await scanned(await opened(stores))


async def test_a_region_that_holds_another_archive_is_set_aside_and_nothing_of_it_is_written_over() -> None:
    stores = regions()
    await written(stores, 3)
    stores[1].objects.clear()
    stores[1].objects.update(await another())
    before = dict(stores[1].objects)
    command = await opened(stores)
    with pytest.raises(IntegrityError, match="another archive"):
        await command.follow()
    daemon = await opened(stores)
    await daemon.follow(going_on=True)
    await daemon.take_over(FENCE)
    await daemon.log.append(changes(4))
    assert stores[1].objects == before
    assert [store.name for store in daemon.store.replicas.behind] == [stores[1].name]
    assert len(await scanned(await opened(stores))) == 6


async def test_archives_of_others_in_both_regions_are_an_error() -> None:
    stores = regions()
    await written(stores, 3)
    for store in stores:
        store.objects.update(await another())
    with pytest.raises(IntegrityError):
        await opened(stores)


# --- the pin ---


async def test_any_other_archive_than_the_pinned_one_is_refused() -> None:
    """Also one that our own KEK opens: a backup of another database, say, copied over."""
    stores = regions()
    pinned = (await written(stores, 1)).identity.public_key
    other = regions()
    await written(other, 1)
    mixed = (stores[0], other[1])
    found = await open_archive(Mirror(mixed), "shop", [KEK], public_key=pinned)
    assert found.identity.public_key == pinned
    assert list(found.store.damaged) == ["secondary"]
    with pytest.raises(IntegrityError, match="pins"):
        await open_archive(Mirror(other), "shop", [KEK], public_key=pinned)


async def test_no_archive_is_made_where_one_is_pinned() -> None:
    with pytest.raises(IntegrityError, match=r"archive\.json is missing"):
        await create_archive(
            Mirror(regions()), "shop", [KEK], system_identifier="42", database="shop", public_key="0" * 64
        )


# --- sizes ---


def test_what_is_read_before_anything_vouches_for_it_is_bounded() -> None:
    assert layout.limit(layout.ARCHIVE) == 1 << 16
    assert layout.limit(TODAY) == 1 << 20
    for name in (layout.manifest(1), layout.rollup(1, catalog.ROLLUP)):
        assert layout.limit(name) == 64 << 20
    assert layout.limit("segments/x") is None
    assert issubclass(ForeignObject, IntegrityError)
