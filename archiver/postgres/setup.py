"""What archiver puts into the source database, and takes out again: publication, guard, restore points.

In: a connection to the source. Everything is idempotent. Beside the publication and the slot there is only the
schema `archiver` and event triggers named `archiver_*`. Nothing here can make a statement of the application fail:
a table without a key gets REPLICA IDENTITY FULL before anyone can update it, or is not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import sql

from archiver.errors import PostgresError, UsageError
from archiver.lsn import Lsn
from archiver.policy.stream import RESTORE_POINT_PREFIX
from archiver.postgres.session import postgres_error

Keyless = Literal["full", "exclude"]
Conn = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table that can be published; `keyed` when its UPDATEs and DELETEs have a replica identity."""

    schema: str
    name: str
    keyed: bool

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


# relreplident: d default (primary key), i index, f full, n nothing (pg_class). Partitions are published by leaf.
_TABLES = """
SELECT n.nspname, c.relname,
       c.relreplident = 'f'
       OR c.relreplident = 'd' AND EXISTS (SELECT FROM pg_catalog.pg_index i
                                            WHERE i.indrelid = c.oid AND i.indisprimary)
       OR c.relreplident = 'i' AND EXISTS (SELECT FROM pg_catalog.pg_index i
                                            WHERE i.indrelid = c.oid AND i.indisreplident)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'archiver'
   AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'
 ORDER BY 1, 2
"""

# Runs as whoever creates the table, who owns it. It never fails their statement: without this a table
# without a key would be published and every UPDATE of it refused.
_GUARD = """
CREATE SCHEMA IF NOT EXISTS archiver;
GRANT USAGE ON SCHEMA archiver TO PUBLIC;
CREATE OR REPLACE FUNCTION archiver.guard_keyless() RETURNS event_trigger LANGUAGE plpgsql AS $guard$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT DISTINCT c.oid::pg_catalog.regclass AS name
          FROM pg_catalog.pg_event_trigger_ddl_commands() d
          JOIN pg_catalog.pg_class c ON c.oid = d.objid OR c.oid = (
               SELECT k.conrelid FROM pg_catalog.pg_constraint k WHERE k.oid = d.objid)
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.relreplident IN ('d', 'n')
           AND NOT (c.relreplident = 'd' AND EXISTS (
               SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))
    LOOP
        BEGIN
            EXECUTE pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY FULL', found.name);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'archiver: cannot set the replica identity of %: %', found.name, SQLERRM;
        END;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'archiver: guard failed: %', SQLERRM;
END
$guard$;
DROP EVENT TRIGGER IF EXISTS archiver_guard_keyless;
CREATE EVENT TRIGGER archiver_guard_keyless ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE')
    EXECUTE FUNCTION archiver.guard_keyless();
ALTER EVENT TRIGGER archiver_guard_keyless ENABLE ALWAYS;
"""


async def publishable_tables(conn: Conn, exclude: Sequence[str]) -> list[PublishedTable]:
    """All permanent tables but the excluded ones (`schema.table`). Raises UsageError for one that is not there."""
    try:
        rows = await (await conn.execute(_TABLES)).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc) from exc
    tables = [PublishedTable(*row) for row in rows]
    unknown = set(exclude) - {str(table) for table in tables}
    if unknown:
        raise UsageError(f"excluded tables do not exist: {', '.join(sorted(unknown))}", hint="Mend [source] exclude.")
    return [table for table in tables if str(table) not in exclude]


async def set_up_publication(conn: Conn, name: str, exclude: Sequence[str], keyless: Keyless | None) -> str:
    """Make the publication, after settling what happens to tables without a key. Returns what was done.

    A superuser who leaves nothing out publishes FOR ALL TABLES, guarded; otherwise the tables are listed.
    """
    tables = await publishable_tables(conn, exclude)
    without = require_choice(tables, keyless)
    try:
        async with conn.transaction():
            return await _set_up(conn, name, tables, without, keyless if without else None, partial=bool(exclude))
    except psycopg.Error as exc:
        raise postgres_error(exc, f"publication {name}") from exc


def require_choice(tables: Sequence[PublishedTable], keyless: Keyless | None) -> list[PublishedTable]:
    """The tables without a key. Raises PostgresError when there are some and nobody has said what to do with them."""
    without = [table for table in tables if not table.keyed]
    if without and keyless is None:
        raise PostgresError(
            f"tables without a primary key or replica identity: {', '.join(map(str, without[:10]))}"
            + (f" and {len(without) - 10} more" if len(without) > 10 else ""),
            hint="Publishing them would make their UPDATEs fail. Choose --keyless full (sets REPLICA IDENTITY FULL) "
            "or --keyless exclude (does not archive them).",
        )
    return without


async def _set_up(
    conn: Conn,
    name: str,
    tables: Sequence[PublishedTable],
    without: Sequence[PublishedTable],
    keyless: Keyless | None,
    *,
    partial: bool,
) -> str:
    if keyless == "full":
        for table in without:
            await conn.execute(
                sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(sql.Identifier(table.schema, table.name))
            )
    if keyless == "exclude":
        tables = [table for table in tables if table.keyed]
    exists = await _publishes_all(conn, name)
    if not partial and keyless != "exclude" and await _is_superuser(conn) and exists in {None, True}:
        await conn.execute(_GUARD)
        if exists is None:
            await conn.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(sql.Identifier(name)))
        return f"publication {name} for all tables"
    if exists:
        raise PostgresError(
            f"publication {name} is for all tables already", hint=f"DROP PUBLICATION {name}, then run init again."
        )
    await _publish_listed(conn, name, tables, new=exists is None)
    return f"publication {name} for {len(tables)} tables"


async def _publish_listed(conn: Conn, name: str, tables: Sequence[PublishedTable], *, new: bool) -> None:
    listed = sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(t.schema, t.name)) for t in tables)
    if new:
        await conn.execute(sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name)))
    if tables:
        await conn.execute(sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(sql.Identifier(name), listed))


async def _publishes_all(conn: Conn, name: str) -> bool | None:
    row = await (
        await conn.execute("SELECT puballtables FROM pg_catalog.pg_publication WHERE pubname = %s", (name,))
    ).fetchone()
    return None if row is None else bool(row[0])


async def _is_superuser(conn: Conn) -> bool:
    row = await (await conn.execute("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")).fetchone()
    return bool(row and row[0])


async def published_tables(conn: Conn, name: str) -> set[tuple[str, str]]:
    """Schema and name of the tables that the publication carries. Raises PostgresError when there is none."""
    if await _publishes_all(conn, name) is None:
        raise PostgresError(f"there is no publication {name!r}", hint="Make it with: archiver init")
    try:
        query = "SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = %s"
        rows = await (await conn.execute(query, (name,))).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc) from exc
    return {(schema, table) for schema, table in rows}


async def unpublished_tables(conn: Conn, name: str, exclude: Sequence[str]) -> list[PublishedTable]:
    """Tables that nobody excluded and that the publication does not carry: created since `init` listed them."""
    tables = await publishable_tables(conn, ())
    published = await published_tables(conn, name)
    return [t for t in tables if (t.schema, t.name) not in published and str(t) not in exclude]


async def name_restore_point(conn: Conn, name: str) -> Lsn:
    """Write a restore point into the stream, durably. Returns the LSN that it names."""
    try:
        row = await (
            await conn.execute(
                "SELECT pg_catalog.pg_logical_emit_message(true, %s, %s)::text", (RESTORE_POINT_PREFIX.decode(), name)
            )
        ).fetchone()
    except psycopg.Error as exc:
        raise postgres_error(exc, f"restore point {name}") from exc
    assert row is not None
    return Lsn.parse(row[0])


async def remove_all(conn: Conn, publication: str) -> None:
    """Take out everything but the slot (replication_slot.drop_slot does that)."""
    try:
        async with conn.transaction():
            await conn.execute("DROP EVENT TRIGGER IF EXISTS archiver_guard_keyless")
            await conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(publication)))
            await conn.execute("DROP SCHEMA IF EXISTS archiver CASCADE")
    except psycopg.Error as exc:
        raise postgres_error(exc, "uninstalling") from exc
