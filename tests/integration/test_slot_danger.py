"""What happens to the slot: given up, dropped, invalidated or made to wait; the gap is in the log, the source lives."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.embedded.process import STOP_LIMIT
from archiver.format.manifest import Gap
from archiver.recovery_plan import read_history
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import PG_SETTINGS, MakeDatabase
from tests.integration.test_capture import digest
from tests.integration.test_crash import SCHEMA, SLOT, file_regions
from tests.integration.test_durability import until, value

FILL = "INSERT INTO item SELECT i, repeat('x', 500) FROM generate_series(%s::int, %s) i"


@pytest.fixture
def own_pg() -> Iterator[PostgresServer]:
    """A server of the test's own, which keeps as little WAL as it may, and hangs up on silent peers early."""
    settings = PG_SETTINGS | {"wal_sender_timeout": "5s", "checkpoint_timeout": "30s", "max_wal_size": "64MB"}
    with closing(PostgresServer(settings=settings)) as server:
        server.start()
        yield server


def world(make_setup: MakeSetup, dsn: str, folder: Path, **source: object) -> Setup:
    for name in ("primary", "secondary"):
        (folder / name).mkdir()
    made = make_setup(dsn, source={"dsn": dsn} | source, region=file_regions(folder), segment={"max_age": "200ms"})
    with made.connect() as conn:
        conn.execute(SCHEMA)
    return made


async def gaps(setup: Setup) -> list[Gap]:
    async with setup.open() as archive:
        return list((await read_history(archive)).gaps)


async def ends_equal(setup: Setup) -> None:
    """A base snapshot behind the last gap makes the newest state one that can be restored."""
    async with asyncio.timeout(60):
        while True:
            async with setup.open() as archive:
                history = await read_history(archive)
            last = history.epochs[-1]
            if history.gaps and last.snapshots and last.snapshots[-1].lsn >= history.gaps[-1].before_lsn:
                break
            await asyncio.sleep(0.3)
    await setup.archived()
    restored, _ = await setup.restore()
    assert digest(restored, "item") == digest(setup.dsn, "item")


async def test_the_slot_is_given_up_at_its_limit_and_work_resumes_when_the_regions_are_back(
    own_pg: PostgresServer, make_setup: MakeSetup, make_database: MakeDatabase, tmp_path: Path
) -> None:
    setup = world(make_setup, make_database(own_pg), tmp_path, drop_slot_at="32MiB")
    await setup.init()
    async with setup.daemon() as daemon:
        await setup.archived()
        for name in ("primary", "secondary"):
            shutil.move(tmp_path / name, tmp_path / f"{name}.away")
        with setup.connect() as conn:
            conn.execute(FILL, (1, 80_000))
            await until(lambda: conn.execute(f"SELECT 1 {SLOT}").fetchone() is None)
        for name in ("primary", "secondary"):
            shutil.move(tmp_path / f"{name}.away", tmp_path / name)
        await until(lambda: value(daemon, "gaps_total") == 1)
        await ends_equal(setup)
    (gap,) = await gaps(setup)
    assert "given up at" in gap.reason


async def test_a_slot_that_is_dropped_under_the_daemon_becomes_a_gap_while_it_goes_on(
    make_setup: MakeSetup, make_database: MakeDatabase, tmp_path: Path
) -> None:
    setup = world(make_setup, make_database(), tmp_path)
    await setup.init()
    async with setup.daemon() as daemon:
        await setup.archived()
        with setup.connect() as conn:
            conn.execute("INSERT INTO untouched VALUES (1)")
            conn.execute(f"SELECT pg_terminate_backend(active_pid, 5000) {SLOT}")
            conn.execute(f"SELECT pg_drop_replication_slot(slot_name) {SLOT}")
            conn.execute(FILL, (1, 100))
        await until(lambda: value(daemon, "gaps_total") == 1)
        await ends_equal(setup)


async def test_a_slot_that_the_server_invalidated_becomes_a_gap(
    own_pg: PostgresServer, make_setup: MakeSetup, make_database: MakeDatabase, tmp_path: Path
) -> None:
    setup = world(make_setup, make_database(own_pg), tmp_path)
    await setup.init()
    async with setup.daemon():
        await setup.archived()
    own_pg.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    own_pg.execute("SELECT pg_reload_conf()")
    with setup.connect() as conn:
        for number in range(3):
            conn.execute(FILL, (number * 50_000, number * 50_000 + 49_999))
            conn.execute("SELECT pg_switch_wal()")
        conn.execute("CHECKPOINT")
        status = conn.execute(f"SELECT wal_status {SLOT}").fetchone()
    assert status == ("lost",)
    own_pg.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
    own_pg.execute("SELECT pg_reload_conf()")
    async with setup.daemon():
        await ends_equal(setup)
    (gap,) = await gaps(setup)
    assert "was invalidated" in gap.reason


async def test_a_slot_that_was_idle_for_too_long_becomes_a_gap(
    own_pg: PostgresServer, make_setup: MakeSetup, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """idle_replication_slot_timeout, from 18 on, takes effect at a checkpoint."""
    setup = world(make_setup, make_database(own_pg), tmp_path)
    await setup.init()
    async with setup.daemon():
        await setup.archived()
    own_pg.execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'")
    own_pg.execute("SELECT pg_reload_conf()")
    await asyncio.sleep(1.5)
    with setup.connect() as conn:
        conn.execute(FILL, (1, 10))
        conn.execute("SELECT pg_switch_wal()")
        conn.execute("CHECKPOINT")
        assert conn.execute(f"SELECT invalidation_reason {SLOT}").fetchone() == ("idle_timeout",)
    async with setup.daemon():
        await ends_equal(setup)
    (gap,) = await gaps(setup)
    assert gap.reason.endswith("was invalidated: idle_timeout")


async def test_how_long_the_slot_lasts_is_told_before_it_is_lost(
    own_pg: PostgresServer, make_setup: MakeSetup, make_database: MakeDatabase, tmp_path: Path
) -> None:
    own_pg.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '128MB'")
    own_pg.execute("SELECT pg_reload_conf()")
    setup = world(make_setup, make_database(own_pg), tmp_path)
    await setup.init()
    async with setup.daemon() as daemon:
        await setup.archived()
        for name in ("primary", "secondary"):
            shutil.move(tmp_path / name, tmp_path / f"{name}.away")
        with setup.connect() as conn:
            for number in range(6):
                conn.execute(FILL, (number * 20_000, number * 20_000 + 19_999))
                await asyncio.sleep(1.1)
        await until(lambda: 0 < value(daemon, "slot_seconds_left") < float("inf"))
        for name in ("primary", "secondary"):
            shutil.move(tmp_path / f"{name}.away", tmp_path / name)
        await setup.archived()


async def test_slow_uploads_never_cost_the_connection(
    own_pg: PostgresServer,
    make_setup: MakeSetup,
    make_database: MakeDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice wal_sender_timeout, which is 5 s here, for each object."""
    from archiver.store.file import FileStore

    setup = world(make_setup, make_database(own_pg), tmp_path)
    await setup.init()
    async with setup.daemon():
        await setup.archived()
        put = FileStore.put

        async def slow(self: FileStore, key: str, data: bytes, *, if_absent: bool = False) -> None:
            await asyncio.sleep(10)
            await put(self, key, data, if_absent=if_absent)

        monkeypatch.setattr(FileStore, "put", slow)
        with setup.connect() as conn:
            before = conn.execute(f"SELECT active_pid {SLOT}").fetchone()
            conn.execute(FILL, (1, 1000))
            await asyncio.sleep(25)
            assert conn.execute(f"SELECT active_pid {SLOT}").fetchone() == before
        monkeypatch.undo()
        await setup.archived()
    assert await gaps(setup) == []


async def test_a_walsender_that_is_silent_over_a_huge_transaction_is_neither_lost_nor_given_up(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    """Nothing of an excluded table is sent: the server decodes for longer than wal_sender_timeout, and says nothing."""
    settings = PG_SETTINGS | {"wal_sender_timeout": "1500ms", "max_wal_size": "2GB"}
    with closing(PostgresServer(settings=settings)) as server:
        server.start()
        setup = world(make_setup, server.dsn(), tmp_path, exclude=["public.untouched"])
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            with setup.connect() as conn:
                before = conn.execute(f"SELECT active_pid {SLOT}").fetchone()
                insert = "INSERT INTO untouched SELECT generate_series(1, 2000000)"
                await asyncio.to_thread(conn.execute, insert)  # the daemon shares this event loop
                conn.execute("INSERT INTO item VALUES (1, 'after')")
                await setup.archived()
                assert conn.execute(f"SELECT active_pid {SLOT}").fetchone() == before
        assert await gaps(setup) == []
        restored, _ = await setup.restore()
        assert digest(restored, "item") == digest(setup.dsn, "item")


async def test_a_shutdown_of_the_source_does_not_wait_for_regions_that_are_down(
    own_pg: PostgresServer, make_setup: MakeSetup, tmp_path: Path
) -> None:
    """A walsender holds a fast shutdown up until its client has confirmed everything."""
    setup = world(make_setup, own_pg.dsn(), tmp_path)
    await setup.init()
    async with setup.daemon():
        await setup.archived()
        for name in ("primary", "secondary"):
            shutil.move(tmp_path / name, tmp_path / f"{name}.away")
        own_pg.execute(FILL.replace("%s::int, %s", "1, 1000"))
        await asyncio.sleep(2)
        started = time.monotonic()
        await asyncio.to_thread(own_pg.stop)
        assert time.monotonic() - started < STOP_LIMIT  # after which the fixture would have killed it
        own_pg.start()
        for name in ("primary", "secondary"):
            shutil.move(tmp_path / f"{name}.away", tmp_path / name)
        await setup.archived()
    assert await gaps(setup) == []
    restored, _ = await setup.restore()
    assert digest(restored, "item") == digest(setup.dsn, "item")


async def test_a_source_that_is_frozen_is_waited_for_and_the_recovery_point_ages(
    own_pg: PostgresServer,
    make_setup: MakeSetup,
    make_database: MakeDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("archiver.postgres.source.SAMPLE_PATIENCE", 1.0)
    setup = world(make_setup, make_database(own_pg), tmp_path)
    await setup.init()
    async with setup.daemon() as daemon:
        await setup.archived()
        with psycopg.connect(own_pg.dsn(), autocommit=True) as conn:
            pids = [
                row[0] for row in conn.execute("SELECT pid FROM pg_stat_activity WHERE application_name ~ 'archiver'")
            ]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await until(lambda: value(daemon, "recovery_point_age_seconds") > 4)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        with setup.connect() as conn:
            conn.execute(FILL, (1, 100))
        await setup.archived()
    assert await gaps(setup) == []


async def test_the_slot_follows_a_failover_where_the_server_can(
    make_setup: MakeSetup, make_database: MakeDatabase
) -> None:
    dsn = make_database()
    setup = make_setup(dsn)
    await setup.init()
    with setup.connect() as conn:
        assert conn.execute(f"SELECT failover {SLOT}").fetchone() == (True,)
