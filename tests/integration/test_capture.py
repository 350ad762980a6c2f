"""Capture on real servers: large transactions, lost connections, gaps, idle databases, one writer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from archiver.archive import open_archive
from archiver.config import SegmentSection
from archiver.daemon import Daemon
from archiver.errors import Fenced, PostgresError, TargetUnreachable
from archiver.format.manifest import Changes, Fence, Gap
from archiver.lsn import Lsn
from archiver.policy.target import ToName, ToTime
from archiver.postgres.replication import ReplicationStream
from archiver.postgres.session import connect
from archiver.postgres.setup import name_restore_point
from archiver.recovery_plan import make_plan, read_history
from archiver.regions import open_keks
from tests.fix_archive import MakeSetup, Setup

OURS = "FROM pg_replication_slots WHERE database = current_database()"


def digest(dsn: str, table: str = "item") -> object:
    with psycopg.connect(dsn) as conn:
        query = f"SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {table} t"
        return conn.execute(query).fetchone()


@pytest.fixture
async def item(make_setup: MakeSetup) -> Setup:
    setup = make_setup(segment={"max_age": "300ms", "max_bytes": "256KiB"})
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY, name text, at timestamptz DEFAULT now())")
        conn.execute("INSERT INTO item SELECT i, 'first ' || i FROM generate_series(1, 1000) i")
    await setup.init()
    return setup


async def test_a_transaction_streamed_over_many_segments_comes_back(item: Setup) -> None:
    with item.connect() as conn, item.connect() as other:
        other.execute("SET logical_decoding_work_mem = '64kB'")
        conn.execute("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'")
        conn.execute("SELECT pg_reload_conf()")
        try:
            async with item.daemon():
                await item.archived()
                conn.execute("BEGIN")
                conn.execute("INSERT INTO item SELECT i, 'large ' || i FROM generate_series(2001, 30000) i")
                other.execute("INSERT INTO item VALUES (100001, 'meanwhile')")
                await asyncio.sleep(1)
                conn.execute("SAVEPOINT s")
                conn.execute("DELETE FROM item WHERE id > 5000")
                conn.execute("ROLLBACK TO s")
                conn.execute("UPDATE item SET name = name || '!' WHERE id % 3 = 0")
                conn.execute("COMMIT")
                other.execute(
                    "BEGIN; INSERT INTO item SELECT i, 'undone' FROM generate_series(200000, 220000) i; ROLLBACK"
                )
                await item.archived()
        finally:
            conn.execute("ALTER SYSTEM RESET logical_decoding_work_mem")
            conn.execute("SELECT pg_reload_conf()")
        expected = digest(item.dsn)
    async with item.open() as archive:
        segments = [e for e in [s.entry async for s in archive.log.scan()] if isinstance(e, Changes) and e.object]
    assert len(segments) > 3
    restored, _ = await item.restore()
    assert digest(restored) == expected


async def test_capture_goes_on_after_the_walsender_was_killed(item: Setup) -> None:
    with item.connect() as conn:
        async with item.daemon():
            await item.archived()
            for number in range(3):
                conn.execute(
                    "INSERT INTO item SELECT i, 'more' FROM generate_series(%s::int, %s) i",
                    (10**4 + 100 * number, 10**4 + 99 + 100 * number),
                )
                conn.execute(f"SELECT pg_terminate_backend(active_pid) {OURS}")
                await asyncio.sleep(0.5)
            await item.archived()
        expected = digest(item.dsn)
    restored, _ = await item.restore()
    assert digest(restored) == expected


async def test_a_dropped_slot_becomes_a_gap_and_a_new_base_snapshot(item: Setup) -> None:
    with item.connect() as conn:
        async with item.daemon():
            await item.archived()
        conn.execute("UPDATE item SET name = 'before the gap'")
        conn.execute(f"SELECT pg_drop_replication_slot(slot_name) {OURS}")
        lost = datetime.now(UTC)
        await asyncio.sleep(0.05)
        conn.execute("UPDATE item SET name = 'in the gap'")
        async with item.daemon():
            await item.archived()
            async with item.open() as archive:
                async with asyncio.timeout(30):
                    while len((await read_history(archive)).snapshots) < 2:
                        await asyncio.sleep(0.2)
            conn.execute("UPDATE item SET name = 'after the gap'")
            await item.archived()
        expected = digest(item.dsn)
    async with item.open() as archive:
        history = await read_history(archive)
        assert len(history.gaps) == 1
        with pytest.raises(TargetUnreachable, match="gap"):
            await make_plan(archive, ToTime(lost))
    restored, _ = await item.restore()
    assert digest(restored) == expected


async def test_a_slot_that_someone_else_moved_becomes_a_gap(item: Setup) -> None:
    with item.connect() as conn:
        async with item.daemon():
            await item.archived()
        conn.execute("UPDATE item SET name = 'stolen'")
        conn.execute(f"SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) {OURS}")
        async with item.daemon():
            await item.archived()
    async with item.open() as archive:
        gaps = [s.entry async for s in archive.log.scan() if isinstance(s.entry, Gap)]
    assert [gap.reason for gap in gaps] == ["the replication slot was moved by someone else"]


async def test_a_slot_that_is_moved_between_the_look_at_it_and_the_streaming_becomes_a_gap(
    item: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server streams from the later of two positions, and says nothing."""
    async with item.daemon():
        await item.archived()
    start, moved = ReplicationStream.start, asyncio.Event()

    async def start_late(dsn: str, slot: str, publication: str, lsn: Lsn, *, in_progress: bool) -> ReplicationStream:
        if not moved.is_set():
            moved.set()
            with item.connect() as conn:
                conn.execute("INSERT INTO item VALUES (5000, 'skipped')")
                conn.execute(f"SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) {OURS}")
        return await start(dsn, slot, publication, lsn)

    monkeypatch.setattr("archiver.capture.ReplicationStream.start", start_late)
    async with item.daemon():
        await moved.wait()
        await item.archived()
    async with item.open() as archive:
        history = await read_history(archive)
    assert [gap.reason for gap in history.gaps] == ["the replication slot was moved by someone else"]
    assert sum(entry.commits for entry in history.changes) == 0


async def test_a_keyless_table_whose_updates_would_fail_is_never_published(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("CREATE TABLE virtual (a int, b int GENERATED ALWAYS AS (a + 1) VIRTUAL)")
        with pytest.raises(PostgresError, match=r"virtual generated column and no key: public\.virtual"):
            await setup.init("full")
        await setup.init("exclude")
        conn.execute("INSERT INTO virtual VALUES (1)")
        conn.execute("UPDATE virtual SET a = 2")


async def unreachable(setup: Setup, moment: datetime) -> bool:
    async with setup.open() as archive:
        window = (await read_history(archive)).window
    return window.latest is None or window.latest < moment


async def test_an_idle_database_can_be_restored_to_any_second(item: Setup) -> None:
    async with item.daemon() as daemon:
        await item.archived()
        await asyncio.sleep(1)
        moment = datetime.now(UTC)
        async with asyncio.timeout(
            30
        ):  # WAL that no commit flushes (pruned catalogs) waits up to 15 s for the bgwriter
            while await unreachable(item, moment):
                await asyncio.sleep(0.2)
        assert daemon.not_ready() is None
    async with item.open() as archive:
        plan = await make_plan(archive, ToTime(moment))
    assert plan.last_commit is None


async def test_the_slot_advances_while_only_other_databases_write(item: Setup, make_setup: MakeSetup) -> None:
    other = make_setup()
    with item.connect() as conn, other.connect() as noise:
        noise.execute("CREATE TABLE noise (t text)")
        async with item.daemon():
            await item.archived()
            slot = f"SELECT confirmed_flush_lsn {OURS}"
            before = conn.execute(slot).fetchone()
            noise.execute("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
            async with asyncio.timeout(20):
                while conn.execute(slot).fetchone() == before:
                    await asyncio.sleep(0.1)


async def test_a_restore_point_names_the_moment_it_was_made(item: Setup) -> None:
    with item.connect() as conn:
        async with item.daemon():
            await item.archived()
            conn.execute("UPDATE item SET name = 'good'")
            expected = digest(item.dsn)
            source = await connect(item.dsn, purpose="test")
            await name_restore_point(source, "before the release")
            await source.close()
            conn.execute("UPDATE item SET name = 'bad'")
            await item.archived()
    restored, _ = await item.restore(ToName("before the release"))
    assert digest(restored) == expected


async def test_a_daemon_that_was_overtaken_stops_and_confirms_nothing(item: Setup) -> None:
    seconds = SegmentSection(max_age=timedelta(seconds=2))  # so that the row is in the segment that meets the fence
    daemon, stop = Daemon(item.config.model_copy(update={"segment": seconds})), asyncio.Event()
    running = asyncio.create_task(daemon.run(stop))
    await item.archived()
    mirror = item.regions()
    usurper = await open_archive(mirror, item.config.archive.name, open_keks(item.config))
    await usurper.take_over(Fence(host="elsewhere", pid=1, version="0"))
    with item.connect() as conn:
        before = "SELECT pg_current_wal_insert_lsn()::text"
        [(lsn,)] = conn.execute(before).fetchall()
        conn.execute("INSERT INTO item VALUES (-1, 'behind the fence')")
        with pytest.raises(Fenced, match="taken over"):
            await asyncio.wait_for(running, 20)
        confirmed = "SELECT confirmed_flush_lsn <= %s FROM pg_replication_slots WHERE database = current_database()"
        assert conn.execute(confirmed, (lsn,)).fetchall() == [(True,)]
    await mirror.close()


async def test_a_second_daemon_is_refused_and_the_first_goes_on(item: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archiver.alignment.SLOT_PATIENCE", timedelta(seconds=1))
    async with item.daemon():
        await item.archived()
        with pytest.raises(Fenced, match="another archiver is reading"):
            await Daemon(item.config).run(asyncio.Event())
        with item.connect() as conn:
            conn.execute("INSERT INTO item VALUES (-1, 'still here')")
        await item.archived()
    async with item.open() as archive:
        fences = [s.entry async for s in archive.log.scan() if isinstance(s.entry, Fence)]
    assert len(fences) == 1


async def test_no_stored_byte_shows_what_was_written(item: Setup, s3_servers: tuple[object, object]) -> None:
    marker = "ZEBRA-71c9-MARKER"
    with item.connect() as conn:
        conn.execute("INSERT INTO item VALUES (-1, %s)", (marker + " in the base snapshot",))
        async with item.daemon():
            await item.archived()
            conn.execute("INSERT INTO item VALUES (-2, %s)", (marker + " in a change",))
            await item.archived()
    mirror = item.regions()
    objects = 0
    for store in mirror.stores:
        async for entry in store.list(""):
            data = await store.get(entry.key)
            assert marker.encode() not in data
            assert b"item" not in data
            objects += 1
    await mirror.close()
    assert objects > 10
