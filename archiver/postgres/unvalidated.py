"""Constraints that are NOT VALID, while rows are written that were there before them: they are not there meanwhile.

A rewrite at the source does not look at them; the INSERT that repeats it would. Inherited ones cannot be dropped alone,
and stay.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

_NOT_VALID: Final[LiteralString] = """
SELECT c.conname::text, pg_catalog.pg_get_constraintdef(c.oid), pg_catalog.obj_description(c.oid, 'pg_constraint')
  FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_class t ON t.oid = c.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
 WHERE n.nspname = %s AND t.relname = %s AND c.contype IN ('c', 'n') AND NOT c.convalidated AND c.coninhcount = 0
 ORDER BY c.oid
"""


@asynccontextmanager
async def set_aside(conn: psycopg.AsyncConnection[Any], schema: str, name: str) -> AsyncIterator[None]:
    """Within a transaction: drop them, and make them again as they were. All errors are psycopg's."""
    table = sql.Identifier(schema, name)
    found = await (await conn.execute(_NOT_VALID, (schema, name))).fetchall()
    for constraint, _, _ in found:
        await conn.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(table, sql.Identifier(constraint)))
    yield
    for constraint, definition, comment in found:
        add = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}")
        await conn.execute(add.format(table, sql.Identifier(constraint), sql.SQL(definition)))
        if comment is not None:
            say = sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}")
            await conn.execute(say.format(sql.Identifier(constraint), table, comment))
