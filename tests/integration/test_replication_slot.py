"""Slots on a real server: what stands in the way is named, and an attempt that fails leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
from archiver.postgres.replication_slot import (
    Blocker,
    CreatedSlot,
    create_slot,
    drop_lost_slot,
    drop_slot,
    identify_system,
    slot_info,
)
from archiver.postgres.session import connect
from tests.fix_servers import PG_SETTINGS, MakeDatabase

SOON = timedelta(seconds=2)


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresServer]:
    """A server with one slot, and prepared transactions."""
    settings = {**PG_SETTINGS, "max_replication_slots": 1, "max_prepared_transactions": 2}
    with closing(PostgresServer(settings=settings)) as server:
        server.start()
        yield server


async def make(dsn: str, name: str, *, replication_dsn: str | None = None, **options: Any) -> CreatedSlot:
    async with pair(dsn, replication_dsn) as (replication, watch):
        return await create_slot(replication, name, watch=watch, **options)


@asynccontextmanager
async def pair(
    dsn: str, replication_dsn: str | None = None
) -> AsyncIterator[tuple[psycopg.AsyncConnection[Any], psycopg.AsyncConnection[Any]]]:
    replication = await connect(replication_dsn or dsn, purpose="test slot", replication=True)
    async with replication, await connect(dsn, purpose="test") as watch:
        yield replication, watch


def slots(server: PostgresServer) -> list[str]:
    return [name for (name,) in server.execute("SELECT slot_name FROM pg_replication_slots")]


async def test_a_slot_is_made_described_and_dropped(make_database: MakeDatabase) -> None:
    async with pair(make_database()) as (replication, watch):
        system = await identify_system(replication)
        made = await create_slot(replication, "plain", watch=watch)
        info = await slot_info(watch, "plain")
        assert info is not None
        assert (info.plugin, info.database, info.active) == ("pgoutput", system.database, False)
        assert info.confirmed_flush_lsn == made.lsn > system.position - 1
        assert made.snapshot is not None
        assert not info.is_lost
        await drop_lost_slot(watch, "plain")
        assert await slot_info(watch, "plain") is not None, "it was not lost"
        assert await drop_slot(watch, "plain")
        assert not await drop_slot(watch, "plain")
        assert await slot_info(watch, "plain") is None


async def test_a_temporary_slot_ends_with_its_connection(make_database: MakeDatabase, pg: PostgresServer) -> None:
    made = await make(make_database(), "passing", temporary=True, export=False)
    assert made.snapshot is None
    for _ in range(50):
        if "passing" not in slots(pg):
            break
        await asyncio.sleep(0.1)
    assert "passing" not in slots(pg)


async def test_a_slot_is_made_on_postgresql_15_as_well(make_database: MakeDatabase, pg15: PostgresServer) -> None:
    dsn = make_database(pg15)
    assert (await make(dsn, "fifteen")).snapshot is not None
    async with await connect(dsn, purpose="test") as watch:
        info = await slot_info(watch, "fifteen")
        assert info is not None
        assert info.invalidation is None


async def test_an_open_transaction_in_another_database_is_named_and_nothing_is_left(
    small: PostgresServer, make_database: MakeDatabase
) -> None:
    seen: list[Blocker] = []
    with psycopg.connect(small.dsn(), application_name="nightly job") as busy:
        busy.execute("SELECT pg_current_xact_id()")
        with pytest.raises(PostgresError, match=r"waits for pid \d+ of postgres \(nightly job, ") as blocked:
            await make(make_database(small), "blocked", timeout=SOON, on_blocked=seen.extend)
        assert f"pg_terminate_backend({busy.info.backend_pid})" in (blocked.value.hint or "")
        assert seen[0].pid == busy.info.backend_pid
    assert seen[0].database == "postgres"
    assert seen[0].query == "SELECT pg_current_xact_id()"
    assert slots(small) == []


async def test_a_prepared_transaction_is_named_by_its_gid(small: PostgresServer, make_database: MakeDatabase) -> None:
    with psycopg.connect(small.dsn()) as conn:
        conn.execute("SELECT pg_current_xact_id()")
        conn.execute("PREPARE TRANSACTION 'left behind'")
        conn.autocommit = True
        try:
            with pytest.raises(PostgresError, match="prepared transaction 'left behind'") as blocked:
                await make(make_database(small), "blocked", timeout=SOON)
        finally:
            conn.execute("ROLLBACK PREPARED 'left behind'")
    assert "ROLLBACK PREPARED" in (blocked.value.hint or "")
    assert slots(small) == []


async def test_the_slot_is_made_as_soon_as_the_blocker_ends(small: PostgresServer, make_database: MakeDatabase) -> None:
    dsn = make_database(small)
    with psycopg.connect(small.dsn()) as busy:
        busy.execute("SELECT pg_current_xact_id()")
        made = await make(dsn, "patient", on_blocked=lambda _: busy.rollback(), timeout=timedelta(seconds=30))
    assert made.name == "patient"


async def test_cancelling_the_attempt_leaves_no_slot(small: PostgresServer, make_database: MakeDatabase) -> None:
    with psycopg.connect(small.dsn()) as busy:
        busy.execute("SELECT pg_current_xact_id()")
        attempt = asyncio.create_task(make(make_database(small), "cancelled"), name="attempt")
        await asyncio.sleep(1)
        assert slots(small) == ["cancelled"]
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert slots(small) == []


async def test_what_an_unprivileged_watcher_may_not_see_is_left_out_but_the_pid_is_named(
    small: PostgresServer, make_database: MakeDatabase
) -> None:
    dsn = make_database(small)
    small.execute("CREATE ROLE watcher LOGIN REPLICATION")
    with psycopg.connect(small.dsn()) as busy:
        busy.execute("SELECT pg_current_xact_id()")
        with pytest.raises(PostgresError, match=f"waits for pid {busy.info.backend_pid} of postgres"):
            await make(dsn.replace("postgres@", "watcher@"), "blocked", timeout=SOON)
    assert slots(small) == []


async def test_no_free_slot_says_what_to_raise(small: PostgresServer, make_database: MakeDatabase) -> None:
    dsn = make_database(small)
    await make(dsn, "the_only_one")
    with pytest.raises(PostgresError, match="all replication slots are in use") as full:
        await make(dsn, "one_more")
    assert "max_replication_slots" in (full.value.hint or "")
    assert slots(small) == ["the_only_one"]


async def test_a_slot_that_was_there_is_refused_and_left_alone(
    small: PostgresServer, make_database: MakeDatabase
) -> None:
    dsn = make_database(small)
    await make(dsn, "mine")
    with pytest.raises(PostgresError, match="there already"):
        await make(dsn, "mine")
    assert slots(small) == ["mine"]


async def test_a_role_without_replication_is_told_what_it_lacks(
    pg: PostgresServer, make_database: MakeDatabase
) -> None:
    pg.execute("DO $$ BEGIN CREATE ROLE no_replication LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    with pytest.raises(PostgresError) as refused:
        await make(make_database().replace("postgres@", "no_replication@"), "denied")
    assert "REPLICATION" in (refused.value.hint or "")
    assert not refused.value.transient


async def test_a_bad_name_is_refused_with_the_rule(make_database: MakeDatabase) -> None:
    with pytest.raises(PostgresError) as refused:
        await make(make_database(), "Not-A-Name")
    assert "lower-case" in (refused.value.hint or "")


async def test_a_server_below_wal_level_logical_is_told_to_raise_it() -> None:
    with closing(PostgresServer(settings={**PG_SETTINGS, "wal_level": "replica"})) as server:
        server.start()
        with pytest.raises(PostgresError) as refused:
            await make(server.dsn(), "too_low")
    assert "wal_level to logical" in (refused.value.hint or "")
