"""What an expiry rule takes, oldest first: it is noticed, said, written again where that can be, and the rest restored."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from archiver import inspection
from archiver.daemon import Daemon
from archiver.format import layout
from archiver.format.manifest import Signed, Snapshot
from tests.fix_archive import MakeSetup
from tests.fix_stored import AFTER, BEFORE, REGIONS, Stored
from tests.integration.test_crash import file_regions

SEGMENTS_BEFORE = 4  # of which an expiry rule takes some (tests/fix_stored.py)


def expire_before_the_base_snapshot(stored: Stored) -> int:
    """The oldest manifests are gone in every region, up to the segment before the base snapshot's."""
    snapshot = stored.newest("snapshot")
    at = stored.manifest(snapshot)["entry"]["lsn"]
    entries = {seq: stored.manifest(seq)["entry"] for seq in stored.seqs("fra") if seq < snapshot}
    before = [s for s, entry in entries.items() if entry["kind"] == "changes" and _lsn(entry["end_lsn"]) <= _lsn(at)]
    last = before[-1] - 1
    for region in REGIONS:
        for seq in range(1, last + 1):
            stored.path(region, layout.manifest(seq)).unlink()
    return last


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def test_what_is_whole_can_be_restored_though_the_log_has_lost_its_beginning(stored: Stored, empty: str) -> None:
    last = expire_before_the_base_snapshot(stored)
    facts = stored.json("info")
    assert facts["complete"]
    assert facts["warnings"] == [
        f"the log begins at manifest {last + 1}: manifests 1 to {last} are missing, and what they named"
    ]
    restored = stored.run("restore", "--into", empty, "--latest", "--yes")
    assert restored.returncode == 0, restored.stderr
    assert f"manifests 1 to {last} are missing" in restored.stderr
    assert stored.count(empty) == BEFORE + AFTER
    report = stored.json("verify")
    found = {(each["region"], each["object"], each["concerns"]) for each in report["findings"]}
    assert found == {(region, layout.manifest(1), f"seq 1 to {last}, and what they named") for region in REGIONS}
    assert stored.run("verify").returncode == 5


def test_a_manifest_that_is_altered_is_refused_though_the_log_has_lost_its_beginning(stored: Stored) -> None:
    last = expire_before_the_base_snapshot(stored)
    for region in REGIONS:
        path = stored.path(region, layout.manifest(last + 2))
        path.write_bytes(path.read_bytes()[:-9] + b"x" + path.read_bytes()[-8:])
    assert stored.run("info").returncode == 5


def test_a_hole_in_the_log_is_no_beginning(stored: Stored) -> None:
    for region in REGIONS:
        stored.path(region, layout.manifest(2)).unlink()
    result = stored.run("info")
    assert (result.returncode, "manifest 2 is missing" in result.stderr) == (5, True)


def test_archive_json_that_is_missing_everywhere_is_no_archive_that_was_never_made(stored: Stored) -> None:
    stored.path("fra", layout.ARCHIVE).unlink()
    assert stored.run("info").returncode == 0
    stored.path("dub", layout.ARCHIVE).unlink()
    for command in ("info", "verify", "run", "init", "check"):
        result = stored.run(command)
        said = result.stdout + result.stderr
        assert (result.returncode, "archive.json is missing in every region" in said) == (5, True), (command, said)
        assert "A daemon that still runs writes it again" in said


async def test_a_daemon_notices_what_is_missing_and_writes_it_again(
    make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "FIRST_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(inspection, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(inspection, "DOUBT_SECONDS", 0.2)
    for each in ("primary", "secondary"):
        (tmp_path / each).mkdir()
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms"})
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)")
        await setup.init()
        async with setup.daemon() as daemon:
            await setup.archived()
            assert await missing(daemon, 0, 0)
            part = sorted((tmp_path / "primary" / "snapshots").rglob("*.part"))[0].relative_to(tmp_path / "primary")
            gone = [layout.ARCHIVE, layout.key("signing"), str(part)]
            kept = {name: (tmp_path / "primary" / name).read_bytes() for name in gone}
            for name in gone:
                (tmp_path / "primary" / name).unlink()
            for name in gone[:2]:  # nobody but the daemon has them now
                (tmp_path / "secondary" / name).unlink()
            assert await missing(daemon, 3, 2)
            assert await missing(daemon, 0, 0)
            for region in ("primary", "secondary"):
                assert {name: (tmp_path / region / name).read_bytes() for name in gone} == kept
    await setup.restore()


async def missing(daemon: Daemon, primary: int, secondary: int) -> bool:
    """Whether the metric comes to say so."""

    def shown(region: str) -> float | None:
        return daemon.metrics.registry.get_sample_value("archiver_missing_objects", {"region": region})

    async with asyncio.timeout(20):
        while (shown("primary"), shown("secondary")) != (primary, secondary):
            await asyncio.sleep(0.05)
    return True


def test_a_look_asks_for_little(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """However old the archive is: a look is some hundred HEAD requests."""

    monkeypatch.setattr(inspection, "DOUBT_SECONDS", 0.0)

    async def look() -> int:
        asked: list[str] = []
        async with stored.opened() as archive:
            await archive.follow()
            log = [each async for each in archive.log.scan() if not isinstance(each.entry, Snapshot)]
            for number in range(1000):
                moved = {"seq": 1000 + number}
                archive.log.state.sample.observe(Signed(log[-1].manifest.model_copy(update=moved), b""))
            await inspection.look(archive, on_ask=lambda _region, name: asked.append(name))
        assert layout.ARCHIVE in asked
        assert layout.key("signing") in asked
        assert any(name.startswith("keys/snapshots-") for name in asked)
        return len(asked)

    # What is missing is asked for twice, in each of two regions.
    assert 6 <= asyncio.run(look()) <= 4 * inspection.MOST
