"""Names as they were when a statement ran, for one that comes later than a renaming that ran after it.

In the order of commits a statement of a long transaction may come behind the renaming of what it names: that is
taken back for it, and done again.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg

from archiver.format.ddl_renames import Rename
from archiver.lsn import Lsn
from archiver.postgres.session import postgres_error

_KEPT: Final = 200
"""Few are renamed, and only what ran beside a transaction that is still open can matter."""


class Renames:
    """What one replay renamed, by the LSN at which that ran at the source. `known` comes from `to_json`."""

    def __init__(self, known: Iterable[list[str]] = ()) -> None:
        self._done = [(Lsn.parse(lsn), Rename(undo, redo)) for lsn, undo, redo in known]

    def to_json(self) -> list[list[str]]:
        return [[str(lsn), rename.undo, rename.redo] for lsn, rename in self._done]

    def note(self, lsn: Lsn, rename: Rename) -> None:
        insort(self._done, (lsn, rename), key=lambda done: done[0])
        del self._done[:-_KEPT]

    @asynccontextmanager
    async def as_of(self, conn: psycopg.AsyncConnection[Any], lsn: Lsn) -> AsyncIterator[None]:
        """Inside, everything has the name it had at this LSN. Raises PostgresError."""
        later = [rename for at, rename in self._done if at > lsn]
        for rename in reversed(later):
            await _execute(conn, rename.undo)
        yield
        for rename in later:
            await _execute(conn, rename.redo)


async def _execute(conn: psycopg.AsyncConnection[Any], statement: str) -> None:
    try:
        await conn.execute(statement.encode())
    except psycopg.Error as exc:
        raise postgres_error(exc, statement) from exc
