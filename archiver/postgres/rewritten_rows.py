"""The rows of a table that the source computed anew, in place of those that the target has.

In: what one message of the stream tells of them, in a target transaction in which triggers and foreign keys are silent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.journal import ComputedRows
from archiver.format.records import Record, parse_record
from archiver.postgres import search_path, unvalidated, users_code
from archiver.postgres.copytext import blocks
from archiver.postgres.no_input import WRITABLE
from archiver.postgres.snapshot_tables import copy_in_query
from archiver.postgres.spelled import inserts
from archiver.postgres.users_code import Guarded

Conn = psycopg.AsyncConnection[Any]

_PUBLICATIONS: Final[LiteralString] = """
SELECT pubname::text, pg_catalog.concat_ws(', ', CASE WHEN pubinsert THEN 'insert' END,
       CASE WHEN pubupdate THEN 'update' END, 'delete', CASE WHEN pubtruncate THEN 'truncate' END)
  FROM pg_catalog.pg_publication WHERE pubdelete AND pg_catalog.pg_has_role(pubowner, 'USAGE')
"""
_TABLE: Final[LiteralString] = """
SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""
_COLUMNS: Final[LiteralString] = """
SELECT a.attname::text, __WRITABLE__ FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
""".replace("__WRITABLE__", WRITABLE)


async def write(conn: Conn, found: ComputedRows) -> None:
    """Raises IntegrityError for rows that are none of this table; all other errors are psycopg's."""
    row = await (await conn.execute(_TABLE, (found.schema, found.name))).fetchone()
    if row is None:
        raise psycopg.errors.UndefinedTable(f"there is no table {found.schema}.{found.name}")
    guarded = await users_code.find(conn, row[0])
    if found.first:
        async with _unpublished(conn):
            await _empty(conn, found, guarded)
    if found.rows:
        async with unvalidated.set_aside(conn, found.schema, found.name):
            await _insert(conn, found, row[0], guarded)


async def _empty(conn: Conn, found: ComputedRows, guarded: Guarded | None) -> None:
    delete = sql.SQL("DELETE FROM ONLY {}").format(sql.Identifier(found.schema, found.name))
    if guarded is not None:
        await guarded.run(conn, [delete.as_bytes(conn)])
        return
    async with search_path.of_users(conn):
        await conn.execute(delete)


@asynccontextmanager
async def _unpublished(conn: Conn) -> AsyncIterator[None]:
    """A table without a replica identity refuses a DELETE where a publication of the users' would tell of it."""
    found = await (await conn.execute(_PUBLICATIONS)).fetchall()
    publish = sql.SQL("ALTER PUBLICATION {} SET (publish = {})")
    for name, _ in found:
        await conn.execute(publish.format(sql.Identifier(name), sql.Literal("")))
    yield
    for name, operations in found:
        await conn.execute(publish.format(sql.Identifier(name), sql.Literal(operations)))


async def _insert(conn: Conn, found: ComputedRows, oid: int, guarded: Guarded | None) -> None:
    """No cast makes rows of the records: one of the users' would be called for it."""
    known = await (await conn.execute(_COLUMNS, (oid,))).fetchall()
    columns = [name for name, writable in known if writable]
    rows = [_written(parse_record(record, len(known)), known) for record in found.rows]
    if guarded is not None:
        await guarded.run(conn, list(inserts(guarded.table, columns, rows)))
        return
    query = copy_in_query(found.schema, found.name, columns)
    async with search_path.of_users(conn), conn.cursor() as cursor, cursor.copy(query) as copy:
        for block in blocks(rows):
            await copy.write(block)


def _written(record: Record, known: Sequence[tuple[str, bool]]) -> Record:
    return tuple(value for value, (_, writable) in zip(record, known, strict=True) if writable)
