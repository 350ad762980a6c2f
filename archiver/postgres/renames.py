"""Names as they were when a statement ran, for one that comes later than a renaming it did not see.

In the order of commits a statement of a long transaction may come behind the renaming of what it names, and a row
behind that of a label it holds: the renaming is taken back meanwhile. Where that is impossible, because the thing is
gone or its name was taken since, the statement runs without, unless it names it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Final

import psycopg

from archiver.errors import PostgresError
from archiver.format.ddl_renames import Rename
from archiver.lsn import Lsn

_KEPT: Final = 1000
"""Few are renamed, and only what was renamed beside a transaction that is still open can matter."""


class Renames:
    """What one replay renamed, in order, by the end of the source transaction: from there on others saw it.

    `known` comes from `to_json`.
    """

    def __init__(self, known: Iterable[tuple[str, dict[str, Any]]] = ()) -> None:
        self._done = [(Lsn.parse(end), Rename(**rename)) for end, rename in known]

    def to_json(self) -> list[tuple[str, dict[str, Any]]]:
        return [(str(end), asdict(rename)) for end, rename in self._done]

    def note(self, end: Lsn, rename: Rename) -> None:
        self._done.append((end, rename))
        del self._done[:-_KEPT]

    @asynccontextmanager
    async def as_of(self, conn: psycopg.AsyncConnection[Any], lsn: Lsn, end: Lsn, text: str) -> AsyncIterator[None]:
        """Inside, everything has the name that a statement saw which ran at `lsn`, in a transaction that ends at `end`.

        `text`: what it may name. All errors but PostgresError, for a name that cannot be given back, are psycopg's.
        """
        unseen = [rename for committed, rename in self._done if committed > lsn and committed != end]
        async with _undone(conn, unseen) as undone:
            impossible = [rename for rename in unseen if all(rename is not each for each in undone)]
            if named := [rename for rename in impossible if _names(text, rename.name)]:
                raise PostgresError(f"what was called {named[0].name} was renamed since, and cannot be called so again")
            yield

    async def with_its_labels(self, conn: psycopg.AsyncConnection[Any], write: Callable[[], Awaitable[None]]) -> None:
        """Write a row whose LSN nobody knows: where a label is unknown, as before the newest renaming, and so on.

        Raises what `write` raises with all labels as they are now.
        """
        renames = [rename for _, rename in self._done]
        for newest in reversed([at for at, rename in enumerate(renames) if rename.of_label]):
            try:
                async with conn.transaction(), _undone(conn, renames[newest:]) as undone:
                    others = [rename for rename in undone if not rename.of_label]
                    await _execute(conn, [rename.redo for rename in others])  # tables are called as they are now
                    await write()
                    await _execute(conn, [rename.undo for rename in reversed(others)])
            except psycopg.errors.InvalidTextRepresentation:
                continue
            return
        await write()


def _names(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


@asynccontextmanager
async def _undone(conn: psycopg.AsyncConnection[Any], renames: Sequence[Rename]) -> AsyncIterator[Sequence[Rename]]:
    """Yields those that could be taken back."""
    undone = [rename for rename in reversed(renames) if await _undo(conn, rename)][::-1]
    yield undone
    await _execute(conn, [rename.redo for rename in undone])


async def _execute(conn: psycopg.AsyncConnection[Any], statements: Iterable[str]) -> None:
    for statement in statements:
        await conn.execute(statement.encode())


async def _undo(conn: psycopg.AsyncConnection[Any], rename: Rename) -> bool:
    await conn.execute("SAVEPOINT archiver_rename")
    try:
        await conn.execute(rename.undo.encode())
    except psycopg.ProgrammingError:  # no such thing, or another one of that name
        await conn.execute("ROLLBACK TO SAVEPOINT archiver_rename")
        return False
    finally:
        if not conn.broken:
            await conn.execute("RELEASE SAVEPOINT archiver_rename")
    return True
