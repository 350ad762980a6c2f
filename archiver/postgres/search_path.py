"""The search_path of the database's own sessions, for what runs functions of theirs that name things without a schema.

Our sessions have none: what we read of the catalog and what we say is named in full. But rows meet indexes, constraints
and generated columns whose functions rely on one, and the planner looks into those of indexes for any query of a table.
Inside `of_users` they find what they name. pg_catalog comes first there, whatever the setting says: our own statements
mean the same, as long as the types of their operators match exactly.

Temporary objects come last in both, so that none of them stands for a type or a table of ours. What the path is, is
known here and not in the session, where the code of users could change it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString
from weakref import WeakKeyDictionary

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

Conn = psycopg.AsyncConnection[Any]

RESTING: Final[LiteralString] = "pg_catalog, pg_temp"
LEAVE: Final[LiteralString] = "SELECT pg_catalog.set_config('search_path', '" + RESTING + "', false)"

# A path that names pg_catalog may name others before it.
_OF_USERS: Final[LiteralString] = """
SELECT CASE WHEN pg_catalog.strpos(given.path, 'pg_catalog') OPERATOR(pg_catalog.>) 0
            THEN pg_catalog.concat('pg_catalog, ', given.path)
            WHEN given.path OPERATOR(pg_catalog.=) '' THEN 'pg_catalog' ELSE given.path END
  FROM (SELECT coalesce(%s::pg_catalog.text, pg_catalog.current_setting('search_path')) AS path) AS given
"""
_AT_REST: Final = frozenset({TransactionStatus.IDLE, TransactionStatus.INTRANS})
_paths: WeakKeyDictionary[Conn, str] = WeakKeyDictionary()


async def put_aside(conn: Conn, path: str | None = None) -> None:
    """Keep the session's path, or the one given instead, for `of_users`; the session itself has none from now on."""
    row = await (await conn.execute(_OF_USERS, (path,))).fetchone()
    assert row is not None
    _paths[conn] = f"{row[0]}, pg_temp"
    await conn.execute(LEAVE)


def path_of_users(conn: Conn) -> str:
    return _paths.get(conn, RESTING)


def enter(conn: Conn) -> sql.Composed:
    """The query that begins what `LEAVE` ends."""
    return sql.SQL("SELECT pg_catalog.set_config('search_path', {}, false)").format(path_of_users(conn))


@asynccontextmanager
async def of_users(conn: Conn) -> AsyncIterator[None]:
    """Have it meanwhile; where a transaction fails inside, its rollback takes it back. All errors are psycopg's."""
    await conn.execute(enter(conn))
    try:
        yield
    finally:
        if conn.info.transaction_status in _AT_REST:
            await conn.execute(LEAVE)
