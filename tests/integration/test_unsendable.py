"""What the server cannot put into words: it costs a gap, or a table its rows, and never the archive of all others.

A database in SQL_ASCII takes bytes that have no text in UTF-8, and fails as soon as it is to send them: the small twin of
a row of more than 1 GB.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.daemon import Daemon
from archiver.embedded import PostgresServer
from archiver.format.manifest import Gap
from archiver.lsn import Lsn
from archiver.policy.target import ToLsn
from archiver.postgres import coverage
from archiver.postgres.coverage import check_large_values
from archiver.postgres.session import connect
from archiver.recovery_plan import read_history
from archiver.snapshots import read_index, take_snapshot
from tests.fix_archive import MakeSetup, Setup, running
from tests.fix_servers import MakeDatabase, drop_database
from tests.integration.test_crash import file_regions

TABLES = """
CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1);
CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, v text); INSERT INTO app.t VALUES (0, 'whole');
CREATE TABLE app.child (t int REFERENCES app.t); INSERT INTO app.child VALUES (0);
"""
PUT = r"INSERT INTO app.t VALUES (1, E'\xff')"
HUGE = """
INSERT INTO app.t SELECT 1, string_agg(decode(repeat('00', 100000000), 'hex'), ''::bytea) FROM generate_series(1, 6)
"""


@pytest.fixture
def ascii_dsn(pg: PostgresServer) -> Iterator[str]:
    name = f"ascii_{secrets.token_hex(6)}"
    pg.execute(f"CREATE DATABASE {name} ENCODING SQL_ASCII LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    yield pg.dsn(name)
    drop_database(pg, name)


@pytest.fixture
def setup(make_setup: MakeSetup, ascii_dsn: str, tmp_path: Path) -> Setup:
    """Large transactions are sent while they are in progress: nearly any is large."""
    return made(
        make_setup, tmp_path, f"{ascii_dsn}?client_encoding=UTF8&options=-clogical_decoding_work_mem%3D64kB", TABLES
    )


def made(make_setup: MakeSetup, folder: Path, dsn: str | None, tables: str) -> Setup:
    for name in ("primary", "secondary"):
        (folder / name).mkdir()
    setup = make_setup(dsn, region=file_regions(folder), segment={"max_age": "200ms"})
    with setup.connect() as dba:
        dba.execute(tables.encode())
    return setup


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query.encode()).fetchall()


async def gaps(setup: Setup) -> list[Gap]:
    async with setup.open() as archive:
        return (await read_history(archive)).gaps


async def behind(setup: Setup) -> None:
    """Wait until there is a base snapshot behind the gap."""
    async with setup.open() as archive, asyncio.timeout(30):
        while True:
            history = await read_history(archive)
            if history.gaps and history.snapshots and history.snapshots[-1].lsn > history.gaps[-1].before_lsn:
                return
            await asyncio.sleep(0.2)


async def test_a_transaction_that_cannot_be_sent_is_a_gap_and_what_came_before_and_after_is_archived(
    setup: Setup,
) -> None:
    await setup.init()
    with setup.connect() as dba:
        async with setup.daemon() as daemon:
            await setup.archived()
            dba.execute("INSERT INTO other VALUES (2)")
            [(before,)] = dba.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()
            dba.execute(PUT)
            dba.execute("DELETE FROM app.t WHERE id = 1; INSERT INTO other VALUES (3)")
            await behind(setup)
            dba.execute("INSERT INTO other VALUES (4)")
            await setup.archived()
            assert daemon.metrics.gaps_total._value.get() == 1
    [gap] = await gaps(setup)
    assert "was left out: the source could not send it (SQLSTATE 22021)" in gap.reason
    restored, _ = await setup.restore()
    assert rows(restored, "SELECT count(*) FROM other") == [(4,)]
    earlier, _ = await setup.restore(ToLsn(Lsn.parse(before)))
    assert rows(earlier, "SELECT count(*) FROM other") == [(2,)]


@pytest.mark.parametrize(("end", "found"), [("ROLLBACK", 0), ("COMMIT", 1)])
async def test_nothing_waits_for_a_large_transaction_and_one_that_is_rolled_back_costs_nothing(
    setup: Setup, end: str, found: int
) -> None:
    await setup.init()
    with setup.connect() as dba, setup.connect() as other:
        async with setup.daemon():
            await setup.archived()
            dba.execute("BEGIN")
            dba.execute(PUT)
            dba.execute("INSERT INTO app.t SELECT g, 'much' FROM generate_series(10, 20000) g")
            other.execute("INSERT INTO other VALUES (2)")
            await setup.archived()
            assert await gaps(setup) == []
            dba.execute(end.encode())
            dba.execute("DELETE FROM app.t WHERE id = 1")
            if found:
                await behind(setup)
            await setup.archived()
    assert len(await gaps(setup)) == found
    restored, _ = await setup.restore()
    assert rows(restored, "SELECT count(*) FROM other") == [(2,)]
    assert rows(restored, "SELECT count(*) FROM app.t") == [(1 + 19991 * found,)]


async def test_one_that_the_operator_names_is_left_out_at_once(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archiver.policy.breaks.TRIES", 1000)
    await setup.init()
    with setup.connect() as dba:
        async with setup.daemon():
            await setup.archived()
        with dba.transaction():
            [(xid,)] = dba.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()
            dba.execute(PUT)
        dba.execute("DELETE FROM app.t WHERE id = 1; INSERT INTO other VALUES (2)")
        async with running(Daemon(setup.config, skip=xid)):
            await behind(setup)
            await setup.archived()
    assert [f"transaction {xid} was left out" in gap.reason for gap in await gaps(setup)] == [True]
    restored, _ = await setup.restore()
    assert rows(restored, "SELECT count(*) FROM other") == [(2,)]


async def test_a_base_snapshot_leaves_the_rows_of_that_table_out_and_says_so_until_it_has_them(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archiver.table_watch.TABLES_SECONDS", 0.2)
    await setup.init()
    with setup.connect() as dba:
        dba.execute(PUT)
        async with setup.daemon() as daemon:
            await setup.archived()
            async with asyncio.timeout(10):
                while daemon.metrics.unarchived_tables._value.get() != 1:
                    await asyncio.sleep(0.1)
            dba.execute("UPDATE app.t SET v = 'new' WHERE id = 0; DELETE FROM app.t WHERE id = 1")
            dba.execute("INSERT INTO app.t VALUES (2, 'late'); INSERT INTO app.child VALUES (2)")
            await setup.archived()
        async with setup.open() as archive:
            snapshot = (await read_history(archive)).snapshots[-1]
            assert (snapshot.without_rows, (await read_index(archive, snapshot)).unarchived) == (1, ["app.t"])
        restored, summary = await setup.restore()
        assert rows(restored, "SELECT count(*) FROM app.t") == [(0,)]
        assert rows(restored, "SELECT t FROM app.child ORDER BY t") == [(0,), (2,)]
        told = "table app.t is not archived: it is left without rows, which the source could not send"
        assert any(warning.startswith(told) for warning in summary.warnings)
        async with setup.open() as archive:
            await archive.follow()
            assert (
                await take_snapshot(archive, setup.config.require_source(), setup.config.snapshot)
            ).without_rows == 0
    restored, _ = await setup.restore()
    assert rows(restored, "SELECT id, v FROM app.t ORDER BY id") == [(0, "new"), (2, "late")]


@pytest.mark.alone
@pytest.mark.parametrize("server", ["pg", "pg15"])
async def test_a_value_that_is_too_large_to_be_sent_stops_nothing_of_others(
    make_setup: MakeSetup, make_database: MakeDatabase, request: pytest.FixtureRequest, tmp_path: Path, server: str
) -> None:
    """600 MB of zeros, 7 MB on disk: whoever owns a table can store it."""
    dsn = make_database(request.getfixturevalue(server))
    setup = made(make_setup, tmp_path, dsn, TABLES.replace("v text", "v bytea"))
    await setup.init()
    with setup.connect() as dba:
        async with setup.daemon():
            await setup.archived()
            dba.execute(HUGE.encode())
            dba.execute("INSERT INTO other VALUES (2)")
            await behind(setup)
            await setup.archived()
    [gap] = await gaps(setup)
    assert "SQLSTATE XX000" in gap.reason
    async with setup.open() as archive:
        assert (await read_index(archive, (await read_history(archive)).snapshots[-1])).unarchived == ["app.t"]
    restored, _ = await setup.restore()
    assert rows(restored, "SELECT count(*) FROM other") == [(2,)]


async def test_check_names_tables_whose_rows_are_large(
    make_database: MakeDatabase, make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup()
    source = setup.config.require_source()
    with setup.connect() as dba:
        dba.execute("CREATE TABLE large (v bytea); ALTER TABLE large ALTER v SET STORAGE EXTERNAL")
        dba.execute("CREATE TABLE many (v bytea); ALTER TABLE many ALTER v SET STORAGE EXTERNAL")
        dba.execute("INSERT INTO large SELECT decode(repeat('00', 8000000), 'hex') FROM generate_series(1, 2)")
        dba.execute("INSERT INTO many SELECT decode(repeat('00', 10000), 'hex') FROM generate_series(1, 400)")
        dba.execute("ANALYZE")
    async with await connect(setup.dsn, purpose="test") as conn:
        [check] = await check_large_values(conn, source)
        assert check.status == "ok"
        monkeypatch.setattr(coverage, "LARGE_VALUE", 1 << 20)
        [check] = await check_large_values(conn, source)
    assert (check.status, check.detail.rpartition(": ")[2]) == ("warn", "public.large")
