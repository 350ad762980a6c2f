"""What `verify` says of a region that does not answer: that, and not that what it holds is damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from archiver.archive import open_archive
from archiver.errors import IntegrityError, StoreUnavailable
from archiver.format import layout
from archiver.policy import catalog
from archiver.store.base import Entry
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from archiver.verify import Finding, verify
from tests.unit.test_archive_log import KEK, Faulty, regions, written
from tests.unit.test_regions_behind import with_object

Regions = tuple[MemoryStore, MemoryStore]


class Silent(Faulty):
    """A region that does not answer for what is below a prefix."""

    def __init__(self, inner: MemoryStore, prefix: str, *, lists: bool = True) -> None:
        super().__init__(inner, lambda _when, _key: None)
        self._prefix = prefix
        self._lists = lists

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        if key.startswith(self._prefix):
            raise StoreUnavailable("no answer", where=f"{self.name}: {key}")
        return await super().get(key, most=most)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        if not self._lists and prefix.startswith(self._prefix):
            raise StoreUnavailable("no answer", where=f"{self.name}: {prefix}")
        async for entry in super().list(prefix, start_after=start_after):
            yield entry


async def found(stores: Regions, silent: Silent) -> list[Finding]:
    return (await verify(await open_archive(Mirror([stores[0], silent]), "shop", [KEK]))).findings


@pytest.fixture
async def stores(monkeypatch: pytest.MonkeyPatch) -> Regions:
    """An archive with a key that it needs, and a roll-up."""
    monkeypatch.setattr(catalog, "ROLLUP", 3)
    stores = regions()
    archive = await written(stores, 5)
    await archive.log.append(await with_object(archive, 6))
    return stores


async def test_a_key_over_which_a_region_times_out_is_not_called_missing(stores: Regions) -> None:
    keys = sorted(key for key in stores[1].objects if key.startswith(layout.KEYS))
    findings = await found(stores, Silent(stores[1], layout.KEYS))
    assert [(f.region, f.object, f.what) for f in findings] == [
        (stores[1].name, key, f"no answer ({stores[1].name}: {key})") for key in keys
    ]


async def test_a_roll_up_over_which_a_region_times_out_is_not_called_another(stores: Regions) -> None:
    rolled = [key for key in stores[1].objects if key.startswith(layout.CATALOG)]
    assert rolled
    findings = await found(stores, Silent(stores[1], layout.CATALOG))
    assert [(f.object, f.what) for f in findings] == [(key, f"no answer ({stores[1].name}: {key})") for key in rolled]


async def test_roll_ups_that_a_region_does_not_list_are_not_passed_over(stores: Regions) -> None:
    findings = await found(stores, Silent(stores[1], layout.CATALOG, lists=False))
    assert [(f.object, f.what) for f in findings] == [
        (layout.CATALOG, f"no answer ({stores[1].name}: {layout.CATALOG})")
    ]


async def test_a_roll_up_that_repeats_something_else_is_named(stores: Regions) -> None:
    rolled = next(key for key in stores[1].objects if key.startswith(layout.CATALOG))
    stores[1].objects[rolled] = catalog.pack([b"{}"])
    findings = await found(stores, Silent(stores[1], "nothing"))
    assert [(f.object, f.what) for f in findings] == [(rolled, "does not repeat the log")]


async def test_a_region_that_does_not_answer_is_asked_no_more_and_the_other_one_is_still_looked_at(
    stores: Regions,
) -> None:
    """Each object of a dead region would take the whole patience of a command."""
    archive = await open_archive(Mirror([stores[0], Silent(stores[1], "", lists=False)]), "shop", [KEK])
    report = await verify(archive)
    assert [(f.region, f.object) for f in report.findings] == [(stores[1].name, layout.MANIFESTS)]
    assert (report.silent, report.ok, report.damaged) == ([stores[1].name], False, False)
    [bad] = [key for key in stores[0].objects if key.startswith(layout.SEGMENTS)]
    stores[0].objects[bad] = b"altered"
    report = await verify(archive)
    assert [(f.region, f.object) for f in report.findings] == [
        (stores[1].name, layout.MANIFESTS),
        (stores[0].name, bad),
    ]
    assert report.damaged


async def test_a_region_that_falls_silent_meanwhile_is_asked_no_more(stores: Regions) -> None:
    silent = Silent(stores[1], layout.SEGMENTS)
    report = await verify(await open_archive(Mirror([stores[0], silent]), "shop", [KEK]))
    assert report.silent == [stores[1].name]
    assert len(report.findings) == 1
    assert not report.damaged


async def test_damage_that_was_found_before_a_region_fell_silent_counts(stores: Regions) -> None:
    [key, *_] = sorted(key for key in stores[1].objects if key.startswith(layout.KEYS))
    stores[1].objects[key] = b"altered"
    report = await verify(await open_archive(Mirror([stores[0], Silent(stores[1], layout.SEGMENTS)]), "shop", [KEK]))
    assert report.silent == [stores[1].name]
    assert report.damaged


class Mistaken(Silent):
    """A region whose answers do not match their checksums."""

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        if key.startswith(layout.MANIFESTS):
            raise IntegrityError("the bytes do not match their checksum", where=f"{self.name}: {key}")
        return await super().get(key, most=most)


async def test_a_log_whose_bytes_do_not_match_their_checksum_is_damaged_and_not_silent(stores: Regions) -> None:
    report = await verify(await open_archive(Mirror([stores[0], Mistaken(stores[1], "none")]), "shop", [KEK]))
    assert [(f.region, f.object) for f in report.findings][:1] == [(stores[1].name, layout.manifest(1))]
    assert report.damaged
    assert report.silent == []
