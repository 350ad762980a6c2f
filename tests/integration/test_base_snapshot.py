"""A database with one of everything: read under a snapshot while others write, loaded elsewhere, compared."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError, SchemaMoved
from archiver.format.digest import RowDigest
from archiver.format.dump import Script, for_restore, split
from archiver.format.dump_roles import Skipped, for_target
from archiver.policy.parts import PageRange, cut
from archiver.policy.sequence_log import SequenceState
from archiver.postgres import load
from archiver.postgres.client_programs import dump_schema, find_pg_dump
from archiver.postgres.exclusion import excluded_tables
from archiver.postgres.replication_slot import create_slot
from archiver.postgres.sequences import raise_to_columns, read_sequences, set_sequences
from archiver.postgres.session import connect
from archiver.postgres.snapshot import (
    DatabaseInfo,
    begin_copy,
    copy_range,
    describe_database,
    digest_table,
    end_copy,
    snapshot_connection,
)
from archiver.postgres.snapshot_tables import TableInfo, list_tables
from tests.fix_servers import MakeDatabase

RICH = Path(__file__).parent / "data" / "rich_schema.sql"
ROLES = ("archiver_test_owner", "archiver_test_reader")
PUBLICATION = "archiver_shop"


@dataclass
class BaseSnapshot:
    info: DatabaseInfo
    schema: str
    tables: list[TableInfo]
    rows: dict[str, list[bytes]]
    digests: dict[str, str]
    sequences: list[SequenceState]


@pytest.fixture
def roles(pg: PostgresServer) -> None:
    for role in ROLES:
        pg.execute(f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$")


@pytest.fixture
def source(pg: PostgresServer, make_database: MakeDatabase, roles: None) -> str:
    dsn = make_database(stem="source")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(RICH.read_bytes())
    return dsn


async def export_snapshot(conn: psycopg.AsyncConnection[Any]) -> str:
    row = await (await conn.execute("SELECT pg_export_snapshot()")).fetchone()
    assert row is not None
    return str(row[0])


async def take(dsn: str, *, pages_a_part: int = 4) -> BaseSnapshot:
    program = await find_pg_dump(18)
    async with snapshot_connection(dsn, None) as lead:
        tables = await list_tables(lead)
        name = await export_snapshot(lead)
        schema = await dump_schema(dsn, program, snapshot=name)
        copied = [table for table in tables if table.has_rows]
        rows = {table.label: await read(dsn, name, table, pages_a_part) for table in copied}
        digests = {table.label: str(await digest_table(lead, table)) for table in copied}
        info = await describe_database(lead)
        sequences = await read_sequences(lead)
    return BaseSnapshot(info, schema, copied, rows, digests, sequences.states)


async def read(dsn: str, snapshot: str, table: TableInfo, pages_a_part: int) -> list[bytes]:
    ranges = cut(table.pages if table.can_be_cut else 0, part_pages=pages_a_part)
    async with snapshot_connection(dsn, snapshot) as conn:
        return [row for pages in ranges async for batch in copy_range(conn, table, pages) for row in batch]


async def restore(dsn: str, taken: BaseSnapshot, *, roles: set[str] | None = None) -> list[Skipped]:
    conn = await connect(dsn, purpose="restore")
    async with conn:
        await load.ensure_empty(conn)
        await load.create_progress(conn)
        script = for_restore(split(taken.schema), publication=PUBLICATION, settings=await load.known_settings(conn))
        there = await load.existing_roles(conn) if roles is None else roles
        skipped = await step(conn, script, "pre", there)
        for table in taken.tables:
            await load.copy_in(conn, table.schema, table.name, table.columns, chunks(taken.rows[table.label]))
        skipped += await step(conn, script, "keys", there)
        skipped += await step(conn, script, "late", there)
        views = [(schema, name) for schema, name, populated in taken.info.materialized_views if populated]
        skipped += await load.refresh_views(conn, views)
        skipped += await load.apply_settings(conn, taken.info.settings, there)
        assert await set_sequences(conn, taken.sequences) == []
        await load.drop_progress(conn)
    return skipped


async def step(conn: psycopg.AsyncConnection[Any], script: Script, name: str, roles: set[str]) -> list[Skipped]:
    entries, skipped = for_target(getattr(script, name), roles)
    async with conn.transaction():
        return skipped + await load.run_script(conn, script.preamble, entries)


async def chunks(rows: list[bytes]) -> AsyncIterator[bytes]:
    for start in range(0, len(rows), 1000):
        yield b"".join(rows[start : start + 1000])


def comparable(schema: str) -> str:
    """A dump without what differs from run to run and what belongs to archiver."""
    script = for_restore(split(schema), publication=PUBLICATION, settings=())
    return "".join(entry.sql for entry in [*script.pre, *script.keys, *script.late])


async def test_a_restored_database_has_the_same_schema_and_rows(source: str, make_database: MakeDatabase) -> None:
    taken = await take(source)
    target = make_database(stem="target")
    assert await restore(target, taken) == []
    again = await take(target)
    assert comparable(again.schema) == comparable(taken.schema)
    assert again.digests == taken.digests
    assert again.sequences == taken.sequences
    assert again.info.materialized_views == taken.info.materialized_views


async def test_settings_of_the_database_and_of_roles_in_it_are_restored(
    source: str, make_database: MakeDatabase
) -> None:
    name = source.rpartition("/")[2]
    with psycopg.connect(source, autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE {name} SET search_path TO "$user", shop, "Odd ""Names""; Type: TABLE"'.encode())
        conn.execute(f"ALTER DATABASE {name} SET my.setting TO 'it''s'".encode())
        conn.execute(f"ALTER ROLE archiver_test_reader IN DATABASE {name} SET work_mem TO '7MB'".encode())
    taken = await take(source)
    assert len(taken.info.settings) == 3
    target = make_database(stem="target")
    assert await restore(target, taken) == []
    assert sorted((await take(target)).info.settings) == sorted(taken.info.settings)


async def test_nothing_of_archiver_is_restored(source: str, make_database: MakeDatabase) -> None:
    target = make_database(stem="target")
    await restore(target, await take(source))
    with psycopg.connect(target) as conn:
        assert conn.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'archiver'").fetchall() == []
        assert conn.execute("SELECT evtname FROM pg_event_trigger").fetchall() == [("user_ddl",)]
        assert conn.execute("SELECT pubname FROM pg_publication").fetchall() == [("user_publication",)]


async def test_the_snapshot_does_not_see_what_others_write_meanwhile(source: str) -> None:
    before = await take(source)
    stop = asyncio.Event()
    async with snapshot_connection(source, None) as lead:
        tables = await list_tables(lead)
        name = await export_snapshot(lead)
        writer = asyncio.create_task(write_until(source, stop), name="writer")
        try:
            await asyncio.sleep(0.3)
            parts = [await digest_in_parts(source, name, table) for table in tables if table.has_rows]
        finally:
            stop.set()
            written = await writer
    assert written > 0
    assert parts == list(before.digests.values())


async def write_until(dsn: str, stop: asyncio.Event) -> int:
    written = 0
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        while not stop.is_set():
            await conn.execute("UPDATE shop.orders SET tags = array_append(tags, 'x') WHERE id % 50 = 1")
            await conn.execute("INSERT INTO shop.keyless SELECT i, i FROM generate_series(1, 100) i")
            await conn.execute("INSERT INTO shop.no_columns DEFAULT VALUES")
            written += 1
    return written


async def digest_in_parts(dsn: str, snapshot: str, table: TableInfo) -> str:
    digest = RowDigest()
    async with snapshot_connection(dsn, snapshot) as conn:
        for pages in cut(table.pages if table.can_be_cut else 0, part_pages=3):
            digest.merge(await digest_table(conn, table, pages))
    return str(digest)


async def test_a_target_without_the_roles_is_restored_and_told_what_is_missing(
    source: str, make_database: MakeDatabase
) -> None:
    taken = await take(source)
    skipped = await restore(make_database(stem="target"), taken, roles={"postgres"})
    assert {item.reason for item in skipped} >= {"no role archiver_test_owner", "no role archiver_test_reader"}
    assert any("OWNER TO" in item.statement for item in skipped)
    assert any("CREATE POLICY" in item.statement for item in skipped)
    assert not any("secret" in item.statement for item in skipped)


async def test_an_unprivileged_role_restores_what_it_may(
    pg: PostgresServer, source: str, make_database: MakeDatabase
) -> None:
    taken = await take(source)
    target = make_database(stem="target")
    database = target.rpartition("/")[2]
    pg.execute("DROP ROLE IF EXISTS archiver_test_plain")
    pg.execute("CREATE ROLE archiver_test_plain LOGIN")
    pg.execute(f"ALTER DATABASE {database} OWNER TO archiver_test_plain")
    pg.execute("CREATE FOREIGN DATA WRAPPER dummy", dbname=database)  # only a superuser can
    pg.execute("GRANT USAGE ON FOREIGN DATA WRAPPER dummy TO archiver_test_plain", dbname=database)
    lines = [e for e in split(taken.schema) if e.type != "FOREIGN DATA WRAPPER"]
    taken.schema = "".join(entry.text for entry in lines)
    owners = {"archiver_test_plain"}
    skipped = await restore(pg.dsn(database, user="archiver_test_plain"), taken, roles=owners)
    assert "EVENT TRIGGER user_ddl" in {item.entry for item in skipped}
    async with snapshot_connection(target, None) as conn:
        assert [str(await digest_table(conn, table)) for table in taken.tables] == list(taken.digests.values())


async def test_a_snapshot_exported_by_the_slot_is_where_the_stream_begins(source: str) -> None:
    async with AsyncExitStack() as stack:
        replication = await connect(source, purpose="test", replication=True)
        stack.push_async_callback(replication.close)
        watch = await stack.enter_async_context(await connect(source, purpose="test"))
        slot = await create_slot(replication, "snapshot_test", temporary=True, watch=watch)
        await watch.execute("INSERT INTO shop.parent VALUES (99)")
        async with snapshot_connection(source, slot.snapshot) as lead:
            again = await export_snapshot(lead)
            await replication.execute("IDENTIFY_SYSTEM")  # ends the slot's own export
            async with snapshot_connection(source, again) as conn:
                cur = await conn.execute("SELECT count(*) FROM shop.parent WHERE p = 99")
                assert await cur.fetchone() == (0,)


@pytest.mark.parametrize(
    "change",
    [
        "TRUNCATE shop.parent",
        "ALTER TABLE shop.parent ALTER p TYPE text",
        "DROP TABLE shop.parent CASCADE",
        "ALTER TABLE shop.parent RENAME TO was_parent; CREATE TABLE shop.parent (p int)",
        "ALTER TABLE shop.parent SET SCHEMA public",
    ],
)
async def test_a_table_rewritten_after_the_snapshot_is_never_read_as_empty(source: str, change: str) -> None:
    async with snapshot_connection(source, None) as lead, await connect(source, purpose="test") as worker:
        tables = {table.label: table for table in await list_tables(lead)}
        name = await export_snapshot(lead)
        await begin_copy(worker, name, tables["shop.parent"])
        await end_copy(worker)
        with psycopg.connect(source, autocommit=True) as other:
            other.execute(change.encode())
        with pytest.raises(SchemaMoved, match=r"shop\.parent"):
            await begin_copy(worker, name, tables["shop.parent"])


async def test_excluded_tables_are_found_with_their_partitions(source: str) -> None:
    odd = '"Odd ""Names""; Type: TABLE"."select; -- \'it\'"'
    async with snapshot_connection(source, None) as conn:
        found = await excluded_tables(conn, ["shop.events", "shop.orders", odd])
        excluded = {table.name for table in await list_tables(conn) if table.oid in found.oids}
    assert excluded == {"events_2024", "events_rest_0", "events_rest_1", "orders", "select; -- 'it'"}
    assert found.unknown == ()


async def test_unlogged_tables_are_listed_without_rows_and_generated_columns_are_left_out(source: str) -> None:
    async with snapshot_connection(source, None) as conn:
        tables = {table.label: table for table in await list_tables(conn)}
    assert not tables["shop.scratch"].has_rows
    assert "name_length" not in tables["shop.customers"].columns
    assert tables["shop.dropped_column"].columns == ("a", "b")
    assert "shop.events" not in tables
    assert "archiver.state" not in tables
    assert TableInfo.from_json(tables["shop.orders"].to_json()) == tables["shop.orders"]


async def test_of_an_extensions_tables_only_the_configured_rows_are_copied_as_pg_dump_does(source: str) -> None:
    conn = await connect(source, purpose="test")
    async with conn:
        for table in ("parent", "keyless"):
            await conn.execute(f"ALTER EXTENSION pg_trgm ADD TABLE shop.{table}".encode())
        await conn.execute(
            "UPDATE pg_extension SET extconfig = ARRAY['shop.parent'::regclass], extcondition = ARRAY['WHERE p > 1']"
            " WHERE extname = 'pg_trgm'"
        )
        tables = {table.label: table for table in await list_tables(conn)}
        assert "shop.keyless" not in tables
        parent = tables["shop.parent"]
        assert (parent.extension, parent.condition, parent.can_be_cut) == ("pg_trgm", "WHERE p > 1", False)
        assert [row async for batch in copy_range(conn, parent) for row in batch] == [b"2\n"]


async def test_the_facts_about_a_database_survive_json(source: str) -> None:
    async with snapshot_connection(source, None) as conn:
        info = await describe_database(conn)
    assert DatabaseInfo.from_json(info.to_json()) == info
    assert ("shop", "postponed", True) in info.materialized_views
    assert ("shop", "unpopulated", False) in info.materialized_views
    assert info.unlogged_tables == [("shop", "scratch")]
    assert info.encoding == "UTF8"


async def test_a_reader_that_stops_early_leaves_a_usable_connection(source: str) -> None:
    conn = await connect(source, purpose="test")
    async with conn:
        [orders] = [table for table in await list_tables(conn) if table.label == "shop.orders"]
        batches = copy_range(conn, orders)
        async for _ in batches:
            break
        await batches.aclose()
        assert (await digest_table(conn, orders)).count == 5000


async def test_an_error_in_the_middle_of_a_copy_names_the_table(source: str) -> None:
    conn = await connect(source, purpose="test")
    async with conn:
        [parent] = [table for table in await list_tables(conn) if table.label == "shop.parent"]
        await conn.execute("ALTER TABLE shop.parent RENAME p TO q")
        with pytest.raises(PostgresError, match=r"shop\.parent"):
            await digest_table(conn, parent, PageRange())


async def test_a_target_that_is_not_empty_is_refused_with_what_is_there(source: str) -> None:
    conn = await connect(source, purpose="test")
    async with conn:
        with pytest.raises(PostgresError, match=r"not empty: .*and .* more") as refused:
            await load.ensure_empty(conn)
    assert refused.value.exit_code == 3
    assert refused.value.hint is not None


async def test_a_sequence_behind_its_column_is_raised_and_one_ahead_is_left(source: str) -> None:
    conn = await connect(source, purpose="test")
    async with conn:
        await conn.execute("SELECT setval('shop.orders_id_seq', 10)")
        await conn.execute("ALTER SEQUENCE shop.descending OWNED BY shop.parent.p")
        await conn.execute("INSERT INTO shop.parent VALUES (-77)")
        raised = {state.name: state.last_value for state in await raise_to_columns(conn)}
        assert raised == {"orders_id_seq": 5000, "descending": -77}
        cur = await conn.execute("SELECT nextval('shop.orders_id_seq'), nextval('shop.descending')")
        assert await cur.fetchone() == (5001, -82)
        assert await raise_to_columns(conn) == []


async def test_setting_sequences_never_moves_one_back_and_reports_missing_ones(source: str) -> None:
    conn = await connect(source, purpose="test")
    async with conn:
        gone = SequenceState("shop", "gone", 1, True)
        back = [SequenceState("shop", "orders_id_seq", 3, True), SequenceState("shop", "descending", -10, True, -5)]
        ahead = SequenceState("shop", "untouched", 501, False)
        assert await set_sequences(conn, [*back, ahead, gone]) == [gone]
        now = {state.name: state for state in (await read_sequences(conn)).states}
    assert (now["orders_id_seq"].last_value, now["descending"].last_value) == (5000, -15)
    assert now["untouched"] == ahead


async def test_sequences_that_may_not_be_read_are_named(pg: PostgresServer, source: str) -> None:
    pg.execute("DO $$ BEGIN CREATE ROLE archiver_test_blind LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    conn = await connect(source.replace("postgres@", "archiver_test_blind@"), purpose="test")
    async with conn:
        found = await read_sequences(conn)
    assert ("shop", "descending") in found.denied
    assert found.states == []


async def test_a_database_of_an_older_server_is_restored_into_a_newer_one(
    pg: PostgresServer, pg15: PostgresServer, make_database: MakeDatabase
) -> None:
    old = make_database(pg15, stem="old")
    with psycopg.connect(old, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA shop; CREATE TABLE shop.t (id serial PRIMARY KEY, d numeric, i interval)")
        conn.execute("INSERT INTO shop.t (d, i) SELECT i / 7.0, i * interval '1 h' FROM generate_series(1, 1000) i")
    taken = await take(old)
    target = make_database(pg, stem="new")
    assert await restore(target, taken) == []
    assert (await take(target)).digests == taken.digests


def test_the_rich_schema_really_has_text_that_looks_like_headers() -> None:
    assert len(re.findall(r"^-- Name: .*; Type: TABLE", RICH.read_text(), re.MULTILINE)) >= 2
