"""Makes entries of a dump that run users' code, as the owner of what they make or change.

In: a connection in a restore's transaction. What an owner lacks for it, since privileges come later, it has meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format import dump_code
from archiver.format.ddl import parse
from archiver.format.dump import Entry
from archiver.format.dump_roles import owner_given
from archiver.postgres import run_as, search_path, users_code

Conn = psycopg.AsyncConnection[Any]

_TABLE: Final[LiteralString] = """
SELECT c.oid, pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""
_SCHEMAS: Final[LiteralString] = """
SELECT nspname::pg_catalog.text, ARRAY[pg_catalog.has_schema_privilege(%(role)s, oid, 'USAGE'),
       pg_catalog.has_schema_privilege(%(role)s, oid, 'CREATE') OR nspname <> %(schema)s]
  FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'archiver')
"""
_LACKING: Final[LiteralString] = """
SELECT p, n.nspname::pg_catalog.text, c.relname::pg_catalog.text
  FROM pg_catalog.unnest(ARRAY['SELECT', 'REFERENCES']) AS p, pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = %(table)s AND NOT pg_catalog.has_table_privilege(%(role)s, c.oid, p)
"""
_SETTABLE: Final[LiteralString] = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s AND pg_catalog.pg_has_role(oid, 'MEMBER'))
"""


async def make(conn: Conn, entry: Entry, given: Iterable[str], *, with_path: bool = False) -> bool:
    """Make an entry that runs users' code; False if it runs none, and nothing was done. All errors are psycopg's."""
    if dump_code.makes_with_code(entry):
        owner = next((role for statement in given if (role := owner_given(statement))), None)
        return owner is not None and await _as_owner(conn, owner, entry, [], with_path=with_path)
    tables = [row for name in dump_code.alters(entry) if (row := await _table(conn, name)) is not None]
    if not tables or not (entry.type == "CHECK CONSTRAINT" or await _any_guarded(conn, [oid for oid, _ in tables])):
        return False
    owner = tables[0][1]
    lent = [right for oid, _ in tables[1:] for right in await _lacking(conn, owner, oid)]
    return await _as_owner(conn, owner, entry, lent, with_path=with_path)


async def _lacking(conn: Conn, owner: str, table: int) -> list[sql.Composable]:
    """What a foreign key takes at the table that it refers to."""
    rows = await (await conn.execute(_LACKING, {"role": owner, "table": table})).fetchall()
    return [sql.SQL(right + " ON TABLE {}").format(sql.Identifier(*name)) for right, *name in rows]


async def _table(conn: Conn, name: dump_code.Name) -> tuple[int, str] | None:
    return await (await conn.execute(_TABLE, name)).fetchone()


async def _any_guarded(conn: Conn, tables: Sequence[int]) -> bool:
    return any([await users_code.find(conn, oid) is not None for oid in tables])


async def _as_owner(conn: Conn, owner: str, entry: Entry, lent: Sequence[sql.Composable], *, with_path: bool) -> bool:
    settable = await (await conn.execute(_SETTABLE, (owner,))).fetchone()
    if settable != (True,):
        return False
    path = {} if with_path else {"search_path": search_path.RESTING}
    async with _lending(conn, owner, entry.schema, lent):
        await run_as.run_all(conn, owner, [parsed.text for parsed in parse(entry.sql)], path)
    return True


@asynccontextmanager
async def _lending(conn: Conn, role: str, schema: str, more: Sequence[sql.Composable]) -> AsyncIterator[None]:
    rights = list(more)
    for name, (uses, creates) in await (await conn.execute(_SCHEMAS, {"role": role, "schema": schema})).fetchall():
        rights += [] if uses else [sql.SQL("USAGE ON SCHEMA {}").format(sql.Identifier(name))]
        rights += [] if creates else [sql.SQL("CREATE ON SCHEMA {}").format(sql.Identifier(name))]
    to = sql.Identifier(role)
    for right in rights:
        await conn.execute(sql.SQL("GRANT {} TO {}").format(right, to))
    yield
    for right in rights:
        await conn.execute(sql.SQL("REVOKE {} FROM {}").format(right, to))
