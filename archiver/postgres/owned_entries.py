"""Makes entries of a dump that run users' code, as the owner of what they make or change.

In: a connection in a restore's transaction. What an owner lacks for it, since privileges come later, it has meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from pglast import parse_sql
from psycopg import sql

from archiver.errors import PostgresError
from archiver.format import dump_code
from archiver.format.ddl import parse
from archiver.format.dump import Entry
from archiver.format.dump_roles import owner_given
from archiver.postgres import run_as, search_path, users_code

Conn = psycopg.AsyncConnection[Any]

_TABLE: Final[LiteralString] = """
SELECT c.oid, pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text, c.relkind = 'p'
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""
_SCHEMAS: Final[LiteralString] = """
SELECT nspname::pg_catalog.text, pg_catalog.has_schema_privilege(%(role)s, oid, 'USAGE'),
       pg_catalog.has_schema_privilege(%(role)s, oid, 'CREATE')
  FROM pg_catalog.pg_namespace WHERE nspname = ANY (%(named)s)
"""
_MAY_REFER: Final[LiteralString] = "SELECT pg_catalog.has_table_privilege(%s::pg_catalog.text, %s::pg_catalog.oid, %s)"
_SETTABLE: Final[LiteralString] = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s AND pg_catalog.pg_has_role(oid, 'MEMBER'))
"""
_IN_SCHEMA: Final[LiteralString] = """
SELECT d.classid, d.objid, pg_catalog.pg_describe_object(d.classid, d.objid, 0)::pg_catalog.text
  FROM pg_catalog.pg_depend d
  LEFT JOIN pg_catalog.pg_class c ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.objid
  LEFT JOIN pg_catalog.pg_proc p ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid = d.objid
 WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.deptype = 'n'
   AND d.refobjid = pg_catalog.to_regnamespace(pg_catalog.quote_ident(%(schema)s))
   AND coalesce(c.relname, p.proname, '') <> %(name)s AND NOT EXISTS (
       SELECT FROM pg_catalog.pg_depend o JOIN pg_catalog.pg_class t ON t.oid = o.refobjid AND t.relname = %(name)s
        WHERE o.classid = d.classid AND o.objid = d.objid AND o.deptype IN ('a', 'i')
          AND o.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass)
"""
"""All that is in a schema but the object of a name and what is part of it."""


async def make(conn: Conn, entry: Entry, given: Iterable[str], *, with_path: bool = False) -> bool:
    """Make an entry that runs users' code; False if it runs none, and nothing was done. All errors are psycopg's.

    PostgresError where the code made something of its own, with the right to make the entry.
    """
    settings = {} if with_path else {"search_path": search_path.RESTING}
    if dump_code.makes_with_code(entry):
        role = next((role for statement in given if (role := owner_given(statement))), None)
        return role is not None and await _Owner(conn, role, settings).makes(entry)
    tables = [row for name in dump_code.alters(entry) if (row := await _table(conn, name)) is not None]
    if not tables or not (entry.type == "CHECK CONSTRAINT" or await _any_guarded(conn, [oid for oid, _, _ in tables])):
        return False
    [(_, name, is_partitioned), *referred] = tables
    owner = _Owner(conn, name, settings)
    if entry.type == "FK CONSTRAINT" and not is_partitioned:
        return await owner.refers(entry)
    return await owner.alters(entry, [oid for oid, _, _ in referred if entry.type == "FK CONSTRAINT"])


async def _table(conn: Conn, name: dump_code.Name) -> tuple[int, str, bool] | None:
    return await (await conn.execute(_TABLE, name)).fetchone()


async def _any_guarded(conn: Conn, tables: Sequence[int]) -> bool:
    return any([await users_code.find(conn, oid) is not None for oid in tables])


@dataclass(frozen=True, slots=True)
class _Owner:
    """Whose code runs. What is lent to him meanwhile is as little as the statement needs: his code has it, too."""

    conn: Conn
    role: str
    settings: Mapping[str, str]

    async def makes(self, entry: Entry) -> bool:
        """An object in a schema, where he may not create by now. What else he creates there is refused."""
        if not await self._is_settable():
            return False
        where = {"schema": entry.schema, "name": entry.name.partition("(")[0]}
        before = await (await self.conn.execute(_IN_SCHEMA, where)).fetchall()
        async with self._lent(await self._uses(entry, creates=entry.schema)):
            await self._run(entry)
        planted = {*await (await self.conn.execute(_IN_SCHEMA, where)).fetchall()} - {*before}
        if planted:
            raise PostgresError(
                f"code of {self.role} makes objects of its own while this is made: {min(planted)[2]}",
                where=entry.label,
                hint="Restore to a target before it was made; at the source, look at the functions that it calls.",
            )
        return True

    async def alters(self, entry: Entry, referred: Sequence[int]) -> bool:
        """His own table; `referred` are those that a foreign key refers to, which he may refer to meanwhile."""
        if not await self._is_settable():
            return False
        rights = await self._uses(entry)
        for table in referred:
            [(may,)] = await (await self.conn.execute(_MAY_REFER, (self.role, table, "REFERENCES"))).fetchall()
            [(name,)] = await (await self.conn.execute(_NAME, (table,))).fetchall()
            rights += [] if may else [sql.SQL("REFERENCES ON TABLE {}").format(sql.SQL(name))]
        async with self._lent(rights):
            await self._run(entry)
        return True

    async def refers(self, entry: Entry) -> bool:
        """A foreign key of his table: made by us, which looks at no row, and validated by him."""
        statement = entry.sql.rstrip().removesuffix(";")
        if statement.endswith(" NOT VALID") or not await self._is_settable():
            return False
        await self.conn.execute(f"{statement} NOT VALID".encode())
        table: Any = parse_sql(statement)[-1].stmt
        names = sql.Identifier(table.relation.schemaname, table.relation.relname)
        key = sql.Identifier(table.cmds[0].def_.conname)
        validate = sql.SQL("ALTER TABLE ONLY {} VALIDATE CONSTRAINT {}").format(names, key)
        async with self._lent(await self._uses(entry, only=table.relation.schemaname)):
            await run_as.run_all(self.conn, self.role, [validate.as_string(self.conn)], self.settings)
        return True

    async def _is_settable(self) -> bool:
        return await (await self.conn.execute(_SETTABLE, (self.role,))).fetchone() == (True,)

    async def _uses(self, entry: Entry, *, creates: str = "", only: str = "") -> list[sql.Composed]:
        """What he lacks in the schemas that the entry names."""
        named = [only] if only else list(dump_code.schemas_named(entry.sql))
        found = await self.conn.execute(_SCHEMAS, {"role": self.role, "named": named})
        rights = list[sql.Composed]()
        for name, uses, may_create in await found.fetchall():
            schema = sql.Identifier(name)
            rights += [] if uses else [sql.SQL("USAGE ON SCHEMA {}").format(schema)]
            rights += [] if may_create or name != creates else [sql.SQL("CREATE ON SCHEMA {}").format(schema)]
        return rights

    @asynccontextmanager
    async def _lent(self, rights: Sequence[sql.Composed]) -> AsyncIterator[None]:
        to = sql.Identifier(self.role)
        for right in rights:
            await self.conn.execute(sql.SQL("GRANT {} TO {}").format(right, to))
        yield
        for right in rights:
            await self.conn.execute(sql.SQL("REVOKE {} FROM {}").format(right, to))

    async def _run(self, entry: Entry) -> None:
        await run_as.run_all(self.conn, self.role, [parsed.text for parsed in parse(entry.sql)], self.settings)


_NAME: Final[LiteralString] = "SELECT %s::pg_catalog.oid::pg_catalog.regclass::pg_catalog.text"
