"""The search_path of the database's own sessions, for what runs functions of theirs that name things without a schema.

Our sessions have none: what we read of the catalog and what we say is named in full. But rows meet indexes, constraints
and generated columns whose functions rely on one, and the planner looks into those of indexes for any query of a table.
Inside `of_users` they find what they name. pg_catalog comes first there, whatever the setting says: our own statements
mean the same, as long as the types of their operators match exactly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg.pq import TransactionStatus

Conn = psycopg.AsyncConnection[Any]

# Kept in the session, as a setting of ours. A path that names pg_catalog may name others before it.
_KEEP: Final[LiteralString] = """
SELECT pg_catalog.set_config('archiver.search_path', CASE
    WHEN pg_catalog.strpos(given.path, 'pg_catalog') OPERATOR(pg_catalog.>) 0
    THEN pg_catalog.concat('pg_catalog, ', given.path) ELSE given.path END, false),
       pg_catalog.set_config('search_path', '', false)
  FROM (SELECT __PATH__ AS path) AS given
"""
_KEEP_GIVEN: Final[LiteralString] = _KEEP.replace("__PATH__", "%s::pg_catalog.text")
_KEEP_CURRENT: Final[LiteralString] = _KEEP.replace("__PATH__", "pg_catalog.current_setting('search_path')")

ENTER: Final[LiteralString] = (
    "SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('archiver.search_path'), false)"
)
LEAVE: Final[LiteralString] = "SELECT pg_catalog.set_config('search_path', '', false)"

_AT_REST: Final = frozenset({TransactionStatus.IDLE, TransactionStatus.INTRANS})


async def put_aside(conn: Conn, path: str | None = None) -> None:
    """Keep the session's path, or the one given instead, for `of_users`; the session itself has none from now on."""
    if path is None:
        await conn.execute(_KEEP_CURRENT)
    else:
        await conn.execute(_KEEP_GIVEN, (path,))


@asynccontextmanager
async def of_users(conn: Conn) -> AsyncIterator[None]:
    """Have it meanwhile; where a transaction fails inside, its rollback takes it back. All errors are psycopg's."""
    await conn.execute(ENTER)
    try:
        yield
    finally:
        if conn.info.transaction_status in _AT_REST:
            await conn.execute(LEAVE)
