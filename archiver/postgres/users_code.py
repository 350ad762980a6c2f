"""Which tables run code of users: when a row is written into them, or when a query of them is planned.

Decided from the catalog: checks, generated columns, domains, indexes, keys of partitions and statistics that name a
function that `trusted_functions` does not trust, or an operator, a cast or a type which is not PostgreSQL's own and not
a superuser's that an extension brought. The planner computes immutable functions of them beforehand, as whoever asks;
COPY … TO has no planner. In doubt a table does. Triggers are not looked at: they are silent wherever we write.
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
from archiver.postgres.trusted_functions import TRUSTED

Conn = psycopg.AsyncConnection[Any]

# What an expression names, by the names that the fields of its nodes have (primnodes.h). PostgreSQL keeps no dependency
# on functions of its own, nor on the type of JSON_VALUE (… RETURNING type).
_NAMED: Final[LiteralString] = """
CROSS JOIN LATERAL pg_catalog.regexp_matches(e.tree, '(?i):\\w*(?:(funcid)|typeid|typid|type) (\\d+)', 'g') AS m (part)
CROSS JOIN LATERAL (
    SELECT CASE WHEN m.part[1] IS NULL THEN 'pg_catalog.pg_type'::pg_catalog.regclass
                ELSE 'pg_catalog.pg_proc'::pg_catalog.regclass END, m.part[2]::pg_catalog.oid
) AS named (class, oid)
"""
_PARTS: Final[LiteralString] = """
    SELECT root, 'pg_catalog.pg_class'::pg_catalog.regclass, rel, NULL::pg_catalog.text FROM meant
    UNION ALL SELECT m.root, 'pg_catalog.pg_class'::pg_catalog.regclass, k.partrelid, k.partexprs::pg_catalog.text
      FROM meant m JOIN pg_catalog.pg_partitioned_table k ON k.partrelid = m.rel
    UNION ALL SELECT m.root, 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid,
           pg_catalog.concat(i.indexprs, i.indpred)
      FROM meant m JOIN pg_catalog.pg_index i ON i.indrelid = m.rel
    UNION ALL SELECT m.root, 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid, c.conbin::pg_catalog.text
      FROM meant m JOIN pg_catalog.pg_constraint c ON c.conrelid = m.rel AND c.contype IN ('c', 'x')
    UNION ALL SELECT m.root, 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.oid, d.adbin::pg_catalog.text
      FROM meant m JOIN pg_catalog.pg_attrdef d ON d.adrelid = m.rel JOIN pg_catalog.pg_attribute a
        ON a.attrelid = d.adrelid AND a.attnum = d.adnum AND a.attgenerated <> ''
    UNION ALL SELECT m.root, 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, s.oid, s.stxexprs::pg_catalog.text
      FROM meant m JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = m.rel
"""
# Objects of the system have OIDs below 16384 (FirstNormalObjectId, transam.h). Types are bad whose values meet code:
# of a domain's checks, of casts, of ranges; and so is what is made of them.
_FIND: Final[LiteralString] = (
    """
WITH RECURSIVE theirs (class, oid) AS (
    SELECT x.class, x.oid FROM (
        SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, oid, proowner FROM pg_catalog.pg_proc
        UNION ALL SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, oid, oprowner FROM pg_catalog.pg_operator
        UNION ALL SELECT 'pg_catalog.pg_opclass'::pg_catalog.regclass, oid, opcowner FROM pg_catalog.pg_opclass
        UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, oid, typowner FROM pg_catalog.pg_type
         WHERE typtype = 'b' AND typcategory <> 'A'
    ) AS x (class, oid, owner) WHERE x.oid >= 16384 AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend e JOIN pg_catalog.pg_roles r ON r.oid = x.owner AND r.rolsuper
         WHERE e.classid = x.class AND e.objid = x.oid AND e.deptype = 'e')
), doubtful (oid) AS (
    SELECT p.oid FROM pg_catalog.pg_proc p WHERE NOT (__TRUSTED__)
), untrusted (class, oid) AS (
    SELECT class, oid FROM theirs
    UNION ALL SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, oid FROM doubtful
    UNION ALL SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, o.oid
      FROM pg_catalog.pg_operator o JOIN doubtful p ON p.oid = o.oprcode WHERE o.oid >= 16384
), checked (typ, class, oid) AS (
    SELECT c.contypid, d.refclassid, d.refobjid FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_depend d
        ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objid = c.oid WHERE c.contypid <> 0
    UNION ALL SELECT e.typ, named.class, named.oid FROM (
        SELECT contypid, conbin::pg_catalog.text FROM pg_catalog.pg_constraint WHERE contypid <> 0) AS e (typ, tree)
    __NAMED__ WHERE named.oid <> e.typ
), bad (typ) AS (
    (SELECT c.typ FROM checked c JOIN untrusted u ON u.class = c.class AND u.oid = c.oid
     UNION ALL SELECT oid FROM untrusted WHERE class = 'pg_catalog.pg_type'::pg_catalog.regclass
     UNION ALL SELECT t.typ FROM pg_catalog.pg_cast c JOIN theirs u
         ON u.class = 'pg_catalog.pg_proc'::pg_catalog.regclass AND u.oid = c.castfunc
      CROSS JOIN LATERAL (VALUES (c.castsource), (c.casttarget)) AS t (typ) WHERE t.typ >= 16384
     UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r JOIN theirs u
         ON u.class = 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND u.oid IN (r.rngcanonical::pg_catalog.oid, r.rngsubdiff::pg_catalog.oid))
    UNION SELECT o.typ FROM bad b CROSS JOIN LATERAL (
        SELECT oid FROM pg_catalog.pg_type WHERE b.typ IN (typbasetype, typelem)
        UNION ALL SELECT c.reltype FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
          WHERE a.atttypid = b.typ AND a.attnum > 0 AND NOT a.attisdropped AND c.reltype <> 0
        UNION ALL SELECT rngtypid FROM pg_catalog.pg_range WHERE rngsubtype = b.typ
        UNION ALL SELECT rngmultitypid FROM pg_catalog.pg_range WHERE rngtypid = b.typ
        UNION ALL SELECT typ FROM checked WHERE class = 'pg_catalog.pg_type'::pg_catalog.regclass AND oid = b.typ
    ) AS o (typ)
), avoided (class, oid) AS (
    SELECT class, oid FROM untrusted UNION SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, typ FROM bad
), meant (root, rel) AS (
    SELECT oid, oid FROM pg_catalog.pg_class WHERE __WHICH__
    UNION SELECT m.root, i.inhparent FROM meant m JOIN pg_catalog.pg_inherits i ON i.inhrelid = m.rel
), parts (root, class, oid, tree) AS (
__PARTS__), found (root) AS (
    SELECT p.root FROM parts p JOIN pg_catalog.pg_depend d ON d.classid = p.class AND d.objid = p.oid
      JOIN avoided a ON a.class = d.refclassid AND a.oid = d.refobjid
    UNION SELECT e.root FROM parts e __NAMED__ JOIN avoided a ON a.class = named.class AND a.oid = named.oid
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
""".replace("__PARTS__", _PARTS)
    .replace("__NAMED__", _NAMED)
    .replace("__TRUSTED__", TRUSTED)
)
# Nothing of it, nor a type of its columns, is of this database, nor a function that is not trusted: so it is with most.
_SUSPECT: Final[LiteralString] = (
    """
WITH RECURSIVE meant (root, rel) AS (
    SELECT 0, %s::pg_catalog.oid
    UNION SELECT 0, i.inhparent FROM meant m JOIN pg_catalog.pg_inherits i ON i.inhrelid = m.rel
), parts (root, class, oid, tree) AS (
__PARTS__) SELECT EXISTS (
    SELECT FROM pg_catalog.pg_attribute
     WHERE attrelid IN (SELECT rel FROM meant) AND attnum > 0 AND NOT attisdropped AND atttypid >= 16384
) OR EXISTS (
    SELECT FROM parts p JOIN pg_catalog.pg_depend d ON d.classid = p.class AND d.objid = p.oid
     WHERE d.refobjid >= 16384 AND d.refclassid = ANY ('{pg_catalog.pg_proc,pg_catalog.pg_operator,
           pg_catalog.pg_opclass,pg_catalog.pg_type}'::pg_catalog.regclass[])
) OR EXISTS (
    SELECT FROM parts e __NAMED__ LEFT JOIN pg_catalog.pg_proc p
        ON p.oid = named.oid AND named.class = 'pg_catalog.pg_proc'::pg_catalog.regclass
     WHERE named.oid >= 16384 OR NOT (__TRUSTED__)
)
""".replace("__PARTS__", _PARTS)
    .replace("__NAMED__", _NAMED)
    .replace("__TRUSTED__", TRUSTED)
)
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
