"""Names as they were when a statement ran, for one that comes later than a renaming that ran after it.

In the order of commits a statement of a long transaction may come behind the renaming of what it names, and a row
behind that of a label it holds: the renaming is taken back meanwhile.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Final

import psycopg

from archiver.format.ddl_renames import Rename
from archiver.lsn import Lsn
from archiver.postgres.session import postgres_error

_KEPT: Final = 200
"""Few are renamed, and only what ran beside a transaction that is still open can matter."""


class Renames:
    """What one replay renamed, by the LSN at which that ran at the source. `known` comes from `to_json`."""

    def __init__(self, known: Iterable[tuple[str, dict[str, Any]]] = ()) -> None:
        self._done = [(Lsn.parse(lsn), Rename(**rename)) for lsn, rename in known]

    def to_json(self) -> list[tuple[str, dict[str, Any]]]:
        return [(str(lsn), asdict(rename)) for lsn, rename in self._done]

    def note(self, lsn: Lsn, rename: Rename) -> None:
        insort(self._done, (lsn, rename), key=lambda done: done[0])
        del self._done[:-_KEPT]

    @asynccontextmanager
    async def as_of(self, conn: psycopg.AsyncConnection[Any], lsn: Lsn) -> AsyncIterator[None]:
        """Inside, everything has the name it had at this LSN. Raises PostgresError."""
        async with _undone(conn, [rename for at, rename in self._done if at > lsn]):
            yield

    async def with_its_labels(self, conn: psycopg.AsyncConnection[Any], write: Callable[[], Awaitable[None]]) -> None:
        """Write a row whose LSN nobody knows: where a label is unknown, as before the newest renaming, and so on.

        Raises what `write` raises with all labels as they are now.
        """
        labels = [rename for _, rename in self._done if rename.of_label]
        for newest in range(len(labels) + 1):
            try:
                async with conn.transaction(), _undone(conn, labels[len(labels) - newest :]):
                    await write()
            except psycopg.errors.InvalidTextRepresentation:
                continue
            return
        await write()


@asynccontextmanager
async def _undone(conn: psycopg.AsyncConnection[Any], renames: Sequence[Rename]) -> AsyncIterator[None]:
    for rename in reversed(renames):
        await _execute(conn, rename.undo)
    yield
    for rename in renames:
        await _execute(conn, rename.redo)


async def _execute(conn: psycopg.AsyncConnection[Any], statement: str) -> None:
    try:
        await conn.execute(statement.encode())
    except psycopg.Error as exc:
        raise postgres_error(exc, statement) from exc
