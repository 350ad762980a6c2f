"""Whether the schema that a snapshot shows is still the one of the database.

In: a connection in the snapshot's transaction, later another one outside of it. Out: yes or no. pg_dump reads catalogs
under its snapshot, but asks the server for views, functions, expressions and constraints as they are by then: what it
writes is whole only where no row that the snapshot shows was changed or deleted until it had ended. What is new since
does no harm. It reads catalogs only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg

from archiver.postgres.catalog_look import CONTENT, HIDDEN, catalogs
from archiver.postgres.session import postgres_error

Conn = psycopg.AsyncConnection[Any]

# TRUNCATE, CLUSTER and REFRESH give a relation another row, in which nothing is new that a dump shows.
_BY_CONTENT: Final = "pg_class"
_VERSIONS: Final[LiteralString] = (
    "count(*), sum(pg_catalog.hashtextextended(pg_catalog.concat(t.xmin, ' ', t.ctid), 0))"
)
# xmin has 32 bits; those of bootstrap and of frozen rows are below 3. `next`: of all 64 bits.
_SHOWN: Final[LiteralString] = """
(t.xmin::text::bigint < 3 OR pg_catalog.pg_visible_in_snapshot(
    (next - ((next - t.xmin::text::bigint) & 4294967295))::text::pg_catalog.xid8, given))
"""
_NOW: Final[LiteralString] = """
(SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint AS next,
        %(snapshot)s::pg_catalog.pg_snapshot AS given) AS s
"""
_SNAPSHOT: Final[LiteralString] = "SELECT pg_catalog.pg_current_snapshot()::text"


@dataclass(frozen=True, slots=True)
class ShownCatalog:
    """What a snapshot shows: how many rows of each catalog and which; relations by OID, with their content."""

    snapshot: str
    versions: frozenset[tuple[Any, ...]]
    relations: dict[int, int]


async def shown(conn: Conn) -> ShownCatalog:
    """Inside the snapshot's transaction. Raises PostgresError."""
    try:
        [(snapshot,)] = await (await conn.execute(_SNAPSHOT)).fetchall()
        return ShownCatalog(snapshot, *await _read(conn, None))
    except psycopg.Error as exc:
        raise postgres_error(exc, "reading the catalog") from exc


async def is_unchanged(conn: Conn, before: ShownCatalog) -> bool:
    """Outside of it: whether every row is there as it was. In doubt it is not. Raises PostgresError."""
    try:
        versions, relations = await _read(conn, before.snapshot)
    except psycopg.Error as exc:
        raise postgres_error(exc, "reading the catalog") from exc
    return versions == before.versions and before.relations.items() <= relations.items()


async def _read(conn: Conn, snapshot: str | None) -> tuple[frozenset[tuple[Any, ...]], dict[int, int]]:
    shape = catalogs(conn)
    only, since = ("true", "") if snapshot is None else (_SHOWN, f"CROSS JOIN {_NOW}")
    parts: list[LiteralString] = [
        f"SELECT '{name}', {_VERSIONS} FROM pg_catalog.{name} AS t {since} WHERE ({condition}) AND {only}"  # noqa: S608 - constants
        for name, condition in shape.items()
        if name != _BY_CONTENT
    ]
    versions = await (await conn.execute(HIDDEN + " UNION ALL ".join(parts), {"snapshot": snapshot})).fetchall()
    query: LiteralString = (
        f"{HIDDEN} SELECT t.oid::bigint, {CONTENT} FROM pg_catalog.pg_class AS t WHERE {shape[_BY_CONTENT]}"  # noqa: S608 - constants
    )
    relations = await (await conn.execute(query)).fetchall()
    return frozenset(versions), dict(relations)
