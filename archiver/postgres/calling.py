"""What calls functions of the database when it is made: tables, indexes, constraints, statistics.

From 17 on the server itself has no search_path while it makes an index. One whose function needs a path can then be
made only where there are no rows yet, as it was at the source, which could not make it again either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.dump import Entry
from archiver.format.dump_roles import Skipped
from archiver.postgres import owned_entries, run_as, search_path
from archiver.postgres.session import postgres_error

Conn = psycopg.AsyncConnection[Any]

_OVER_ROWS: Final = frozenset({"INDEX", "INDEX ATTACH", "CONSTRAINT"})
TYPES: Final = _OVER_ROWS | {"TABLE", "TABLE ATTACH", "DEFAULT", "CHECK CONSTRAINT", "AGGREGATE"}
"""Entries of a dump that do: the server looks into the functions of generated columns, too."""

_NOT_FOUND: Final = (
    psycopg.errors.UndefinedFunction,  # operators too
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedObject,  # types, and text search configurations, for example
)


async def make(conn: Conn, entry: Entry, given: Sequence[str] = ()) -> list[Skipped]:
    """In the caller's transaction. Returns what cannot be made with its function as it is. Raises PostgresError.

    Without a search_path, if that is possible: an entry of a dump names all in full only without one. `given` are the
    statements that give the object to its owner, who makes it if that runs code of his.
    """
    try:
        async with conn.transaction():
            if not await owned_entries.make(conn, entry, given):
                await conn.execute(entry.sql.encode())
    except psycopg.Error as exc:
        if not _may_lack(entry, exc):
            raise postgres_error(exc, entry.label) from exc
        return await _make_with_path(conn, entry, given)
    return []


async def _make_with_path(conn: Conn, entry: Entry, given: Sequence[str]) -> list[Skipped]:
    try:
        async with conn.transaction():
            if not await owned_entries.make(conn, entry, given, with_path=True):
                async with search_path.of_users(conn):
                    await conn.execute(entry.sql.encode())
    except psycopg.Error as exc:
        if entry.type not in _OVER_ROWS or not _may_lack(entry, exc):
            raise postgres_error(exc, entry.label) from exc
        return [Skipped(entry.label, postgres_error(exc).message, entry.sql)]
    return []


# With a parent its children are read, foreign tables among them: from their servers, with our rights.
_WITH_FOREIGN: Final[LiteralString] = """
WITH RECURSIVE above (rel) AS (
    SELECT inhparent FROM pg_catalog.pg_inherits WHERE inhrelid IN (SELECT ftrelid FROM pg_catalog.pg_foreign_table)
    UNION SELECT i.inhparent FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.rel
)
SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.oid IN (SELECT rel FROM above)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't' AND EXISTS (SELECT FROM above) ORDER BY 1, 2
"""


async def analyze(conn: Conn) -> list[Skipped]:
    """Gather statistics of all tables; they are no more than that. Raises PostgresError.

    But of none that foreign tables are children or partitions of.
    """
    try:
        tables = await (await conn.execute(_WITH_FOREIGN)).fetchall()
        wanted = [sql.Identifier(schema, name) for schema, name, has_foreign in tables if not has_foreign]
        async with search_path.of_users(conn):
            await conn.execute(sql.SQL("ANALYZE {}").format(sql.SQL(", ").join(wanted)))
    except psycopg.Error as exc:
        if not _in_a_function(exc):
            raise postgres_error(exc, "ANALYZE") from exc
        return [Skipped("ANALYZE", postgres_error(exc).message, "ANALYZE")]
    return [_unread(f"{schema}.{name}") for schema, name, has_foreign in tables if has_foreign]


def _unread(table: str) -> Skipped:
    return Skipped(f"ANALYZE {table}", "it would read the foreign tables below it", "ANALYZE")


def _may_lack(entry: Entry, exc: psycopg.Error) -> bool:
    """A partition's index may have been left out itself."""
    return _in_a_function(exc) or (isinstance(exc, _NOT_FOUND) and entry.type == "INDEX ATTACH")


def _in_a_function(exc: psycopg.Error) -> bool:
    """Whether something was not found that a function names, and not the statement itself, which we may have run."""
    context = exc.diag.context
    return isinstance(exc, _NOT_FOUND) and context is not None and not context.startswith(run_as.CONTEXT)
