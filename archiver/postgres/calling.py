"""What calls functions of the database when it is made: tables, indexes, constraints, statistics.

From 17 on the server itself has no search_path while it makes an index. One whose function needs a path can then be
made only where there are no rows yet, as it was at the source, which could not make it again either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg

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


async def analyze(conn: Conn) -> list[Skipped]:
    """Gather statistics of all tables; they are no more than that. Raises PostgresError."""
    try:
        async with search_path.of_users(conn):
            await conn.execute("ANALYZE")
    except psycopg.Error as exc:
        if not _in_a_function(exc):
            raise postgres_error(exc, "ANALYZE") from exc
        return [Skipped("ANALYZE", postgres_error(exc).message, "ANALYZE")]
    return []


def _may_lack(entry: Entry, exc: psycopg.Error) -> bool:
    """A partition's index may have been left out itself."""
    return _in_a_function(exc) or (isinstance(exc, _NOT_FOUND) and entry.type == "INDEX ATTACH")


def _in_a_function(exc: psycopg.Error) -> bool:
    """Whether something was not found that a function names, and not the statement itself, which we may have run."""
    context = exc.diag.context
    return isinstance(exc, _NOT_FOUND) and context is not None and not context.startswith(run_as.CONTEXT)
