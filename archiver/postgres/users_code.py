"""Which tables run code of users: when a row is written into them, or when a query of them is planned.

Decided from the catalog: checks, generated columns, domains, indexes, keys of partitions and statistics that depend on
a function, an operator or a cast which is not PostgreSQL's own and not a superuser's that an extension brought. The
planner computes immutable functions of them beforehand, as whoever asks; COPY … TO has no planner. In doubt a table
does. Triggers are not looked at: they are silent wherever we write.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.records import copied_rows
from archiver.names import TableName
from archiver.postgres import run_as
from archiver.postgres.session import postgres_error
from archiver.postgres.spelled import inserts

Conn = psycopg.AsyncConnection[Any]

# Objects of the system have OIDs below 16384 (FirstNormalObjectId, transam.h). Types are bad whose values meet code:
# of a domain's checks, of casts, of ranges; and so is what is made of them.
_FIND: Final[LiteralString] = """
WITH RECURSIVE untrusted (class, oid) AS (
    SELECT x.class, x.oid FROM (
        SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, oid, proowner FROM pg_catalog.pg_proc
        UNION ALL SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, oid, oprowner FROM pg_catalog.pg_operator
        UNION ALL SELECT 'pg_catalog.pg_opclass'::pg_catalog.regclass, oid, opcowner FROM pg_catalog.pg_opclass
        UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, oid, typowner FROM pg_catalog.pg_type
         WHERE typtype = 'b' AND typcategory <> 'A'
    ) AS x (class, oid, owner) WHERE x.oid >= 16384 AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend e JOIN pg_catalog.pg_roles r ON r.oid = x.owner AND r.rolsuper
         WHERE e.classid = x.class AND e.objid = x.oid AND e.deptype = 'e')
), bad (typ) AS (
    (SELECT c.contypid FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_depend d
         ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objid = c.oid
       JOIN untrusted u ON u.class = d.refclassid AND u.oid = d.refobjid WHERE c.contypid <> 0
     UNION ALL SELECT oid FROM untrusted WHERE class = 'pg_catalog.pg_type'::pg_catalog.regclass
     UNION ALL SELECT t.typ FROM pg_catalog.pg_cast c JOIN untrusted u
         ON u.class = 'pg_catalog.pg_proc'::pg_catalog.regclass AND u.oid = c.castfunc
      CROSS JOIN LATERAL (VALUES (c.castsource), (c.casttarget)) AS t (typ) WHERE t.typ >= 16384
     UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r JOIN untrusted u
         ON u.class = 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND u.oid IN (r.rngcanonical::pg_catalog.oid, r.rngsubdiff::pg_catalog.oid))
    UNION SELECT o.typ FROM bad b CROSS JOIN LATERAL (
        SELECT oid FROM pg_catalog.pg_type WHERE b.typ IN (typbasetype, typelem)
        UNION ALL SELECT c.reltype FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
          WHERE a.atttypid = b.typ AND a.attnum > 0 AND NOT a.attisdropped AND c.reltype <> 0
        UNION ALL SELECT rngtypid FROM pg_catalog.pg_range WHERE rngsubtype = b.typ
        UNION ALL SELECT rngmultitypid FROM pg_catalog.pg_range WHERE rngtypid = b.typ
        UNION ALL SELECT c.contypid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_constraint c ON c.oid = d.objid
          WHERE d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
            AND d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.refobjid = b.typ AND c.contypid <> 0
    ) AS o (typ)
), avoided (class, oid) AS (
    SELECT class, oid FROM untrusted UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, typ FROM bad
), meant (root, rel) AS (
    SELECT oid, oid FROM pg_catalog.pg_class WHERE __WHICH__
    UNION SELECT m.root, i.inhparent FROM meant m JOIN pg_catalog.pg_inherits i ON i.inhrelid = m.rel
), parts (root, class, oid) AS (
    SELECT root, 'pg_catalog.pg_class'::pg_catalog.regclass, rel FROM meant
    UNION ALL SELECT m.root, 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid
      FROM meant m JOIN pg_catalog.pg_index i ON i.indrelid = m.rel
    UNION ALL SELECT m.root, 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid
      FROM meant m JOIN pg_catalog.pg_constraint c ON c.conrelid = m.rel AND c.contype IN ('c', 'x')
    UNION ALL SELECT m.root, 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.oid
      FROM meant m JOIN pg_catalog.pg_attrdef d ON d.adrelid = m.rel JOIN pg_catalog.pg_attribute a
        ON a.attrelid = d.adrelid AND a.attnum = d.adnum AND a.attgenerated <> ''
    UNION ALL SELECT m.root, 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, s.oid
      FROM meant m JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = m.rel
), found (root) AS (
    SELECT p.root FROM parts p JOIN pg_catalog.pg_depend d ON d.classid = p.class AND d.objid = p.oid
      JOIN avoided a ON a.class = d.refclassid AND a.oid = d.refobjid
    UNION SELECT m.root FROM meant m JOIN pg_catalog.pg_attribute a ON a.attrelid = m.rel
      JOIN bad b ON b.typ = a.atttypid WHERE a.attnum > 0 AND NOT a.attisdropped
), above (root) AS (
    SELECT root FROM found UNION SELECT i.inhparent FROM above f JOIN pg_catalog.pg_inherits i ON i.inhrelid = f.root
)
SELECT c.oid, n.nspname::pg_catalog.text, c.relname::pg_catalog.text,
       pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text,
       pg_catalog.has_schema_privilege(c.relowner, n.oid, 'USAGE'),
       ARRAY(SELECT p FROM pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p
              WHERE NOT pg_catalog.has_table_privilege(c.relowner, c.oid, p))
  FROM __FOUND__ f JOIN pg_catalog.pg_class c ON c.oid = f.root JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""
# Nothing of it, nor a type of its columns, depends on anything of this database: so it is with most tables.
_SUSPECT: Final[LiteralString] = """
WITH RECURSIVE meant (rel) AS (
    SELECT %s::pg_catalog.oid UNION SELECT i.inhparent FROM meant m JOIN pg_catalog.pg_inherits i ON i.inhrelid = m.rel
), parts (class, oid) AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, rel FROM meant
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, indexrelid
      FROM pg_catalog.pg_index WHERE indrelid IN (SELECT rel FROM meant)
    UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, oid
      FROM pg_catalog.pg_constraint WHERE conrelid IN (SELECT rel FROM meant) AND contype IN ('c', 'x')
    UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, oid
      FROM pg_catalog.pg_attrdef WHERE adrelid IN (SELECT rel FROM meant)
    UNION ALL SELECT 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, oid
      FROM pg_catalog.pg_statistic_ext WHERE stxrelid IN (SELECT rel FROM meant)
) SELECT EXISTS (
    SELECT FROM pg_catalog.pg_attribute
     WHERE attrelid IN (SELECT rel FROM meant) AND attnum > 0 AND NOT attisdropped AND atttypid >= 16384
) OR EXISTS (
    SELECT FROM parts p JOIN pg_catalog.pg_depend d ON d.classid = p.class AND d.objid = p.oid
     WHERE d.refobjid >= 16384 AND d.refclassid = ANY ('{pg_catalog.pg_proc,pg_catalog.pg_operator,
           pg_catalog.pg_opclass,pg_catalog.pg_type}'::pg_catalog.regclass[])
)
"""
# A query of a table reads its partitions and children, too; a change is of this one only.
_ALL: Final = _FIND.replace("__WHICH__", "relkind IN ('r', 'p') AND oid >= 16384").replace("__FOUND__", "above")
_ONE: Final = _FIND.replace("__WHICH__", "oid = %s").replace("__FOUND__", "found")


@dataclass(frozen=True, slots=True)
class Guarded:
    """A table that runs users' code, and so is written and asked as its owner, who may lack the rights for that."""

    oid: int
    schema: str
    name: str
    owner: str
    uses_schema: bool
    lacks: Sequence[LiteralString]

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    async def run(self, conn: Conn, statements: Sequence[str | bytes]) -> list[int]:
        """Run statements of ours over it; how many rows each concerned. All errors are psycopg's."""
        async with run_as.in_transaction(conn):
            for statement in self._lent("GRANT {} TO {}"):
                await conn.execute(statement)
            counts = await run_as.run_all(conn, self.owner, statements)
            for statement in self._lent("REVOKE {} FROM {}"):
                await conn.execute(statement)
        return counts

    async def load(self, conn: Conn, columns: Sequence[str], chunks: AsyncIterable[bytes]) -> int:
        """Write COPY's text, in chunks that may end anywhere; returns its count of rows. All errors are psycopg's."""
        count = 0
        async for lines in lines_of(chunks):
            for statement in inserts(self.table, columns, copied_rows(lines)):
                count += sum(await self.run(conn, [statement]))
        return count

    async def ask(self, conn: Conn, query: sql.Composed, others: Sequence[sql.Identifier] = ()) -> str | None:
        """The value of a query of it, and of `others`, as text. All errors are psycopg's."""
        read = sql.SQL("GRANT SELECT ON TABLE {} TO {}")
        lent = [*self._lent("GRANT {} TO {}"), *(read.format(each, sql.Identifier(self.owner)) for each in others)]
        return await run_as.ask(conn, self.owner, query, lent)

    def _lent(self, how: LiteralString) -> Iterator[sql.Composed]:
        rights = []
        if not self.uses_schema:
            rights.append(sql.SQL("USAGE ON SCHEMA {}").format(sql.Identifier(self.schema)))
        rights += [sql.SQL(right + " ON TABLE {}").format(self.table) for right in self.lacks]
        return (sql.SQL(how).format(right, sql.Identifier(self.owner)) for right in rights)


async def lines_of(chunks: AsyncIterable[bytes]) -> AsyncIterator[list[bytes]]:
    """Whole lines, without their newlines; a long one is put together once."""
    begun = list[bytes]()
    async for chunk in chunks:
        head, *more = chunk.split(b"\n")
        begun.append(head)
        if more:
            yield [b"".join(begun), *more[:-1]]
            begun = [more[-1]]


async def find_all(conn: Conn) -> list[Guarded]:
    """Of all tables of the database. Raises PostgresError."""
    try:
        return [Guarded(*row) for row in await (await conn.execute(_ALL)).fetchall()]
    except psycopg.Error as exc:
        raise postgres_error(exc, "looking for code of users") from exc


async def by_name(conn: Conn) -> dict[TableName, Guarded]:
    """All of them. Raises PostgresError."""
    return {TableName(each.schema, each.name): each for each in await find_all(conn)}


async def find(conn: Conn, table: int) -> Guarded | None:
    """For a table, by OID. All errors are psycopg's."""
    if await (await conn.execute(_SUSPECT, (table,))).fetchone() == (False,):
        return None
    row = await (await conn.execute(_ONE, (table,))).fetchone()
    return Guarded(*row) if row is not None else None
