"""NOT NULL constraints of a dump under the names that they have at the source.

From version 18 on they are constraints with names. pg_dump leaves a name out where it is the one that the server would
choose; but the server chooses another one where a table made before, by LIKE for one, has taken it. A dump of an older
server means no name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from pglast import ast, parse_sql
from pglast.enums import ConstrType

from archiver.format.ddl import quote
from archiver.format.dump import Entry

_TYPES: Final = frozenset({"TABLE", "FOREIGN TABLE"})
_NOT_NULL: Final = "NOT NULL"
_DUMPED_FROM: Final = re.compile(r"^-- Dumped from database version (\d+)", re.MULTILINE)
_SINCE: Final = 18
_LONGEST: Final = 63  # bytes of a name (NAMEDATALEN - 1): pg_dump writes those out that the server must shorten


def means_names(preamble: Entry) -> bool:
    """Whether the dump is of a server whose NOT NULL constraints have names."""
    version = _DUMPED_FROM.search(preamble.text)
    return version is not None and int(version[1]) >= _SINCE


def chosen_name(table: str, column: str) -> str:
    """What the server calls a NOT NULL constraint. As makeObjectName does it, the longer of both names is cut first."""
    room = _LONGEST - len("__not_null")
    of_table, of_column = len(table.encode()), len(column.encode())
    while of_table + of_column > room:
        if of_table > of_column:
            of_table -= 1
        else:
            of_column -= 1
    return f"{_cut(table, of_table)}_{_cut(column, of_column)}_not_null"


def _cut(name: str, longest: int) -> str:
    """The characters that fit whole into so many bytes."""
    return name.encode()[:longest].decode(errors="ignore")


def with_not_null_names(entry: Entry) -> Entry:
    """The entry with every NOT NULL of a table named, as pg_dump means it: `<table>_<column>_not_null`."""
    if entry.type not in _TYPES or _NOT_NULL not in entry.text:
        return entry
    text = entry.text
    for at, name in sorted(_unnamed(text), reverse=True):
        text = f"{text[:at]}CONSTRAINT {quote(name)} {text[at:]}"
    return replace(entry, text=text)


def _unnamed(text: str) -> Iterator[tuple[int, str]]:
    """Where each constraint without a name stands, and the name."""
    for raw in parse_sql(text):
        create: Any = raw.stmt.base if isinstance(raw.stmt, ast.CreateForeignTableStmt) else raw.stmt
        if isinstance(raw.stmt, ast.CreateStmt | ast.CreateForeignTableStmt):
            for column, constraint in _not_nulls(create):
                name = f"{create.relation.relname}_{column}_not_null"
                if constraint.conname is None and len(name.encode()) <= _LONGEST:
                    yield constraint.location, name


def _not_nulls(create: Any) -> Iterator[tuple[str, Any]]:
    for element in create.tableElts or ():
        of_column = isinstance(element, ast.ColumnDef)
        for constraint in (element.constraints or ()) if of_column else (element,):
            if constraint.contype == ConstrType.CONSTR_NOTNULL:
                yield (element.colname if of_column else constraint.keys[0].sval), constraint
