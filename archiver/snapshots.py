"""Base snapshots: a logical copy of the database at one LSN, sealed part by part, committed by one manifest.

In: an archive opened for writing and the source. A temporary replication slot gives the LSN and the exported
snapshot; every table is read under it by several connections. Out: one manifest, or nothing: parts without a
manifest are rubbish that no one will ever read. The source sees reads and one temporary slot.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
import structlog

from archiver.archive import OpenArchive, Place
from archiver.config import SnapshotSection, SourceSection
from archiver.errors import IntegrityError, PostgresError, PostgresUnavailable
from archiver.format import layout
from archiver.format.digest import RowDigest
from archiver.format.manifest import ObjectRef, Snapshot
from archiver.format.roles import Globals
from archiver.format.seal import Kind, Sealer, inflate
from archiver.lsn import Lsn
from archiver.policy import parts
from archiver.postgres.client_programs import dump_schema, find_pg_dump
from archiver.postgres.exclusion import excluded_tables
from archiver.postgres.replication_slot import Blocker, SystemIdentity, create_slot, identify_system
from archiver.postgres.roles import read_globals
from archiver.postgres.sequences import read_sequences
from archiver.postgres.session import connect, fetch
from archiver.postgres.setup import published_tables
from archiver.postgres.snapshot import (
    DatabaseInfo,
    begin_snapshot,
    copy_range,
    describe_database,
    lock_tables,
    snapshot_connection,
)
from archiver.postgres.snapshot_tables import TableInfo, list_tables
from archiver.tasks import task_group

PART_BYTES = 8 << 20  # sealed; a part is held in memory by each job, here and in a restore
ATTEMPTS = 3

Progress = Callable[[int, int], None]
"""Called with the pages done and the pages in all."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class IndexedTable:
    """A table in a base snapshot: what it is, the digest of its rows, and the numbers of its parts."""

    info: TableInfo
    digest: RowDigest
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """Part 0 of a base snapshot: everything about it that names things of the database.

    `roles` is None in base snapshots taken before they were archived.
    """

    database: DatabaseInfo
    publication: str
    schema: str
    tables: tuple[IndexedTable, ...]
    sequences: list[dict[str, Any]]
    roles: Globals | None = None

    def encode(self) -> bytes:
        tables = [{"info": t.info.to_json(), "digest": str(t.digest), "parts": t.parts} for t in self.tables]
        fields: dict[str, Any] = {
            "database": self.database.to_json(),
            "publication": self.publication,
            "schema": self.schema,
            "tables": tables,
            "sequences": self.sequences,
        }
        if self.roles is not None:
            fields["globals"] = self.roles.to_json()
        return json.dumps(fields, ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises IntegrityError."""
        try:
            fields = json.loads(data)
            tables = [
                IndexedTable(TableInfo.from_json(t["info"]), RowDigest.parse(t["digest"]), tuple(t["parts"]))
                for t in fields["tables"]
            ]
            database = DatabaseInfo.from_json(fields["database"])
            roles = Globals.from_json(fields["globals"]) if "globals" in fields else None
            return cls(database, fields["publication"], fields["schema"], tuple(tables), fields["sequences"], roles)
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise IntegrityError(f"the index of a base snapshot cannot be read: {exc!r}") from None


def part_place(snapshot_lsn: Lsn, number: int) -> Place:
    return Place(Kind.SNAPSHOT, number, snapshot_lsn, snapshot_lsn)


async def read_index(archive: OpenArchive, snapshot: Snapshot) -> Index:
    """The index of a committed base snapshot. Raises IntegrityError."""
    ref = snapshot.parts[0]
    body = await archive.fetch(ref, part_place(snapshot.lsn, 0))
    return Index.decode(b"".join(inflate(body, ref.raw_bytes)))


async def take_snapshot(
    archive: OpenArchive,
    source: SourceSection,
    settings: SnapshotSection,
    *,
    of: SystemIdentity | None = None,
    progress: Progress | None = None,
    on_blocked: Callable[[Sequence[Blocker]], None] | None = None,
    patience: timedelta | None = None,
) -> Snapshot:
    """Take a base snapshot and commit it. Retried when a table was rewritten under it.

    `of`: the server whose changes are archived; one that took over since is another history, and an error.
    `patience` limits the wait for transactions that keep the slot from being made.
    """
    for attempt in range(1, ATTEMPTS + 1):
        work = _Snapshot(archive, source, settings, progress or (lambda _done, _total: None), of)
        try:
            return await work.take(on_blocked, patience)
        except PostgresUnavailable as exc:
            if attempt == ATTEMPTS:
                raise
            log.warning("base snapshot failed, trying again", error=str(exc))
    raise AssertionError("unreachable")


@dataclass
class _Table:
    info: TableInfo
    digest: RowDigest = field(default_factory=RowDigest)
    parts: list[int] = field(default_factory=list)


class _Snapshot:
    def __init__(
        self,
        archive: OpenArchive,
        source: SourceSection,
        settings: SnapshotSection,
        progress: Progress,
        of: SystemIdentity | None,
    ) -> None:
        self._of = of
        self._archive = archive
        self._source = source
        self._settings = settings
        self._progress = progress
        self._id: UUID = uuid4()
        self._lsn = Lsn(0)
        self._refs: dict[int, ObjectRef] = {}
        self._numbers = iter(range(1, 1 << 62))

    async def take(
        self, on_blocked: Callable[[Sequence[Blocker]], None] | None, patience: timedelta | None
    ) -> Snapshot:
        dsn = self._source.dsn
        async with AsyncExitStack() as stack:
            exporter = await connect(dsn, purpose="snapshot", replication=True)
            stack.push_async_callback(exporter.close)
            await self._require_same_history(exporter)
            reader = await connect(dsn, purpose="snapshot")
            stack.push_async_callback(reader.close)
            program = await find_pg_dump(
                reader.info.server_version // 10000,
                Path(self._settings.pg_dump) if self._settings.pg_dump else None,
            )
            name = f"archiver_snapshot_{self._id.hex[:12]}"
            slot = await create_slot(
                exporter, name, temporary=True, export=True, watch=reader, on_blocked=on_blocked, timeout=patience
            )
            if slot.snapshot is None:
                raise PostgresUnavailable("the server exported no snapshot with the slot")
            self._lsn = slot.lsn
            consistent_at = await _clock(reader)
            await begin_snapshot(reader, slot.snapshot)
            tables = [_Table(info) for info in await self._archived_tables(reader)]
            await lock_tables(reader, [table.info for table in tables])
            database = await describe_database(reader)
            roles = await read_globals(reader)
            schema = await dump_schema(dsn, program, snapshot=slot.snapshot)
            await self._copy(tables, slot.snapshot)
            sequences = [state.to_json() for state in (await read_sequences(reader)).states]
        index = Index(
            database,
            self._source.publication,
            schema,
            tuple(IndexedTable(t.info, t.digest, tuple(sorted(t.parts))) for t in tables),
            sequences,
            roles,
        )
        return await self._commit(index, consistent_at)

    async def _require_same_history(self, exporter: psycopg.AsyncConnection[Any]) -> None:
        system = await identify_system(exporter)
        if self._of is not None and not system.is_one_with(self._of):
            raise PostgresError(
                "the source is another server, or on another timeline, than what is archived",
                where=f"system {system.system_id}, timeline {system.timeline}",
                hint="archiver run records the change first.",
            )

    async def _archived_tables(self, reader: psycopg.AsyncConnection[Any]) -> list[TableInfo]:
        """The tables whose changes are archived too. Rows that would grow stale in silence are left out.

        What is published, `init` has settled: rows whose changes come must be there, whatever `exclude` says by now.
        """
        excluded = await excluded_tables(reader, self._source.exclude)
        published = await published_tables(reader, self._source.publication)
        archived, carried = [], []
        for table in await list_tables(reader):
            is_published, is_excluded = (table.schema, table.name) in published, table.oid in excluded.oids
            archived += [table] if is_published or (table.unlogged and not is_excluded) else []
            carried += [table.label] if is_published and is_excluded else []
        if excluded.unknown:
            log.warning("source.exclude names no table", names=excluded.unknown)
        if carried:
            log.warning("excluded tables are still published: run archiver init", tables=carried)
        return archived

    async def _commit(self, index: Index, consistent_at: datetime) -> Snapshot:
        sealer = await self._archive.sealer(part_place(self._lsn, 0))
        sealer.write(index.encode())
        await self._store(0, sealer)
        entry = Snapshot(
            snapshot_id=self._id,
            lsn=self._lsn,
            consistent_at=consistent_at,
            finished_at=datetime.now(UTC),
            server_version=index.database.server_version,
            tables=len(index.tables),
            rows=sum(table.digest.count for table in index.tables),
            parts=tuple(self._refs[number] for number in sorted(self._refs)),
        )
        await self._archive.log.append(entry)
        return entry

    async def _store(self, number: int, sealer: Sealer) -> None:
        key = layout.snapshot_part(self._lsn, self._id, number)
        self._refs[number] = await self._archive.store_sealed(key, sealer)

    async def _copy(self, tables: Sequence[_Table], snapshot: str) -> None:
        ranges = parts.plan((table.info.pages, table.info.can_be_cut) for table in tables)
        queue = [part for part in ranges if tables[part.index].info.has_rows]
        total = sum(part.size for part in queue)
        done = 0
        queue.reverse()  # taken from the end: the largest first

        async def work() -> None:
            nonlocal done
            async with snapshot_connection(self._source.dsn, snapshot) as conn:
                while queue:
                    part = queue.pop()
                    await self._copy_range(conn, tables[part.index], part.pages)
                    done += part.size
                    self._progress(done, total)

        async with task_group() as group:
            for number in range(min(self._settings.jobs, len(queue))):
                group.create_task(work(), name=f"snapshot job {number}")

    async def _copy_range(self, conn: psycopg.AsyncConnection[Any], table: _Table, pages: parts.PageRange) -> None:
        number, sealer = 0, None
        digest = RowDigest()
        async with aclosing(copy_range(conn, table.info, pages)) as batches:
            async for rows in batches:
                if sealer is None:
                    number = next(self._numbers)
                    sealer = await self._archive.sealer(part_place(self._lsn, number))
                    table.parts.append(number)
                await asyncio.to_thread(_add, rows, sealer, digest)
                if len(sealer) >= PART_BYTES:
                    await self._store(number, sealer)
                    sealer = None
        if sealer is not None:
            await self._store(number, sealer)
        table.digest.merge(digest)


def _add(rows: Sequence[bytes], sealer: Sealer, digest: RowDigest) -> None:
    sealer.write(b"".join(rows))
    digest.update(rows)


async def _clock(conn: psycopg.AsyncConnection[Any]) -> datetime:
    time: datetime
    [(time,)] = await fetch(conn, "SELECT pg_catalog.clock_timestamp()")
    return time
