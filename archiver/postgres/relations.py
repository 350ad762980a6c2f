"""Which table of the target is which relation of the stream: by the source's OID, once that was known by its name.

A name alone may be old. ALTER SCHEMA … RENAME waits for nobody: rows that an open transaction wrote before it come,
with that transaction's commit, under the name from before, which another schema may have by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from archiver.errors import IntegrityError, PostgresError
from archiver.format.pgmessages import Relation

CREATE: Final[LiteralString] = """
CREATE SCHEMA IF NOT EXISTS archiver;
CREATE TABLE IF NOT EXISTS archiver.relations (source oid PRIMARY KEY, target oid NOT NULL);
"""
_BY_OID: Final[LiteralString] = """
SELECT c.oid, n.nspname::text, c.relname::text FROM archiver.relations r
  JOIN pg_catalog.pg_class c ON c.oid = r.target JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE r.source = $1::oid
"""
_PLACE: Final[LiteralString] = """
SELECT c.oid, n.nspname::text, c.relname::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
"""
_OIDS: Final[LiteralString] = """
SELECT s.oid::bigint, pg_catalog.to_regclass(s.name)::oid::bigint FROM unnest(%s::oid[], %s::text[]) AS s (oid, name)
 WHERE pg_catalog.to_regclass(s.name) IS NOT NULL
"""
_BY_NAME: Final[LiteralString] = """
SELECT c.oid, n.nspname::text, c.relname::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
"""
_TAKEN: Final[LiteralString] = "SELECT EXISTS (SELECT FROM archiver.relations WHERE target = $1::oid)"
_NOTE: Final[LiteralString] = """
INSERT INTO archiver.relations VALUES ($1::oid, $2::oid) ON CONFLICT (source) DO UPDATE SET target = excluded.target
"""
_NOTE_NAMED: Final[LiteralString] = """
INSERT INTO archiver.relations
SELECT s.oid, pg_catalog.to_regclass(s.name) FROM unnest(%s::oid[], %s::text[]) AS s (oid, name)
 WHERE pg_catalog.to_regclass(s.name) IS NOT NULL
    ON CONFLICT (source) DO UPDATE SET target = excluded.target
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = relations.target)
"""


class Place(NamedTuple):
    """A table of the target: its OID and its name as they are now."""

    oid: int
    schema: str
    name: str


async def note(conn: psycopg.AsyncConnection[Any], tables: Mapping[int, str]) -> None:
    """Tables that were just made: their names, quoted, by their OIDs at the source. psycopg's errors pass through."""
    if tables:
        await conn.execute(_NOTE_NAMED, [list(tables), list(tables.values())])


async def place_of(conn: psycopg.AsyncConnection[Any], oid: int) -> Place | None:
    """A table of the target by its OID there; None where it was dropped. psycopg's errors pass through."""
    row = await (await conn.execute(_PLACE, [oid])).fetchone()
    return Place(*row) if row is not None else None


async def oids_of(conn: psycopg.AsyncConnection[Any], tables: Mapping[int, str]) -> dict[int, int]:
    """The OIDs here of tables that are given as `note` takes them."""
    rows = await (await conn.execute(_OIDS, [list(tables), list(tables.values())])).fetchall()
    return dict(rows)


async def find(cursor: psycopg.AsyncRawCursor[Any], relation: Relation) -> Place:
    """Raises PostgresError for a table that is not there, IntegrityError for a name that means another relation."""
    await cursor.execute(_BY_OID, [relation.id])
    if (known := await cursor.fetchone()) is not None:
        return Place(*known)
    await cursor.execute(_BY_NAME, [relation.namespace, relation.name])
    if (named := await cursor.fetchone()) is None:
        raise PostgresError(
            f"the target has no table {relation}",
            hint="Restore into an empty database, so that the archived schema is created first.",
        )
    place = Place(*named)
    await cursor.execute(_TAKEN, [place.oid])
    if await cursor.fetchone() == (True,):
        raise IntegrityError(
            f"rows of {relation} are of another table than the one with this name",
            hint="A schema was renamed beside an open transaction. Restore to a target before it, or behind the next"
            " base snapshot.",
        )
    await cursor.execute(_NOTE, [relation.id, place.oid])
    return place
