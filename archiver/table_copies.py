"""The rows of a base snapshot: every table copied under one exported snapshot, sealed part by part.

In: the tables, the name of the snapshot, and where parts are stored. Out: the digest of each table and the numbers of
its parts; a table of which the server cannot send some row is left without any, and named. Each part is read in a
transaction of its own, which holds the lock of one table: when somebody waits for that, the part is given up, and
copied once more from its beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Self

import psycopg
import structlog

from archiver.errors import InTheWay, PostgresError, Unsendable
from archiver.format.digest import RowDigest
from archiver.format.seal import Sealer
from archiver.policy import parts
from archiver.policy.parts import PageRange
from archiver.postgres.giving_way import TRIES, GivingWay, grace_at, pause_after
from archiver.postgres.replication_slot import Blocker
from archiver.postgres.session import connect
from archiver.postgres.snapshot import begin_copy, copy_range, end_copy
from archiver.postgres.snapshot_tables import TableInfo
from archiver.tasks import task_group

log = structlog.get_logger()

PART_BYTES = 8 << 20  # sealed; a part is held in memory by each job, here and in a restore

Progress = Callable[[int, int], None]
"""Called with the pages done and the pages in all."""
OnBlocked = Callable[[Sequence[Blocker]], None]


@dataclass
class TableCopy:
    """A table, the digest of the rows that were copied of it, and the numbers of its parts."""

    info: TableInfo
    digest: RowDigest = field(default_factory=RowDigest)
    parts: list[int] = field(default_factory=list)

    def add(self, parts: Sequence[int], digest: RowDigest) -> None:
        if self.info.readable:
            self.parts += parts
            self.digest.merge(digest)

    def leave_out(self) -> None:
        """From now on it has no rows: some of them would be taken for all."""
        self.info = replace(self.info, published=False, readable=False)
        self.parts.clear()
        self.digest = RowDigest()


@dataclass(frozen=True)
class Parts:
    """Where parts go: `begin` gives a number and a sealer, `store` makes it durable. Not all are kept in the end."""

    begin: Callable[[], Awaitable[tuple[int, Sealer]]]
    store: Callable[[int, Sealer], Awaitable[None]]


class TableCopies:
    """The copying of all tables, by several jobs. `way` watches their sessions."""

    def __init__(self, dsn: str, snapshot: str, way: GivingWay, into: Parts, on_blocked: OnBlocked) -> None:
        self._dsn = dsn
        self._snapshot = snapshot
        self._way = way
        self._into = into
        self._on_blocked = on_blocked

    async def copy(self, tables: Sequence[TableCopy], jobs: int, progress: Progress) -> None:
        """Raises PostgresError; SchemaMoved for a table that was rewritten; InTheWay where somebody always is."""
        ranges = parts.plan((table.info.pages, table.info.can_be_cut) for table in tables)
        queue = [part for part in ranges if tables[part.index].info.has_rows]
        total = sum(part.size for part in queue)
        done = 0
        queue.reverse()  # taken from the end: the largest first

        async def work() -> None:
            nonlocal done
            async with _Session(self._dsn, self._way.purpose) as session:
                while queue:
                    part = queue.pop()
                    await self._until_copied(session, tables[part.index], part.pages)
                    done += part.size
                    progress(done, total)

        async with task_group() as group:
            for number in range(min(jobs, len(queue))):
                group.create_task(work(), name=f"snapshot job {number}")

    async def _until_copied(self, session: _Session, table: TableCopy, pages: PageRange, attempt: int = 0) -> None:
        """By halves, where somebody wants the table for himself again and again, so that it comes to its end."""
        info = table.info
        if not info.readable:
            return
        try:
            await self._copy_part(session, table, pages, grace_at(attempt))
        except Unsendable as exc:
            if table.info.readable:
                log.error("a base snapshot has no rows of a table: they cannot be sent", error=str(exc), hint=exc.hint)
            table.leave_out()
        except InTheWay:
            if attempt == TRIES:
                raise
            self._on_blocked(await self._way.holders())
            await asyncio.sleep(pause_after(attempt).total_seconds())
            for half in parts.halves(pages, info.pages) if info.can_be_cut else [pages]:
                await self._until_copied(session, table, half, attempt + 1)

    async def _copy_part(self, session: _Session, table: TableCopy, pages: PageRange, grace: timedelta) -> None:
        """Copy a part, and count it once it is whole. Raises InTheWay where it is to be tried again."""
        conn = await session.connection()
        pid = conn.info.backend_pid
        self._way.graces[pid] = grace
        try:
            await begin_copy(conn, self._snapshot, table.info)
            numbers, digest = await self._copy_range(conn, table.info, pages)
            await end_copy(conn)
        except PostgresError as exc:
            await session.close()
            if (waiter := self._way.take_waiter(pid)) is None:
                raise
            self._on_blocked([waiter])
            raise InTheWay("somebody always waits for a table", where=table.info.label) from exc
        finally:
            self._way.graces.pop(pid, None)
        table.add(numbers, digest)

    async def _copy_range(
        self, conn: psycopg.AsyncConnection[Any], table: TableInfo, pages: PageRange
    ) -> tuple[list[int], RowDigest]:
        digest, numbers = RowDigest(), list[int]()
        sealer: Sealer | None = None
        async with aclosing(copy_range(conn, table, pages)) as batches:
            async for rows in batches:
                if self._way.has_ended(conn.info.backend_pid):
                    raise InTheWay("somebody waits for a table", where=table.label)
                if sealer is None:
                    number, sealer = await self._into.begin()
                    numbers.append(number)
                await asyncio.to_thread(_add, rows, sealer, digest)
                if len(sealer) >= PART_BYTES:
                    await self._into.store(number, sealer)
                    sealer = None
        if sealer is not None:
            await self._into.store(number, sealer)
        return numbers, digest


def _add(rows: Sequence[bytes], sealer: Sealer, digest: RowDigest) -> None:
    sealer.write(b"".join(rows))
    digest.update(rows)


class _Session:
    """A connection of a job's, opened anew where the last one was closed."""

    def __init__(self, dsn: str, purpose: str) -> None:
        self._dsn = dsn
        self._purpose = purpose
        self._conn: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.close()

    async def connection(self) -> psycopg.AsyncConnection[Any]:
        if self._conn is None:
            self._conn = await connect(self._dsn, purpose=self._purpose)
        return self._conn

    async def close(self) -> None:
        if self._conn is not None:
            await self._conn.close()
            self._conn = None
