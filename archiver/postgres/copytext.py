"""Rows as COPY's text format. Pure: rows in, blocks of bytes out; no value is interpreted.

PostgreSQL documentation, COPY, "Text Format". NUL never occurs in a PostgreSQL value, so it can stand for NULL
until the block is known to need no escapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from archiver.errors import IntegrityError

_ROWS_PER_BLOCK: Final = 500
_ESCAPES: Final = ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n"), (b"\r", b"\\r"))


def blocks(rows: Iterable[tuple[Any, ...]]) -> Iterator[bytes]:
    """COPY text of rows of equal width whose values are bytes or None. Raises IntegrityError for others."""
    iterator = iter(rows)
    while part := list(islice(iterator, _ROWS_PER_BLOCK)):
        try:
            yield _block(part)
        except TypeError as exc:
            raise IntegrityError("a value that the stream marks as unchanged is needed, but nowhere known") from exc


def _block(rows: list[tuple[Any, ...]]) -> bytes:
    """Escaping is rarely needed, so a whole block is built and then judged."""
    text = b"\n".join([_join(row) for row in rows])
    tabs = len(rows) * max(len(rows[0]) - 1, 0)
    plain = text.count(b"\t") == tabs and text.count(b"\n") == len(rows) - 1
    if not plain or b"\\" in text or b"\r" in text:
        text = b"\n".join([b"\t".join([_escape(value) for value in row]) for row in rows])
    return text.replace(b"\0", b"\\N") + b"\n"


def _join(row: tuple[Any, ...]) -> bytes:
    try:
        return b"\t".join(row)
    except TypeError:
        return b"\t".join([b"\0" if value is None else value for value in row])


def _escape(value: bytes | None) -> bytes:
    if value is None:
        return b"\0"
    for raw, escaped in _ESCAPES:
        value = value.replace(raw, escaped)
    return value
