"""Whose schema `archiver` of a target is: whose it is could change what a restore keeps there, and whom it runs as.

In: a connection in READ COMMITTED. It is asked behind what was made or read there, and not only before: from then on
nobody else can put another schema, or another table, in its place.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg

from archiver.errors import PostgresError

# The functions of `run_as` are others' as they should be: each is looked at where it is called.
_HELD: Final[LiteralString] = """
WITH held (name, owner) AS (
    SELECT NULL, n.nspowner FROM pg_catalog.pg_namespace n WHERE n.nspname = 'archiver'
    UNION ALL SELECT c.relname, c.relowner FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
        ON n.oid = c.relnamespace WHERE n.nspname = 'archiver'
)
SELECT (SELECT min(r.rolname) FROM held JOIN pg_catalog.pg_roles r ON r.oid = owner
         WHERE r.rolname <> current_user AND NOT r.rolsuper),
       EXISTS (SELECT FROM held WHERE name = 'restore_progress')
"""


async def holds_progress(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether a restore has begun there. All errors are psycopg's, but PostgresError where any of it is another's."""
    row = await (await conn.execute(_HELD)).fetchone()
    assert row is not None
    other, begun = row
    if other is not None:
        hint = f"Restore as {other}, who began a restore, or drop that schema."
        raise PostgresError("the target holds a schema archiver of another role", where=conn.info.dbname, hint=hint)
    return bool(begun)


async def require_own(conn: psycopg.AsyncConnection[Any]) -> None:
    """Raise PostgresError where the schema, or a table in it, is another role's. All other errors are psycopg's."""
    await holds_progress(conn)
