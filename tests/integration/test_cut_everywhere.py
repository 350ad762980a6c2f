"""A log whose end was cut off in every region: the daemon does not take the freed numbers, and says what it saw."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from uuid import UUID

import pytest

from archiver.archive import OpenArchive, Place
from archiver.cut_log import find_beyond
from archiver.daemon import Daemon
from archiver.errors import IntegrityError
from archiver.format import layout
from archiver.format.manifest import Gap, Snapshot
from archiver.format.seal import Kind
from archiver.lsn import Lsn
from archiver.policy.history import History
from archiver.recovery_plan import read_history
from archiver.survey import survey
from tests.fix_archive import MakeSetup, Setup
from tests.fix_stored import REGIONS, Stored
from tests.integration.test_crash import file_regions

BOTH = ("primary", "secondary")
SLOT = "FROM pg_replication_slots WHERE database = current_database()"


@pytest.fixture
async def archived(make_setup: MakeSetup, tmp_path: Path) -> Setup:
    """An archive in two folders, with changes behind its base snapshot."""
    for each in BOTH:
        (tmp_path / each).mkdir()
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms"})
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY)")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for number in range(3):
                conn.execute("INSERT INTO item VALUES (%s)", (number,))
                await asyncio.sleep(0.3)
            await setup.archived()
    return setup


async def cut(setup: Setup, folder: Path) -> int:
    """Cut the log behind the base snapshot in every region; its new end."""
    async with setup.open() as archive:
        log = (await survey(archive)).log
    end = max(signed.seq for signed in log if isinstance(signed.entry, Snapshot))
    for region in BOTH:
        for signed in log:
            if signed.seq > end:
                (folder / region / layout.manifest(signed.seq)).unlink()
    return end


def objects(folder: Path) -> dict[str, bytes]:
    found = (path for region in BOTH for path in (folder / region).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in found}


async def run(setup: Setup, *, accept_gap: bool = False) -> None:
    await Daemon(setup.config, accept_gap=accept_gap).run(asyncio.Event())


async def history_of(setup: Setup) -> History:
    async with setup.open() as archive:
        return await read_history(archive)


async def test_a_daemon_takes_no_number_of_a_log_that_was_cut(archived: Setup, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "primary", whole)
    end = await cut(archived, tmp_path)
    before = objects(tmp_path)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="was cut off") as refused:
            await run(archived)
    where, hint = str(refused.value.where), str(refused.value.hint)
    assert f"ends at manifest {end};" in where
    assert "in primary" in where
    assert "in secondary" in where
    assert "the slot is at" in where
    assert "--accept-gap" in hint
    assert objects(tmp_path) == before
    for region in BOTH:  # as the buckets' versions would bring it back
        shutil.copytree(whole / "manifests", tmp_path / region / "manifests", dirs_exist_ok=True)
    async with archived.daemon():
        await archived.archived()
    assert (await history_of(archived)).gaps == []


async def test_a_cut_log_is_gone_on_with_where_the_operator_says_so(archived: Setup, tmp_path: Path) -> None:
    await cut(archived, tmp_path)
    daemon, stop = Daemon(archived.config, accept_gap=True), asyncio.Event()
    running = asyncio.create_task(daemon.run(stop))
    async with asyncio.timeout(30):
        while len((await history_of(archived)).snapshots) < 2:
            await asyncio.sleep(0.3)
    await archived.archived()
    stop.set()
    await running
    async with archived.daemon():  # and from then on it is like any other gap
        await archived.archived()
    [gap] = (await history_of(archived)).gaps
    assert gap.reason == "the replication slot was moved by someone else"


async def test_what_a_daemon_that_died_left_beyond_the_log_stops_nobody(archived: Setup, tmp_path: Path) -> None:
    """Segments that were durable, and whose manifests were not: the slot never confirmed them."""
    async with archived.open() as archive:
        await archive.follow()
        state = archive.log.state
    assert state.end is not None
    assert state.changes is not None
    for number in range(1, 4):
        name = f"{layout.SEGMENTS}{state.changes.ordinal + number:020d}-{int(state.end):016X}-{int(state.end) + 2**40:016X}"
        for region in BOTH:
            (tmp_path / region / f"{name}-0123456789ab.seg").write_bytes(b"x")
    async with archived.daemon():
        await archived.archived()
    assert (await history_of(archived)).gaps == []


async def test_a_log_that_was_cut_while_the_slot_was_lost_too_is_not_gone_on_with(
    archived: Setup, tmp_path: Path
) -> None:
    """Without a slot, more segments than a daemon that dies can leave without their manifests tell."""
    with archived.connect() as conn, archived.connect() as other:
        async with archived.daemon():
            for number in range(10, 18):
                conn.execute("INSERT INTO item VALUES (%s)", (number,))
                await asyncio.sleep(0.3)
            await archived.archived()
        await cut(archived, tmp_path)
        other.execute(f"SELECT pg_drop_replication_slot(slot_name) {SLOT}")
    before = objects(tmp_path)
    with pytest.raises(IntegrityError, match="was cut off"):
        await run(archived)
    assert objects(tmp_path) == before


FAR = Place(Kind.CHANGES, 900, Lsn(2**50), Lsn(2**50 + 1))
FAR_NAME = layout.segment(FAR.seq, FAR.start, FAR.end, UUID(int=0))


async def sealed(archive: OpenArchive, place: Place) -> bytes:
    sealer = await archive.sealer(place)
    sealer.write(b"x")
    return sealer.finish()


async def test_an_object_that_is_only_named_like_a_far_segment_says_nothing_of_the_log(stored: Stored) -> None:
    """Nor does a true one, under the name of another place; the one that it is named like tells of the cut."""
    async with stored.opened() as archive:
        await archive.follow()
        true = next((stored.folder / "fra" / "segments").iterdir()).read_bytes()
        other = await sealed(archive, FAR._replace(seq=899))
        for data in (b"rubbish", b"rubbish" * 100, true, other, other[:200]):
            stored.write("fra", FAR_NAME, data)
            assert await find_beyond(archive) == {}
        stored.write("fra", FAR_NAME, await sealed(archive, FAR))
        assert await find_beyond(archive) == {"fra": [FAR_NAME]}


async def test_no_command_takes_a_number_of_a_cut_log(stored: Stored) -> None:
    async with stored.opened() as archive:
        far = await sealed(archive, FAR)
    for region in REGIONS:
        stored.cut(region)
        stored.write(region, FAR_NAME, far)
    result = stored.run("snapshot")
    assert (result.returncode, "was cut off" in result.stderr) == (5, True), result.stderr
    result = stored.run("run")
    assert (result.returncode, "was cut off" in result.stderr) == (5, True), result.stderr
    assert stored.seqs("fra") == stored.seqs("dub")
    assert not any(isinstance(stored.manifest(seq)["entry"], Gap) for seq in stored.seqs("fra"))
