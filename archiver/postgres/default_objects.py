"""Comments of what every database has: the database, schema public, extension plpgsql.

pg_dump does not tell of all: so a base snapshot holds them, and a restore sets those that are not as at the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.dump_roles import Skipped
from archiver.postgres import dispensable
from archiver.postgres.load import attempt
from archiver.postgres.session import fetch

Comments = Mapping[str, str | None]
"""The text, or None, by DATABASE, SCHEMA public or EXTENSION plpgsql; what is not there has no key."""

_COMMENTS: Final[LiteralString] = """
SELECT 'DATABASE', pg_catalog.shobj_description(oid, 'pg_database')
  FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
UNION ALL SELECT 'SCHEMA public', pg_catalog.obj_description(oid, 'pg_namespace')
  FROM pg_catalog.pg_namespace WHERE nspname = 'public'
UNION ALL SELECT 'EXTENSION plpgsql', pg_catalog.obj_description(oid, 'pg_extension')
  FROM pg_catalog.pg_extension WHERE extname = 'plpgsql'
"""


async def read_comments(conn: psycopg.AsyncConnection[Any]) -> dict[str, str | None]:
    """Those of the connected database. Raises PostgresError."""
    return dict(await fetch(conn, _COMMENTS, "reading comments"))


async def set_comments(conn: psycopg.AsyncConnection[Any], wanted: Comments) -> list[Skipped]:
    """Make them as at the source; returns those that the target refused. Raises PostgresError.

    A database keeps its own where that of the source has none: it may say what the restore is for.
    """
    there = await read_comments(conn)
    differing = {what: text for what, text in wanted.items() if what in there and there[what] != text}
    if differing.get("DATABASE", "") is None:
        del differing["DATABASE"]
    skipped = [await _set(conn, what, text) for what, text in differing.items()]
    return [each for each in skipped if each is not None]


async def _set(conn: psycopg.AsyncConnection[Any], what: str, text: str | None) -> Skipped | None:
    kind, _, name = what.partition(" ")
    query = sql.SQL("COMMENT ON {} {} IS {}").format(
        sql.SQL(kind), sql.Identifier(name or conn.info.dbname), sql.Literal(text)
    )
    return await attempt(conn, [query], f"COMMENT {what}", what, dispensable.REFUSALS)
