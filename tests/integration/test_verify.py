"""Verification names every kind of damage: in which region, which object, and what of the archive it concerns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from archiver.archive import OpenArchive
from archiver.config import Config
from archiver.format import layout
from archiver.format.manifest import Changes, Fence
from archiver.policy import catalog
from archiver.recovery_plan import read_history
from archiver.verify import Finding, Report, repair, verify
from tests.damage import HOWS, damage
from tests.fix_archive import MakeSetup, Setup
from tests.integration.test_crash import file_regions


@dataclass
class Whole:
    """A sound archive in two folders."""

    setup: Setup
    folder: Path
    changes: list[Changes]
    snapshot_parts: list[str]
    manifests: int

    def path(self, key: str, region: str = "primary") -> Path:
        return self.folder / region / key

    def paths(self, key: str) -> list[Path]:
        return [self.path(key, region) for region in ("primary", "secondary")]

    async def verify(self, *, read_data: bool = False) -> Report:
        async with self.setup.open() as archive:
            return await verify(archive, read_data=read_data)


async def entries(archive: OpenArchive) -> int:
    return len([signed async for signed in archive.log.scan()])


@pytest.fixture
async def whole(make_setup: MakeSetup, tmp_path: Path) -> Whole:
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms"})
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY)")
        conn.execute("INSERT INTO item SELECT generate_series(1, 100)")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for number in (-1, -2, -3):
                conn.execute("INSERT INTO item VALUES (%s)", (number,))
                await asyncio.sleep(0.3)
            await setup.archived()
    async with setup.open() as archive:
        history = await read_history(archive)
        changes = [entry for entry in history.changes if entry.object]
        parts = [part.key for part in history.snapshots[0].parts]
        return Whole(setup, tmp_path, changes, parts, await entries(archive))


def key_of(changes: Changes) -> str:
    assert changes.object is not None
    return changes.object.key


async def test_a_whole_archive_has_no_findings(whole: Whole) -> None:
    report = await whole.verify(read_data=True)
    assert report.ok
    assert (report.manifests, report.objects) == (whole.manifests, len(whole.changes) + len(whole.snapshot_parts))


@pytest.mark.parametrize("region", ["primary", "secondary"])
async def test_damaged_objects_are_named_with_region_and_range(whole: Whole, region: str) -> None:
    for how in HOWS:
        bad, other = whole.changes[1], whole.changes[0]
        path = whole.path(key_of(bad), region)
        before = path.read_bytes()
        damage(how, path, whole.path(key_of(other), region))
        what = "missing" if how == "deleted" else "altered or cut"
        expected = Finding(region, key_of(bad), what, f"changes from {bad.start_lsn} to {bad.end_lsn}")
        assert (await whole.verify()).findings == [expected]
        path.write_bytes(before)
    assert (await whole.verify()).ok


async def test_a_damaged_part_of_a_base_snapshot_is_named(whole: Whole) -> None:
    key = whole.snapshot_parts[-1]
    damage("altered", whole.path(key, "secondary"), whole.path(key))
    (finding,) = (await whole.verify()).findings
    assert (finding.region, finding.object) == ("secondary", key)
    assert finding.concerns.startswith(f"part {len(whole.snapshot_parts) - 1} of base snapshot ")


Alteration = Callable[[Path], object]
OF_MANIFESTS: dict[str, Alteration] = {
    "altered": lambda path: path.write_bytes(path.read_bytes().replace(b'"seq":2', b'"seq":9')),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "swapped": lambda path: path.write_bytes(path.with_name(f"{3:020d}.json").read_bytes()),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", OF_MANIFESTS)
async def test_a_damaged_manifest_is_named_with_its_region(whole: Whole, how: str) -> None:
    path = whole.path(layout.manifest(2), "secondary")
    path.chmod(0o600)
    OF_MANIFESTS[how](path)
    findings = (await whole.verify()).findings
    assert {finding.region for finding in findings} == {"secondary"}
    assert findings[0].concerns == "the log from manifest 2 on"


async def test_a_log_whose_end_was_cut_off_in_one_region_is_named_with_its_range(whole: Whole) -> None:
    for seq in (whole.manifests - 1, whole.manifests):
        whole.path(layout.manifest(seq)).unlink()
    (finding,) = (await whole.verify()).findings
    assert finding.region == "primary"
    assert finding.concerns == f"seq {whole.manifests - 1} to {whole.manifests}"


async def test_small_objects_that_are_missing_or_differ_are_named(whole: Whole) -> None:
    keys = sorted(path.name for path in (whole.folder / "primary" / "keys").iterdir())
    whole.path(f"keys/{keys[0]}").unlink()
    altered = whole.path(layout.ARCHIVE, "secondary")
    altered.chmod(0o600)
    altered.write_bytes(altered.read_bytes() + b" ")
    findings = (await whole.verify()).findings
    assert ("primary", f"keys/{keys[0]}", "missing") in {(f.region, f.object, f.what) for f in findings}
    assert {f.region for f in findings if f.object == layout.ARCHIVE} == {"primary", "secondary"}


async def test_an_object_lost_in_every_region_is_found_when_data_is_read(whole: Whole) -> None:
    bad = whole.changes[0]
    for path in whole.paths(key_of(bad)):
        path.unlink()
    findings = (await whole.verify(read_data=True)).findings
    assert [f.region for f in findings if f.object == key_of(bad)] == ["primary", "secondary", "all"]


async def test_a_damaged_roll_up_is_named(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROLLUP", 4)
    async with whole.setup.daemon():
        await asyncio.sleep(1.5)
    rolled = sorted((whole.folder / "primary" / "catalog").iterdir())
    assert rolled
    assert (await whole.verify()).ok
    damage("cut", rolled[0], rolled[0])
    (finding,) = (await whole.verify()).findings
    assert (finding.region, finding.object) == ("primary", f"catalog/{rolled[0].name}")


# --- repair ---


def everything(whole: Whole, region: str) -> dict[str, bytes]:
    root = whole.folder / region
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def repaired(whole: Whole) -> Report:
    async with whole.setup.open() as archive:
        return await repair(archive, read_data=True)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("region", ["primary", "secondary"])
async def test_whatever_is_damaged_in_one_region_is_written_again_from_the_other(
    whole: Whole, how: str, region: str
) -> None:
    before = everything(whole, region)
    keys = [key_of(whole.changes[0]), whole.snapshot_parts[0], layout.manifest(3), layout.manifest(whole.manifests)]
    keys.append(next(key for key in before if key.startswith("keys/changes-")))
    other = {key: whole.path(layout.manifest(2), region) for key in keys}
    for key in keys:
        damage(how, whole.path(key, region), other[key])
    report = await repaired(whole)
    assert report.ok, report.findings
    assert {finding.object for finding in report.repaired} >= {keys[0], keys[1], keys[4]}
    assert everything(whole, region) == before


async def test_a_region_that_was_emptied_or_set_back_is_filled_again(whole: Whole) -> None:
    before = everything(whole, "secondary")
    for key in before:
        whole.path(key, "secondary").unlink()
    report = await repaired(whole)
    assert report.ok, report.findings
    assert everything(whole, "secondary") == before


async def test_what_no_region_holds_whole_is_left_and_named(whole: Whole) -> None:
    key = key_of(whole.changes[0])
    for path in whole.paths(key):
        path.chmod(0o600)
        path.write_bytes(b"rubbish")
    report = await repaired(whole)
    assert {finding.object for finding in report.findings} == {key}
    assert [path.read_bytes() for path in whole.paths(key)] == [b"rubbish", b"rubbish"]


async def test_a_history_that_ended_is_replaced_only_when_the_other_holds_all_its_changes(whole: Whole) -> None:
    """As after a crash with a region down: each region has another manifest in the same place."""
    kept = everything(whole, "secondary")
    with whole.setup.connect() as conn:
        conn.execute("INSERT INTO item VALUES (-4)")
    async with whole.setup.daemon():
        await whole.setup.archived()
    longer = everything(whole, "primary")
    for key in everything(whole, "secondary").keys() - kept.keys():
        whole.path(key, "secondary").unlink()
    fork = Setup(whole.setup.dsn, _only(whole.setup, "secondary"), whole.setup.make_database)
    async with fork.open() as archive:
        await archive.take_over(Fence(host="elsewhere", pid=1, version="0"))
    async with whole.setup.open() as archive:
        assert not (await verify(archive)).ok
    report = await repaired(whole)
    assert report.ok, report.findings
    assert everything(whole, "primary") == longer
    assert everything(whole, "secondary").items() >= {key: longer[key] for key in longer if "manifests" in key}.items()


def _only(setup: Setup, region: str) -> Config:
    fields = setup.config.model_dump()
    return Config.model_validate(fields | {"region": [one for one in fields["region"] if one["name"] == region]})
