"""The text of a record, as PostgreSQL's record_out writes it, and rows of COPY's text: their values. Pure.

PostgreSQL documentation, 8.16.6 "Composite Type Input and Output Syntax", and COPY, "Text Format".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from archiver.errors import IntegrityError

Record = tuple[bytes | None, ...]

_FIELD: Final = re.compile(r'(?:"((?:[^"\\]|""|\\\\)*)"|([^,()"\\]*))(,|\)\Z)', re.DOTALL)
_DOUBLED: Final = re.compile(r'""|\\\\')


def parse_record(text: str, width: int) -> Record:
    """The values of a record of so many columns. Raises IntegrityError."""
    values, at = list[bytes | None](), 1
    if text == "()" and width == 0:
        return ()
    while text.startswith("(") and (field := _FIELD.match(text, at)):
        quoted, bare, end = field.groups()
        value = bare or None if quoted is None else _DOUBLED.sub(lambda m: m[0][0], quoted)
        values.append(None if value is None else value.encode())
        at = field.end()
        if end == ")" and len(values) == width:
            return tuple(values)
    raise IntegrityError("a row that the source computed does not fit its table")


_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def copied_rows(lines: Iterable[bytes]) -> Iterator[Record]:
    """The values of lines of COPY's text, without their newlines."""
    for line in lines:
        yield tuple([_copied(value) for value in line.split(b"\t")])


def _copied(value: bytes) -> bytes | None:
    if value == b"\\N":
        return None
    return _ESCAPE.sub(lambda m: _ESCAPED.get(m[1], m[1]), value) if b"\\" in value else value
