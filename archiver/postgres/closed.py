"""Keeps everybody but superusers out of a target while it is restored.

What code a table runs is looked at before rows are written into it: nobody may change that in between, and whoever may
log in could. Only a superuser can keep others out, by the database's connection limit, which does not bind superusers.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.postgres.session import fetch

Conn = psycopg.AsyncConnection[Any]

_LIMIT: Final[LiteralString] = """
SELECT d.datconnlimit FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
 WHERE d.datname = pg_catalog.current_database() AND r.rolname = current_user AND r.rolsuper
"""
_END_OTHERS: Final[LiteralString] = """
SELECT count(pg_catalog.pg_terminate_backend(a.pid, 5000))
  FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
 WHERE a.datname = pg_catalog.current_database() AND NOT r.rolsuper AND a.pid <> pg_catalog.pg_backend_pid()
"""


async def close(conn: Conn) -> int | None:
    """Let no more of them in, in the caller's transaction. The limit that it had; None where the role may not."""
    row = await (await conn.execute(_LIMIT)).fetchone()
    if row is None:
        return None
    await _limit(conn, 0)
    return int(row[0])


async def end_others(conn: Conn) -> None:
    """End the sessions that were there before. Raises PostgresError."""
    await fetch(conn, _END_OTHERS, "ending the sessions of others")


async def reopen(conn: Conn, limit: int) -> None:
    """Let them in again as before, in the caller's transaction."""
    await _limit(conn, limit)


async def _limit(conn: Conn, limit: int) -> None:
    statement = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
    await conn.execute(statement.format(sql.Identifier(conn.info.dbname), sql.Literal(limit)))
