"""Foreign keys during a replay by a role that may not set session_replication_role: they are not there.

The triggers that enforce them belong to the system, and only a superuser may disable those. So a foreign key is dropped
before rows are written, and kept as its definition in the target, in the same transaction, so that an interrupted
restore makes it again. Around a statement that may concern them all are there, for that to find.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.dump import Entry
from archiver.format.dump_roles import Skipped
from archiver.postgres import unchecked_keys

Conn = psycopg.AsyncConnection[Any]

CREATE: Final[LiteralString] = """
CREATE TABLE IF NOT EXISTS archiver.dropped_keys (rel oid, name text, definition text, valid bool, comment text);
ALTER TABLE archiver.dropped_keys REPLICA IDENTITY FULL;
"""
# Objects of the system have OIDs below 16384 (FirstNormalObjectId, transam.h). Those of partitions come and go with
# their parent's. From 18 on some are not enforced: these do no harm.
_THERE: Final[LiteralString] = """
SELECT c.oid, c.conrelid, c.conrelid::regclass::text, c.conname::text,
       pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(c.oid), ' NOT VALID$', ''), c.convalidated,
       pg_catalog.obj_description(c.oid, 'pg_constraint')
  FROM pg_catalog.pg_constraint c
 WHERE c.contype = 'f' AND c.conparentid = 0 AND c.conrelid >= 16384
   AND pg_catalog.to_jsonb(c) ->> 'conenforced' IS DISTINCT FROM 'false'
 ORDER BY c.oid
"""
_DROPPED: Final[LiteralString] = """
SELECT k.rel, k.rel::regclass::text, k.name, k.definition, k.valid, k.comment, c.relkind = 'p',
       pg_catalog.format('%s.%s %s', n.nspname, c.relname, k.name)
  FROM archiver.dropped_keys k JOIN pg_catalog.pg_class c ON c.oid = k.rel
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY k.ctid
"""
_FORGET: Final[LiteralString] = "DELETE FROM archiver.dropped_keys WHERE rel = %s AND name = %s"
# fmt: off
_OTHER_TAGS: Final = frozenset({
    "CREATE INDEX", "CREATE VIEW", "CREATE MATERIALIZED VIEW", "REFRESH MATERIALIZED VIEW", "CREATE FUNCTION",
    "ALTER FUNCTION", "CREATE PROCEDURE", "ALTER PROCEDURE", "CREATE AGGREGATE", "CREATE OPERATOR", "CREATE TYPE",
    "CREATE DOMAIN", "CREATE SEQUENCE", "ALTER SEQUENCE", "CREATE STATISTICS", "CREATE RULE", "CREATE POLICY",
    "ALTER POLICY", "CREATE TRIGGER", "CREATE TABLE AS", "SELECT INTO", "GRANT", "REVOKE", "ALTER DEFAULT PRIVILEGES",
})
# fmt: on


def may_concern(tag: str) -> bool:
    """Whether a statement may make, change or drop a foreign key, or what one refers to by name."""
    return tag not in _OTHER_TAGS


def needs_valid(statement: str) -> bool:
    """Whether those that are there must be checked to be valid, which reads their tables.

    A partition's own key becomes part of its parent's only if it is valid, and one that is replaced by another of the
    same name which is not must be told from that.
    """
    text = statement.lower()
    return "attach" in text or "valid" in text


class ForeignKeys:
    """`drop` before rows are written, `make` before a statement. All errors are psycopg's.

    For a statement they are made NOT VALID, which reads no row. Which of them are valid in truth is known meanwhile by
    OID, which a change of a column's type replaces, and by table and name, which RENAME does;
    `follow` comes after each.
    """

    def __init__(self) -> None:
        self._valid: set[int | tuple[int, str]] = set()

    async def drop(self, conn: Conn) -> None:
        """Take all that are there out, and remember them."""
        for oid, rel, table, name, definition, valid, comment in await (await conn.execute(_THERE)).fetchall():
            await conn.execute(
                "INSERT INTO archiver.dropped_keys VALUES (%s, %s, %s, %s, %s)",
                (rel, name, definition, valid or bool(self._valid & {oid, (rel, name)}), comment),
            )
            await conn.execute(_alter(table, sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(name))))
        self._valid.clear()

    async def make(self, conn: Conn, *, validated: bool) -> int:
        """Put back those that are out, for a statement, `validated` or without looking at any row; returns how many.

        In the middle of a source transaction rows may violate one of a partitioned table: that one stays out.
        """
        if validated and self._valid:
            await self.drop(conn)
        made = 0
        for rel, table, name, definition, valid, comment, partitioned, _ in await _dropped(conn):
            checked = valid and (validated or partitioned)
            try:
                async with conn.transaction():
                    add, *behind = _statements(table, name, definition, comment, valid=checked)
                    await unchecked_keys.run(conn, Entry(add.decode(), type="FK CONSTRAINT"), behind)
                    await conn.execute(_FORGET, (rel, name))
            except psycopg.errors.ForeignKeyViolation:
                continue
            made += 1
            if valid and not checked:
                self._valid |= {await _oid(conn, rel, name), (rel, name)}
        return made

    async def follow(self, conn: Conn) -> None:
        """Know them again after a statement, which may have changed or dropped some."""
        if self._valid:
            there = [{row[0], (row[1], row[3])} for row in await (await conn.execute(_THERE)).fetchall()]
            self._valid = set[int | tuple[int, str]]().union(*(names for names in there if names & self._valid))


async def make_all(conn: Conn) -> list[Skipped]:
    """Put all back as they were, at the end of a restore. Returns what of them was left out: see unchecked_keys."""
    skipped: list[Skipped] = []
    for _, table, name, definition, valid, comment, _, label in await _dropped(conn):
        add, *behind = _statements(table, name, definition, comment, valid=valid)
        skipped += await unchecked_keys.add(conn, Entry(add.decode(), type="FK CONSTRAINT"), label, behind)
    await conn.execute("DELETE FROM archiver.dropped_keys")
    return skipped


async def _dropped(conn: Conn) -> list[tuple[Any, ...]]:
    return await (await conn.execute(_DROPPED)).fetchall()


def _statements(table: str, name: str, definition: str, comment: str | None, *, valid: bool) -> list[bytes]:
    not_valid = "" if valid else " NOT VALID"
    add = (
        _alter(table, sql.SQL("ADD CONSTRAINT {} ").format(sql.Identifier(name))) + f"{definition}{not_valid}".encode()
    )
    if comment is None:
        return [add]
    on = sql.SQL("COMMENT ON CONSTRAINT {} ON ").format(sql.Identifier(name)).as_bytes()
    return [add, on + table.encode() + sql.SQL(" IS {}").format(sql.Literal(comment)).as_bytes()]


async def _oid(conn: Conn, rel: int, name: str) -> int:
    query = "SELECT oid FROM pg_catalog.pg_constraint WHERE conrelid = %s AND conname = %s AND contype = 'f'"
    row = await (await conn.execute(query, (rel, name))).fetchone()
    assert row is not None
    return int(row[0])


def _alter(table: str, action: sql.Composed) -> bytes:
    """`table` is spelled by regclass, which quotes it."""
    return f"ALTER TABLE {table} ".encode() + action.as_bytes()
