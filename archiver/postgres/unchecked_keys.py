"""Foreign keys that the rows of the target violate: they come back NOT VALID, and are reported.

That is as it should be where the rows that a key refers to are not archived: excluded tables and partitions have none.
Otherwise the source held such rows, which sessions can write whose triggers are silent. They are all that there is: a
restore that stopped at them would bring nothing back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, LiteralString

import psycopg

from archiver.format.dump import IDENTIFIER, Entry
from archiver.format.dump_roles import Skipped
from archiver.names import ConstraintName
from archiver.postgres import owned_entries, search_path

Conn = psycopg.AsyncConnection[Any]

_REFERS: Final = re.compile(rf" FOREIGN KEY \([^()]*\) REFERENCES ({IDENTIFIER}\.{IDENTIFIER})\(")
_NAMED: Final[LiteralString] = "SELECT pg_catalog.to_regclass(%s)::oid"
_REFERRED: Final[LiteralString] = """
SELECT k.confrelid FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class t ON t.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
 WHERE k.contype = 'f' AND n.nspname = %s AND t.relname = %s AND k.conname = %s
"""
_LACKS_ROWS: Final[LiteralString] = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class c
     WHERE c.relkind = 'r' AND c.oid NOT IN (SELECT target FROM archiver.relations)
       AND (c.oid = %(table)s OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(%(table)s))))
"""


async def add(conn: Conn, entry: Entry, name: str, behind: Iterable[bytes] = ()) -> list[Skipped]:
    """Run an ALTER TABLE … ADD … FOREIGN KEY as the server prints it, and, if the key is there, what comes `behind`.

    Rows are looked at as their owner, where that runs code of users.

    `name` is `schema.table constraint`. Inside the caller's transaction. Returns what was left out: the validation, or,
    of a partitioned table before 18, the key. All errors are psycopg's.
    """
    statement = entry.sql
    try:
        await run(conn, entry, behind)
    except psycopg.errors.ForeignKeyViolation:
        referred = _REFERS.search(statement)
        reason = await _reason(conn, _NAMED, [referred[1] if referred else None])
    else:
        return []
    try:
        await run(conn, replace(entry, text=entry.text.rstrip().removesuffix(";") + " NOT VALID"), behind)
    except psycopg.errors.WrongObjectType:
        return [Skipped(f"FK CONSTRAINT {name}", reason, statement)]
    return [_unchecked(name, reason, statement)]


async def left_unchecked(conn: Conn, violation: psycopg.errors.ForeignKeyViolation, statement: str) -> Skipped:
    """What to report of a statement that was run without the check of the key that was violated."""
    names = [violation.diag.schema_name, violation.diag.table_name, violation.diag.constraint_name]
    return _unchecked("{}.{} {}".format(*names), await _reason(conn, _REFERRED, names), statement)


def is_expected(key: ConstraintName, warnings: Iterable[str]) -> bool:
    """Whether a restore that gave these `warnings` could not check this key."""
    return _unchecked(str(key), _NOT_ARCHIVED, "").warning in warnings


_NOT_ARCHIVED: Final = "it refers to rows that are not archived"


def _unchecked(name: str, reason: str, statement: str) -> Skipped:
    return Skipped(f"FK CONSTRAINT {name}", f"its check, for {reason}", statement)


async def _reason(conn: Conn, find: LiteralString, values: list[str | None]) -> str:
    found = await (await conn.execute(find, values)).fetchone()
    row = await (await conn.execute(_LACKS_ROWS, {"table": found and found[0]})).fetchone()
    return _NOT_ARCHIVED if row == (True,) else "rows violate it"


async def run(conn: Conn, entry: Entry, behind: Iterable[bytes]) -> None:
    """As the owner of the rows that it looks at, where that runs code of users. All errors are psycopg's."""
    async with conn.transaction():
        if not await owned_entries.make(conn, entry, (), with_path=True):
            async with search_path.of_users(conn):
                await conn.execute(entry.sql.encode())
        for query in behind:
            await conn.execute(query)
