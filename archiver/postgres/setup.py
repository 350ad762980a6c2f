"""What archiver puts into the source database, and takes out again: publication, triggers, restore points.

In: a connection to the source. Everything is idempotent. Beside the publication and the slot there is only the
schema `archiver` and event triggers named `archiver_*`. Nothing here can make a statement of the application fail:
a table without a key gets REPLICA IDENTITY FULL before anyone can update it, or is not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import psycopg
from psycopg import sql

from archiver.errors import PostgresError, PostgresUnavailable, UsageError
from archiver.lsn import Lsn
from archiver.postgres import install
from archiver.postgres.brief_locks import with_brief_locks
from archiver.postgres.exclusion import excluded_tables
from archiver.postgres.session import postgres_error
from archiver.postgres.triggers import ListedPublication

Keyless = Literal["full", "exclude"]
Conn = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table that can be published; `keyed` when its UPDATEs and DELETEs have a replica identity.

    `virtual`: it has a virtual generated column (18), with which REPLICA IDENTITY FULL refuses every UPDATE.
    """

    schema: str
    name: str
    keyed: bool
    virtual: bool = False

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


# relreplident: d default (primary key), i index, f full, n nothing (pg_class). A deferrable primary key identifies no
# row to the server. Partitions are published by leaf.
_TABLES = """
SELECT c.oid::bigint, n.nspname, c.relname,
       c.relreplident = 'f' AND NOT v.has
       OR c.relreplident = 'd' AND EXISTS (SELECT FROM pg_catalog.pg_index i
                                            WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
       OR c.relreplident = 'i' AND EXISTS (SELECT FROM pg_catalog.pg_index i
                                            WHERE i.indrelid = c.oid AND i.indisreplident),
       v.has
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                                     WHERE a.attrelid = c.oid AND a.attgenerated = 'v')) v (has)
 WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'archiver'
   AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'
 ORDER BY 2, 3
"""


async def publishable_tables(conn: Conn, exclude: Sequence[str]) -> list[PublishedTable]:
    """All permanent tables but the excluded ones. Raises UsageError where a name is no table's."""
    excluded = await excluded_tables(conn, exclude)
    excluded.require_known()
    return [table for oid, table in await _permanent_tables(conn) if oid not in excluded.oids]


async def _permanent_tables(conn: Conn) -> list[tuple[int, PublishedTable]]:
    try:
        rows = await (await conn.execute(_TABLES)).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc) from exc
    return [(oid, PublishedTable(*row)) for oid, *row in rows]


async def set_up_publication(conn: Conn, name: str, exclude: Sequence[str], keyless: Keyless | None) -> str:
    """Make the publication, after settling what happens to tables without a key. Returns what was done.

    A superuser who leaves nothing out publishes FOR ALL TABLES, guarded; otherwise the tables are listed.
    """
    tables = await publishable_tables(conn, exclude)
    without = require_choice(tables, keyless)
    await install.require_ours(conn, name)
    for table in without if keyless == "full" else ():
        await with_brief_locks(conn, partial(_identify_in_full, conn, table), f"table {table}")

    async def work() -> str:
        await install.require_ours(conn, name)
        done = await _set_up(conn, name, tables, without, keyless, exclude=exclude)
        await install.require_ours(conn, name)  # from now on nobody else can put another in the place of any of it
        return done

    return await with_brief_locks(conn, work, f"publication {name}")


async def _identify_in_full(conn: Conn, table: PublishedTable) -> None:
    name = sql.Identifier(table.schema, table.name)
    await conn.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(name))


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
    virtual = [table for table in without if table.virtual]
    if virtual and keyless == "full":
        raise PostgresError(
            f"tables with a virtual generated column and no key: {', '.join(map(str, virtual))}",
            hint="REPLICA IDENTITY FULL would make their UPDATEs fail: give them a primary key, or --keyless exclude.",
        )
    return without


async def _set_up(
    conn: Conn,
    name: str,
    tables: Sequence[PublishedTable],
    without: Sequence[PublishedTable],
    keyless: Keyless | None,
    *,
    exclude: Sequence[str],
) -> str:
    if keyless == "exclude":
        tables = [table for table in tables if table.keyed]
    exists = await publishes_all(conn, name)
    listed = bool(exclude) or (bool(without) and keyless == "exclude")
    if not listed and await _is_superuser(conn) and exists in {None, True}:
        await install.install(conn, None, superuser=True)
        if exists is None:
            await conn.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(sql.Identifier(name)))
        await _set_options(conn, name)
        return f"publication {name} for all tables"
    if exists:
        raise PostgresError(
            f"publication {name} is for all tables already", hint=f"DROP PUBLICATION {name}, then run init again."
        )
    listing = ListedPublication(name, exclude, guard=keyless != "exclude")
    journal = await install.install(conn, listing, superuser=await _is_superuser(conn))
    await _publish_listed(conn, name, tables, new=exists is None, journal=journal)
    return f"publication {name} for {len(tables)} tables"


async def _publish_listed(conn: Conn, name: str, tables: Sequence[PublishedTable], *, new: bool, journal: bool) -> None:
    """The journal is one of them: what the triggers say travels in its rows."""
    names = [*([("archiver", "journal")] if journal else []), *((table.schema, table.name) for table in tables)]
    listed = sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(*each)) for each in names)
    if new:
        await conn.execute(sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name)))
    await _set_options(conn, name)
    if names:
        await conn.execute(sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(sql.Identifier(name), listed))


async def _set_options(conn: Conn, name: str) -> None:
    """Every kind of change, each partition under its own name, whatever an earlier publication of this name said.

    From 18 on a table with REPLICA IDENTITY FULL refuses UPDATEs while its generated columns are not published.
    """
    options = "publish = 'insert, update, delete, truncate', publish_via_partition_root = false"
    query = sql.SQL("ALTER PUBLICATION {} SET ({})")
    await conn.execute(query.format(sql.Identifier(name), sql.SQL(options)))
    if conn.info.server_version >= 180000:
        await conn.execute(query.format(sql.Identifier(name), sql.SQL("publish_generated_columns = stored")))


async def publishes_all(conn: Conn, name: str) -> bool | None:
    """Whether the publication is for all tables; None if there is none. Raises PostgresError."""
    query = "SELECT puballtables FROM pg_catalog.pg_publication WHERE pubname = %s"
    try:
        row = await (await conn.execute(query, (name,))).fetchone()
    except psycopg.Error as exc:
        raise postgres_error(exc) from exc
    return None if row is None else bool(row[0])


async def _is_superuser(conn: Conn) -> bool:
    row = await (await conn.execute("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")).fetchone()
    return bool(row and row[0])


async def published_tables(conn: Conn, name: str) -> set[tuple[str, str]]:
    """Schema and name of the tables that the publication carries. Raises PostgresError when there is none."""
    if await publishes_all(conn, name) is None:
        raise PostgresError(f"there is no publication {name!r}", hint="Make it with: archiver init")
    try:
        query = "SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = %s"
        rows = await (await conn.execute(query, (name,))).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc) from exc
    return {(schema, table) for schema, table in rows}


async def unpublished_tables(conn: Conn, name: str, exclude: Sequence[str]) -> list[PublishedTable]:
    """Tables that nobody excluded and that the publication does not carry: created since `init` listed them."""
    if await publishes_all(conn, name):
        return []
    excluded = (await excluded_tables(conn, exclude)).oids
    published = await published_tables(conn, name)
    tables = await _permanent_tables(conn)
    return [table for oid, table in tables if (table.schema, table.name) not in published and oid not in excluded]


async def publish_missing(conn: Conn, name: str, exclude: Sequence[str]) -> tuple[list[str], list[str]]:
    """Publish what no trigger did: there is none, or somebody's lock was in its way. A base snapshot is to follow.

    Returns the tables that were added, and those that the role may not add. Raises PostgresError where a lock is in
    the way still.
    """
    added: list[str] = []
    refused: list[str] = []
    for table in [table for table in await unpublished_tables(conn, name, exclude) if table.keyed]:
        (added if await _publish(conn, name, table) else refused).append(str(table))
    return added, refused


async def _publish(conn: Conn, name: str, table: PublishedTable) -> bool:
    """Whether the role may. Whoever makes a table meanwhile waits behind it no longer than for his own trigger."""
    added = sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}")
    try:
        async with conn.transaction():
            await conn.execute("SET LOCAL lock_timeout = '50ms'")
            await conn.execute(added.format(sql.Identifier(name), sql.Identifier(table.schema, table.name)))
    except psycopg.errors.InsufficientPrivilege:
        return False
    except psycopg.errors.LockNotAvailable as exc:
        raise PostgresUnavailable("an open transaction keeps a table out of the publication", where=str(table)) from exc
    except psycopg.Error as exc:
        raise postgres_error(exc, f"publication {name}") from exc
    return True


async def published_although_excluded(conn: Conn, name: str, exclude: Sequence[str]) -> list[PublishedTable]:
    """Excluded tables that the publication carries all the same: `exclude` has changed since `init`."""
    excluded = (await excluded_tables(conn, exclude)).oids
    published = await published_tables(conn, name) if excluded else set()
    tables = await _permanent_tables(conn)
    return [table for oid, table in tables if (table.schema, table.name) in published and oid in excluded]


async def name_restore_point(conn: Conn, name: str) -> Lsn:
    """Write a restore point into the stream, durably. Returns the LSN that it names."""
    where = f"restore point {name}"
    try:
        row = await (await conn.execute("SELECT archiver.restore_point(%s)::text", (name,))).fetchone()
    except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName) as exc:
        hint = "Run: archiver init"
        raise PostgresError("the source is not set up for restore points", where=where, hint=hint) from exc
    except psycopg.errors.InvalidParameterValue as exc:
        raise UsageError(postgres_error(exc).message, where=where) from exc
    except psycopg.Error as exc:
        raise postgres_error(exc, where) from exc
    assert row is not None
    return Lsn.parse(row[0])


async def remove_all(conn: Conn, publication: str) -> list[str]:
    """Take out everything but the slot (replication_slot.drop_slot does that). Returns what is not ours, and stays."""

    async def work() -> list[str]:
        await install.require_ours(conn, publication)
        await conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(publication)))
        return await install.remove(conn)

    return await with_brief_locks(conn, work, "uninstalling")
