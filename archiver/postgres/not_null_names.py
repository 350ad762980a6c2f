"""Names of NOT NULL constraints where the source has none, being older than 18, and the target gave some at replay.

A table that replay makes and renames, or a column of it, leaves its constraint with a name that nobody gave. It gets
the one that the server would choose now, as it did for all that came from the base snapshot, where that is free.
Partitions and children follow their parents, so it stays where one of them has a name of its own.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.dump_not_null import chosen_name
from archiver.postgres.session import fetch, postgres_error

_SINCE: Final = 180000

_OWN: Final[LiteralString] = """
SELECT n.nspname::text, r.relname::text, a.attname::text, k.conname::text
  FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class r ON r.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum = k.conkey[1]
 WHERE k.contype = 'n' AND k.conislocal AND k.coninhcount = 0 AND r.oid >= 16384
   AND pg_catalog.pg_has_role(r.relowner, 'USAGE')
"""
_NOT_POSSIBLE: Final = (
    psycopg.errors.DuplicateObject,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidTableDefinition,
)
"""The name is taken; a child calls it otherwise; a child has it from another parent, too."""


async def give_names(conn: psycopg.AsyncConnection[Any]) -> None:
    """Each in a transaction of its own, for it locks its table. Raises PostgresError."""
    if conn.info.server_version < _SINCE:
        return
    rows = await fetch(conn, _OWN, "listing NOT NULL constraints")
    wanted = [row for row in rows if row[3] != chosen_name(row[1], row[2])]
    before = len(wanted) + 1
    while len(wanted) < before:  # one that was given its name may have left it to another
        before = len(wanted)
        wanted = [row for row in wanted if not await _give(conn, *row)]


async def _give(conn: psycopg.AsyncConnection[Any], schema: str, table: str, column: str, name: str) -> bool:
    """Whether it could be renamed."""
    rename = sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}").format(
        sql.Identifier(schema, table), sql.Identifier(name), sql.Identifier(chosen_name(table, column))
    )
    try:
        await conn.execute(rename)
    except _NOT_POSSIBLE:
        return False
    except psycopg.Error as exc:
        raise postgres_error(exc, f"constraint {name} of {schema}.{table}") from exc
    return True
