"""Statements with their values spelled out, for where parameters cannot go. Pure: text of values in, SQL as bytes out.

Each value is a literal of no type, which PostgreSQL reads by the input function of the column's type: a cast of the
users', which `::` would honour, has no part in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from psycopg.sql import SQL, Composable, Identifier

MARKER: Final = "\0{}\0"
"""Where a value goes, by its number: NUL is in no name and in no SQL."""
_MARKED: Final = re.compile(rb"\0(\d+)\0")
_ROWS: Final = 500
_BYTES: Final = 1 << 20

Values = Sequence[bytes | None]


def spell(statement: bytes, values: Values) -> bytes:
    """The statement with its values in the place of markers."""
    return _MARKED.sub(lambda m: literal(values[int(m[1]) - 1]), statement)


def literal(value: bytes | None) -> bytes:
    """Read alike whatever standard_conforming_strings says."""
    if value is None:
        return b"NULL"
    quoted = b"'" + value.replace(b"'", b"''") + b"'"
    return b" E" + quoted.replace(b"\\", b"\\\\") if b"\\" in quoted else quoted


def inserts(table: Identifier, columns: Sequence[str], rows: Iterable[Values]) -> Iterator[bytes]:
    """INSERTs of several rows each."""
    into = SQL("INSERT INTO {}").format(table)
    if not columns:
        yield from (into.as_bytes() + b" DEFAULT VALUES" for _ in rows)
        return
    names: list[Composable] = [Identifier(column) for column in columns]
    start = (into + SQL(" ({}) OVERRIDING SYSTEM VALUE VALUES ").format(SQL(", ").join(names))).as_bytes()
    for some in _batches(rows):
        yield start + b", ".join(some)


def _batches(rows: Iterable[Values]) -> Iterator[list[bytes]]:
    some, size = list[bytes](), 0
    for row in rows:
        some.append(b"(" + b", ".join(map(literal, row)) + b")")
        size += len(some[-1])
        if len(some) >= _ROWS or size >= _BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
