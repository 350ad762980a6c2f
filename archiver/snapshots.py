"""Base snapshots: a logical copy of the database at one LSN, sealed part by part, committed by one manifest.

In: an archive opened for writing and the source. A temporary replication slot gives the LSN and the exported
snapshot; every table is read under it by several connections. Out: one manifest, or nothing: parts without a
manifest are rubbish that no one will ever read. The source sees reads and one temporary slot. No session waits for a
lock while another one holds some, but pg_dump's for a moment; and whoever waits for one of ours gets it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, LiteralString, Self, TypeVar
from uuid import UUID, uuid4

import psycopg
import structlog

from archiver.archive import OpenArchive, Place
from archiver.config import SnapshotSection, SourceSection
from archiver.errors import IntegrityError, InTheWay, PostgresError, PostgresUnavailable, SchemaMoved
from archiver.format import layout
from archiver.format.digest import RowDigest
from archiver.format.manifest import ObjectRef, Snapshot
from archiver.format.roles import Globals
from archiver.format.seal import Kind, Sealer, inflate
from archiver.lsn import Lsn
from archiver.postgres.client_programs import dump_schema, find_pg_dump
from archiver.postgres.exclusion import excluded_tables
from archiver.postgres.giving_way import TRIES, GivingWay, grace_at, pause_after
from archiver.postgres.replication_slot import SystemIdentity, create_slot, identify_system
from archiver.postgres.roles import read_globals
from archiver.postgres.sequences import read_sequences
from archiver.postgres.session import connect, fetch
from archiver.postgres.setup import published_tables
from archiver.postgres.shown_catalog import ShownCatalog, is_unchanged, shown
from archiver.postgres.snapshot import LOCK_TIMEOUT, DatabaseInfo, begin_snapshot, describe_database, end_copy
from archiver.postgres.snapshot_tables import TableInfo, list_tables
from archiver.table_copies import OnBlocked, Parts, Progress, TableCopies, TableCopy
from archiver.tasks import task_group

ATTEMPTS = 3
MOVED_ATTEMPTS = 20
"""Of reading a schema that is changed meanwhile, which takes seconds each."""
LOCK_TIME = timedelta(microseconds=50)
"""What pg_dump takes for a lock that nobody holds; its limit is one for all of them."""

Conn = psycopg.AsyncConnection[Any]
T = TypeVar("T")
_BRIEFLY: Final[LiteralString] = "SELECT pg_catalog.set_config('lock_timeout', '200ms', false)"

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

    @property
    def unarchived(self) -> list[str]:
        """The tables whose changes are not archived, or mean nothing, since it has no rows of theirs."""
        return [table.info.label for table in self.tables if not table.info.published]

    @property
    def without_rows(self) -> frozenset[int]:
        """The OIDs of the tables of which it has no rows, since the server could not send them."""
        return frozenset(table.info.oid for table in self.tables if not table.info.readable)

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
    on_blocked: OnBlocked | None = None,
    patience: timedelta | None = None,
) -> Snapshot:
    """Take a base snapshot and commit it. Retried when DDL ran under it, or the connection was lost.

    `of`: the server whose changes are archived; one that took over since is another history, and an error.
    `patience` limits the wait for transactions that keep the slot from being made. `on_blocked` hears of them, and of
    those for whose locks the snapshot waits, or gave way.
    """
    tell = on_blocked or (lambda _blockers: None)
    for attempt in itertools.count(1):
        work = _Snapshot(archive, source, settings, progress or (lambda _done, _total: None), of)
        try:
            return await work.take(tell, patience)
        except PostgresUnavailable as exc:
            if attempt >= (MOVED_ATTEMPTS if isinstance(exc, SchemaMoved) else ATTEMPTS) or isinstance(exc, InTheWay):
                raise
            log.warning("base snapshot failed, trying again", error=str(exc))
            await asyncio.sleep(pause_after(attempt).total_seconds())
    raise AssertionError("unreachable")


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
        self._purpose = f"snapshot {self._id.hex[:12]}"
        self._lsn = Lsn(0)
        self._refs: dict[int, ObjectRef] = {}
        self._begun = 1  # the next part's number

    async def take(self, on_blocked: OnBlocked, patience: timedelta | None) -> Snapshot:
        """The schema first: it takes seconds, and is what DDL beside it may spoil."""
        async with AsyncExitStack() as stack:
            exporter = await self._open(stack, "snapshot", replication=True)
            reader = await self._open(stack, self._purpose)
            watch = await self._open(stack, "snapshot watch")
            await self._require_same_history(exporter)
            slot = await create_slot(
                exporter,
                f"archiver_snapshot_{self._id.hex[:12]}",
                temporary=True,
                export=True,
                watch=reader,
                on_blocked=on_blocked,
                timeout=patience,
            )
            if slot.snapshot is None:
                raise PostgresUnavailable("the server exported no snapshot with the slot")
            self._lsn = slot.lsn
            way = GivingWay(watch, self._purpose)
            async with task_group() as group:
                watching = group.create_task(way.keep(), name="who waits for the base snapshot")
                entry = await self._read_and_commit(reader, slot.snapshot, way, on_blocked)
                watching.cancel()
        return entry

    async def _open(self, stack: AsyncExitStack, purpose: str, *, replication: bool = False) -> Conn:
        conn = await connect(self._source.dsn, purpose=purpose, replication=replication)
        stack.push_async_callback(conn.close)
        return conn

    async def _read_and_commit(self, reader: Conn, snapshot: str, way: GivingWay, on_blocked: OnBlocked) -> Snapshot:
        consistent_at = await _clock(reader)

        async def catalog() -> _Catalog:
            return await self._read_catalog(reader, snapshot)

        async def schema() -> str:
            return await self._dump(reader, snapshot, seen.shown)

        seen = await _unhindered(catalog, way, on_blocked)
        dumped = await _unhindered(schema, way, on_blocked)
        copies = TableCopies(self._source.dsn, snapshot, way, Parts(self._begin_part, self._store), on_blocked)
        await copies.copy(seen.tables, self._settings.jobs, self._progress)
        sequences = [state.to_json() for state in (await read_sequences(reader)).states]
        index = Index(
            seen.database,
            self._source.publication,
            dumped,
            tuple(IndexedTable(t.info, t.digest, tuple(sorted(t.parts))) for t in seen.tables),
            sequences,
            seen.roles,
        )
        return await self._commit(index, consistent_at)

    async def _read_catalog(self, reader: Conn, snapshot: str) -> _Catalog:
        """In a transaction that ends with it: no catalog stays locked, either."""
        await fetch(reader, _BRIEFLY)
        await begin_snapshot(reader, snapshot)
        try:
            tables = [TableCopy(info) for info in await self._archived_tables(reader)]
            return _Catalog(tables, await describe_database(reader), await read_globals(reader), await shown(reader))
        finally:
            await end_copy(reader)

    async def _dump(self, reader: Conn, snapshot: str, before: ShownCatalog) -> str:
        """The schema, whole. Raises SchemaMoved where it was changed meanwhile."""
        configured = Path(self._settings.pg_dump) if self._settings.pg_dump else None
        program = await find_pg_dump(reader.info.server_version // 10000, configured)
        wait = LOCK_TIMEOUT + LOCK_TIME * len(before.relations)
        try:
            return await dump_schema(
                self._source.dsn, program, snapshot=snapshot, purpose=self._purpose, lock_wait=wait
            )
        finally:
            if not await is_unchanged(reader, before):
                raise SchemaMoved("the schema changed while it was being read", hint="Take the base snapshot again.")

    async def _require_same_history(self, exporter: Conn) -> None:
        system = await identify_system(exporter)
        if self._of is not None and not system.is_one_with(self._of):
            raise PostgresError(
                "the source is another server, or on another timeline, than what is archived",
                where=f"system {system.system_id}, timeline {system.timeline}",
                hint="archiver run records the change first.",
            )

    async def _archived_tables(self, reader: Conn) -> list[TableInfo]:
        """All tables but the excluded ones; of those that are not published, the rows grow stale, and that is told.

        What is published, `init` has settled: rows whose changes come must be there, whatever `exclude` says by now.
        """
        excluded = await excluded_tables(reader, self._source.exclude)
        published = await published_tables(reader, self._source.publication)
        archived, carried = [], []
        for table in await list_tables(reader):
            is_published, is_excluded = (table.schema, table.name) in published, table.oid in excluded.oids
            if is_published or not is_excluded:
                archived.append(replace(table, published=is_published or table.unlogged))
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
        for number in range(1, self._begun):  # a part is found by its place: one that was given up leaves none empty
            if number not in self._refs:
                await self._store(number, await self._archive.sealer(part_place(self._lsn, number)))
        entry = Snapshot(
            snapshot_id=self._id,
            lsn=self._lsn,
            consistent_at=consistent_at,
            finished_at=datetime.now(UTC),
            server_version=index.database.server_version,
            tables=len(index.tables),
            without_rows=sum(not table.info.readable for table in index.tables),
            rows=sum(table.digest.count for table in index.tables),
            parts=tuple(self._refs[number] for number in sorted(self._refs)),
        )
        await self._archive.log.append(entry)
        return entry

    async def _begin_part(self) -> tuple[int, Sealer]:
        number, self._begun = self._begun, self._begun + 1
        return number, await self._archive.sealer(part_place(self._lsn, number))

    async def _store(self, number: int, sealer: Sealer) -> None:
        key = layout.snapshot_part(self._lsn, self._id, number)
        self._refs[number] = await self._archive.store_sealed(key, sealer)


@dataclass(frozen=True)
class _Catalog:
    tables: list[TableCopy]
    database: DatabaseInfo
    roles: Globals
    shown: ShownCatalog


async def _unhindered(read: Callable[[], Awaitable[T]], way: GivingWay, on_blocked: OnBlocked) -> T:
    """Read, once more where somebody was in the way. Raises InTheWay where somebody always is."""
    for attempt in itertools.count():
        way.grace = grace_at(attempt)
        try:
            return await read()
        except PostgresError as exc:
            waiters = way.take_waiters()
            if attempt == TRIES or not (waiters or isinstance(exc, InTheWay)):
                raise
            on_blocked(waiters or await way.holders())
            await asyncio.sleep(pause_after(attempt).total_seconds())
    raise AssertionError("unreachable")


async def _clock(conn: Conn) -> datetime:
    time: datetime
    [(time,)] = await fetch(conn, "SELECT pg_catalog.clock_timestamp()")
    return time
