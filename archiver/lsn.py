"""Log sequence numbers: a byte position in PostgreSQL's WAL, as an int with PostgreSQL's spelling."""

from __future__ import annotations

import re
from typing import Self

from archiver.errors import UsageError

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_PAGE = 8192
_PAGE_HEADER = 24
_LONG_PAGE_HEADER = 40
_WAL_SEGMENT = 16 << 20


class Lsn(int):
    """A WAL position (an unsigned 64-bit int) that prints as PostgreSQL prints pg_lsn: `16/B374D848`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read PostgreSQL's spelling. Raises UsageError."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"not an LSN: {text!r}", hint="Write it as PostgreSQL does, for example 16/B374D848.")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec) if not spec or spec[-1] not in "dxX" else int.__format__(self, spec)

    def before_page_header(self) -> Lsn:
        """The end of the last record when this is an insert position just behind a page header.

        `pg_current_wal_insert_lsn()` skips the header of a fresh page (24 bytes, 40 in a segment's first page,
        xlog_internal.h); the end of the record before it is the page border itself. Elsewhere 40 bytes into a page
        is where a record ends that began on the page before.
        """
        offset = self % _PAGE
        header = _LONG_PAGE_HEADER if self // _PAGE * _PAGE % _WAL_SEGMENT == 0 else _PAGE_HEADER
        return Lsn(self - offset) if offset <= header else self
