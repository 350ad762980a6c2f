"""The rows of a table that the source computed anew, in place of those that the target has.

In: what one message of the stream tells of them, in a target transaction in which triggers and foreign keys are silent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.journal import ComputedRows
from archiver.postgres import search_path, unvalidated

_PUBLICATIONS: Final[LiteralString] = """
SELECT pubname::text, pg_catalog.concat_ws(', ', CASE WHEN pubinsert THEN 'insert' END,
       CASE WHEN pubupdate THEN 'update' END, 'delete', CASE WHEN pubtruncate THEN 'truncate' END)
  FROM pg_catalog.pg_publication WHERE pubdelete AND pg_catalog.pg_has_role(pubowner, 'USAGE')
"""


async def write(conn: psycopg.AsyncConnection[Any], found: ComputedRows) -> None:
    """All errors are psycopg's."""
    if found.first:
        table = sql.Identifier(found.schema, found.name)
        async with _unpublished(conn), search_path.of_users(conn):
            await conn.execute(sql.SQL("DELETE FROM ONLY {}").format(table))
    if found.rows:
        async with unvalidated.set_aside(conn, found.schema, found.name):
            await _insert(conn, found)


@asynccontextmanager
async def _unpublished(conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """A table without a replica identity refuses a DELETE where a publication of the users' would tell of it."""
    found = await (await conn.execute(_PUBLICATIONS)).fetchall()
    publish = sql.SQL("ALTER PUBLICATION {} SET (publish = {})")
    for name, _ in found:
        await conn.execute(publish.format(sql.Identifier(name), sql.Literal("")))
    yield
    for name, operations in found:
        await conn.execute(publish.format(sql.Identifier(name), sql.Literal(operations)))


async def _insert(conn: psycopg.AsyncConnection[Any], found: ComputedRows) -> None:
    cursor = psycopg.AsyncRawCursor(conn)  # a name may hold %
    await cursor.execute(
        "SELECT a.attname::text FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2"
        " AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum",
        [found.schema, found.name],
    )
    columns = [sql.Identifier(column) for (column,) in await cursor.fetchall()]
    insert = sql.SQL(
        "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE"
        " SELECT {values} FROM (SELECT (line::{table}).* FROM pg_catalog.unnest($1::text[]) AS line) AS r"
    ).format(
        table=sql.Identifier(found.schema, found.name),
        columns=sql.SQL(", ").join(columns),
        values=sql.SQL(", ").join(sql.SQL("r.{}").format(column) for column in columns),
    )
    async with search_path.of_users(conn):
        await cursor.execute(insert, [found.rows])
