"""Extensions that a target has already: of its template, or made by an administrator because others may not.

In: statements of the stream about extensions, and those of a base snapshot. What is there stays as it is, as with a
base snapshot, which says IF NOT EXISTS; and in what it differs from the source is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from pglast import ast
from pglast.enums import ObjectType
from psycopg import sql

from archiver.format.ddl import parse
from archiver.postgres.session import fetch, postgres_error

Conn = psycopg.AsyncConnection[Any]

_THERE: Final[LiteralString] = """
SELECT e.extname::pg_catalog.text, e.extversion, n.nspname::pg_catalog.text
  FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
"""
# What is part of a member, such as a view's rule or a table's index, goes with it.
_OUTSIDERS: Final[LiteralString] = """
WITH RECURSIVE inside (class, oid) AS (
    SELECT d.classid, d.objid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e
        ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid AND d.deptype = 'e'
     WHERE e.extname = {}
    UNION SELECT d.classid, d.objid FROM inside i
      JOIN pg_catalog.pg_depend d ON d.refclassid = i.class AND d.refobjid = i.oid AND d.deptype IN ('i', 'a')
)
SELECT EXISTS (SELECT FROM inside i JOIN pg_catalog.pg_depend d ON d.refclassid = i.class AND d.refobjid = i.oid
                WHERE d.deptype = 'n' AND (d.classid, d.objid) NOT IN (SELECT class, oid FROM inside))
"""


@dataclass(frozen=True, slots=True)
class Extension:
    name: str
    version: str | None
    schema: str | None

    def differs_from(self, source: Extension) -> Iterator[str]:
        """In what this one, at the target, is another than at the source, as far as that is told."""
        for what, here, there in (
            ("version", self.version, source.version),
            ("schema", self.schema, source.schema),
        ):
            if there is not None and here != there:
                yield f"{what} {here} instead of {there}"


async def deviations(conn: Conn, wanted: Iterable[tuple[str, str, str]]) -> list[str]:
    """Extensions of the source, as (name, version, schema), that are others at the target. Raises PostgresError."""
    there = await _there(conn)
    sources = [Extension(*each) for each in wanted if each[0] in there]
    found = {source.name: ", ".join(there[source.name].differs_from(source)) for source in sources}
    return [f"extension {name} is at the target in {differs}" for name, differs in found.items() if differs]


def named(statement: str) -> str | None:
    """The extension that a statement makes, updates or drops."""
    stmt: Any = parse(statement)[0].stmt
    if isinstance(stmt, ast.CreateExtensionStmt | ast.AlterExtensionStmt):
        return str(stmt.extname)
    return str(stmt.objects[0].sval) if _drops_extension(stmt) else None


async def already(conn: Conn, statement: str) -> str | None:
    """In what the extension differs, or nothing, where CREATE EXTENSION or an update finds it at the target.

    None where there is something to be done. Raises PostgresError.
    """
    stmt: Any = parse(statement)[0].stmt
    if _drops_extension(stmt):
        return None
    wanted = _wanted(stmt)
    there = (await _there(conn)).get(wanted.name)
    if there is None or (isinstance(stmt, ast.AlterExtensionStmt) and there.version != wanted.version):
        return None
    differs = ", ".join(there.differs_from(wanted))
    return f"it is there, in {differs}" if differs else ""


async def stays(conn: Conn, statement: str, exc: psycopg.Error) -> str | None:
    """Why an extension stays as it is, where it may though its update, or its drop, was refused. Raises PostgresError.

    A drop took along what depended on the extension: that must be gone.
    """
    stmt: Any = parse(statement)[0].stmt
    reason = postgres_error(exc).message
    if isinstance(stmt, ast.AlterExtensionStmt) and isinstance(exc, _NO_UPDATE):
        there = (await _there(conn)).get(str(stmt.extname))
        return None if there is None else f"it stays in version {there.version}: {reason}"
    if _drops_extension(stmt) and isinstance(exc, psycopg.errors.InsufficientPrivilege):
        name = sql.Literal(stmt.objects[0].sval)
        [(used,)] = await fetch(conn, sql.SQL(_OUTSIDERS).format(name), "looking for what uses an extension")
        return None if used else f"it stays: {reason}"
    return None


_NO_UPDATE: Final = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.InvalidParameterValue,  # no path from the version that is there
)


def _drops_extension(stmt: Any) -> bool:
    return isinstance(stmt, ast.DropStmt) and stmt.removeType == ObjectType.OBJECT_EXTENSION


def _wanted(stmt: Any) -> Extension:
    options = {option.defname: option.arg.sval for option in stmt.options or () if hasattr(option.arg, "sval")}
    return Extension(stmt.extname, options.get("new_version"), options.get("schema"))


async def _there(conn: Conn) -> dict[str, Extension]:
    found = await fetch(conn, _THERE, "listing extensions")
    return {name: Extension(name, version, schema) for name, version, schema in found}
