"""The rows of a base snapshot into a target: those of archived tables at first, those of others after the replay.

In: an archive, a base snapshot and connections to a target that holds its schema. Each part is loaded in a transaction
that records it, so that an interrupted restore goes on with the others. Rows of a table that nobody archives are as old
as the base snapshot. No statement of the stream meets them, and where the table does not take them it stays empty.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg

from archiver.archive import OpenArchive
from archiver.errors import PostgresError, PostgresUnavailable
from archiver.format.manifest import Snapshot, format_time
from archiver.format.seal import inflate
from archiver.names import TableName
from archiver.postgres import load, relations, run_as, users_code
from archiver.postgres.always_triggers import Silence
from archiver.postgres.users_code import Guarded
from archiver.snapshots import IndexedTable, part_place
from archiver.tasks import task_group

Conn = psycopg.AsyncConnection[Any]
Worker = Callable[[], AbstractAsyncContextManager[Conn]]
Progress = Callable[[int, int], None]
"""Called with the bytes that are loaded and to be loaded."""


class BaseRows:
    """Loads the parts of one base snapshot, by connections that `worker` opens."""

    def __init__(self, archive: OpenArchive, snapshot: Snapshot, worker: Worker) -> None:
        self._archive = archive
        self._snapshot = snapshot
        self._worker = worker

    async def load(
        self, conn: Conn, tables: Sequence[IndexedTable], done: Mapping[str, Any], *, jobs: int, progress: Progress
    ) -> None:
        """All parts that `done` does not record, several at once. Raises PostgresError, IntegrityError."""
        refs = self._snapshot.parts
        wanted = [(table, number) for table in tables for number in table.parts]
        queue = [(table, number) for table, number in wanted if _part(number) not in done]
        queue.sort(key=lambda item: refs[item[1]].size)
        total = sum(refs[number].size for _, number in wanted)
        finished = total - sum(refs[number].size for _, number in queue)
        guarded = await _guard(conn)

        async def work() -> None:
            nonlocal finished
            async with self._worker() as worker:
                while queue:
                    table, number = queue.pop()
                    async with load.transaction(worker, table.info.label):
                        await self._load_part(worker, table, table.info.table, number, guarded.get(table.info.table))
                    finished += refs[number].size
                    progress(finished, total)

        async with task_group() as group:
            for number in range(min(jobs, len(queue))):
                group.create_task(work(), name=f"load job {number}")

    async def load_unarchived(
        self, tables: Sequence[IndexedTable], places: Mapping[str, int], done: Mapping[str, Any]
    ) -> list[str]:
        """The rows of tables whose changes nobody archived, by their OIDs in `places`; what is to be told of each.

        Foreign keys and triggers are silent meanwhile. Raises PostgresUnavailable, IntegrityError.
        """
        if not tables:
            return []
        async with self._worker() as worker:
            if (await Silence.open(worker)).by_role:
                await worker.execute("SET session_replication_role = replica")
            return [
                await self._load_unarchived(worker, table, places.get(str(table.info.oid)), done) for table in tables
            ]

    async def _load_unarchived(self, conn: Conn, table: IndexedTable, oid: int | None, done: Mapping[str, Any]) -> str:
        label, time = f"table {table.info.label} is not archived", format_time(self._snapshot.consistent_at)
        if not table.info.readable:
            return f"{label}: it is left without rows, which the source could not send for the base snapshot"
        try:
            async with load.transaction(conn, table.info.label):
                place = await relations.place_of(conn, oid) if oid is not None else None
                if place is None:
                    return f"{label}: it was dropped after the base snapshot"
                guarded = await users_code.find(conn, place.oid)
                if guarded is not None:
                    await run_as.prepare(conn, guarded.owner)
                for number in [number for number in table.parts if _part(number) not in done]:
                    await self._load_part(conn, table, TableName(place.schema, place.name), number, guarded)
        except PostgresUnavailable:
            raise
        except PostgresError as exc:
            return f"{label}: it is left without rows, since it does not take those of the base snapshot: {exc.message}"
        return f"{label}: its rows are those of {time}, and no foreign key was checked"

    async def _load_part(
        self, conn: Conn, table: IndexedTable, there: TableName, number: int, guarded: Guarded | None
    ) -> None:
        """In the caller's transaction."""
        ref = self._snapshot.parts[number]
        body = await self._archive.fetch(ref, part_place(self._snapshot.lsn, number))

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in inflate(body, ref.raw_bytes):
                yield chunk

        await load.copy_in(conn, there.schema, there.name, table.info.columns, chunks(), guarded=guarded)
        async with conn.cursor() as cursor:
            await load.write_progress(cursor, **{_part(number): True})


def _part(number: int) -> str:
    """How a part that is loaded is recorded in the target."""
    return f"part {number}"


async def _guard(conn: Conn) -> dict[TableName, Guarded]:
    """Find the tables that are written as their owners, and make for those what all workers need."""
    guarded = await users_code.by_name(conn)
    async with load.transaction(conn, "owners of tables"):
        for owner in {each.owner for each in guarded.values()}:
            await run_as.prepare(conn, owner)
    return guarded
