"""Restore: a plan, then an empty database becomes the source as it was at the recovery target.

In: an archive, a plan (archiver.recovery_plan), and a connection string. Each step is recorded in the target in its
own transaction, so that an interrupted restore goes on where it stopped. Nothing of an object is used before all of
it is verified. What cannot be reached exactly is an error.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import Any, LiteralString

import psycopg
import structlog

from archiver.archive import OpenArchive
from archiver.format import dump, dump_roles, segment
from archiver.format.dump_roles import Skipped
from archiver.format.manifest import Changes, CommitRef, ObjectRef
from archiver.format.seal import inflate
from archiver.lsn import Lsn
from archiver.policy.sequence_log import SequenceStates
from archiver.policy.target import Plan
from archiver.policy.transactions import SourceTransaction, TransactionAssembler
from archiver.postgres import always_triggers, load
from archiver.postgres.apply import Applier
from archiver.postgres.ddl_replay import DdlReplay
from archiver.postgres.sequences import SequenceState, raise_to_columns, set_sequences
from archiver.postgres.session import connect, postgres_error
from archiver.recovery_plan import fetch_segment, identity, settle
from archiver.snapshots import Index, IndexedTable, part_place, read_index
from archiver.tasks import task_group

COMMIT_ROWS = 200_000  # changes of the source in one transaction of the target
READ_AHEAD = 2  # change segments fetched and verified while one is replayed

Progress = Callable[[str, int, int], None]
"""Called with the phase, and what of it is done and to be done: bytes when loading, segments when replaying."""

log = structlog.get_logger()


@dataclass(slots=True)
class Summary:
    """What a restore did; `warnings` are things that the operator must know and may want to mend."""

    last_commit: CommitRef | None = None
    tables: int = 0
    rows_loaded: int = 0
    transactions_replayed: int = 0
    resumed: bool = False
    phases: dict[str, timedelta] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


async def run_restore(
    archive: OpenArchive, plan: Plan, dsn: str, *, jobs: int = 2, progress: Progress | None = None
) -> Summary:
    """Carry the plan out in an empty database, or go on with one that was interrupted."""
    work = _Restore(archive, plan, dsn, jobs, progress or (lambda _phase, _done, _total: None))
    return await work.run()


class _Restore:
    def __init__(self, archive: OpenArchive, plan: Plan, dsn: str, jobs: int, progress: Progress) -> None:
        self._archive = archive
        self._plan = plan
        self._dsn = dsn
        self._jobs = jobs
        self._progress = progress
        self._summary = Summary(last_commit=plan.last_commit)
        self._sequences = SequenceStates()

    async def run(self) -> Summary:
        conn = await connect(self._dsn, purpose="restore")
        try:
            await load.claim(conn)
            self._plan, self._summary.resumed = await settle(self._archive, self._plan, conn)
            index = await read_index(self._archive, self._plan.snapshot)
            self._summary.last_commit = self._plan.last_commit
            self._summary.tables = len(index.tables)
            self._summary.rows_loaded = self._plan.snapshot.rows
            script = await self._script(conn, index)
            phases = {
                "schema": self._create_schema,
                "rows": self._load_rows,
                "keys": self._create_keys,
                "constraints": self._create_late,
                "replay": self._replay,
                "sequences": self._set_sequences,
                "finish": self._finish,
            }
            for name, phase in phases.items():
                started = monotonic()
                await phase(conn, index, script)
                self._summary.phases[name] = timedelta(seconds=monotonic() - started)
            await load.drop_progress(conn)
            self._warn(index, script)
        finally:
            await conn.close()
        return self._summary

    async def _script(self, conn: psycopg.AsyncConnection[Any], index: Index) -> dump.Script:
        """The archived schema, fitted to the target's version and roles."""
        entries = dump.split(index.schema)
        script = dump.for_restore(entries, publication=index.publication, target_major=await load.target_major(conn))
        roles, owners = await load.existing_roles(conn), await load.possible_owners(conn)
        steps: dict[str, list[dump.Entry]] = {}
        for step in ("pre", "keys", "late"):
            steps[step], skipped = dump_roles.for_target(getattr(script, step), roles, owners=owners)
            self._skip(skipped)
        return dump.Script(script.preamble, **steps)

    async def _done(self, conn: psycopg.AsyncConnection[Any]) -> dict[str, Any]:
        return await load.read_progress(conn) or {}

    # --- base snapshot ---

    async def _create_schema(self, conn: psycopg.AsyncConnection[Any], index: Index, script: dump.Script) -> None:
        if await load.read_progress(conn) is not None:
            return
        async with load.transaction(conn, "schema"):
            if not index.database.has_public_schema:
                await load.drop_public_schema(conn)
            self._skip(await load.run_script(conn, script.preamble, script.pre))
            await load.create_progress(conn)
            await self._record(conn, restore=identity(self._plan, self._archive))

    async def _load_rows(self, conn: psycopg.AsyncConnection[Any], index: Index, _script: dump.Script) -> None:
        done = await self._done(conn)
        refs = self._plan.snapshot.parts
        total = sum(ref.size for ref in refs[1:])
        loaded = {int(key.removeprefix("part ")) for key in done if key.startswith("part ")}
        finished = sum(refs[number].size for number in loaded)
        queue = [(table, number) for table in index.tables for number in table.parts if number not in loaded]
        queue.sort(key=lambda item: refs[item[1]].size)

        async def work() -> None:
            nonlocal finished
            async with await connect(self._dsn, purpose="restore") as worker:
                while queue:
                    table, number = queue.pop()
                    await self._load_part(worker, table, number, refs[number])
                    finished += refs[number].size
                    self._progress("rows", finished, total)

        async with task_group() as group:
            for number in range(min(self._jobs, len(queue))):
                group.create_task(work(), name=f"load job {number}")

    async def _load_part(
        self, conn: psycopg.AsyncConnection[Any], table: IndexedTable, number: int, ref: ObjectRef
    ) -> None:
        body = await self._archive.fetch(ref, part_place(self._plan.snapshot.lsn, number))

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in inflate(body, ref.raw_bytes):
                yield chunk

        async with load.transaction(conn, table.info.label):
            info = table.info
            await load.copy_in(conn, info.schema, info.name, info.columns, chunks())
            await self._record(conn, **{f"part {number}": True})

    async def _create_keys(self, conn: psycopg.AsyncConnection[Any], _index: Index, script: dump.Script) -> None:
        self._progress("keys", 0, 1)
        await self._run_once(conn, "keys", script.preamble, script.keys)
        self._progress("keys", 1, 1)

    async def _create_late(self, conn: psycopg.AsyncConnection[Any], index: Index, script: dump.Script) -> None:
        """Before replay, whose DDL may concern them; where foreign keys cannot be silenced, after it (`_finish`)."""
        if await always_triggers.may_silence(conn):
            await self._run_once(conn, "late", script.preamble, script.late)
        if "views" not in await self._done(conn):  # a REFRESH in the stream has its own moment
            views = [(schema, name) for schema, name, populated in index.database.materialized_views if populated]
            self._skip(await load.refresh_views(conn, views))
            await self._record(conn, views=True)

    async def _finish(self, conn: psycopg.AsyncConnection[Any], index: Index, script: dump.Script) -> None:
        await self._run_once(conn, "late", script.preamble, script.late)
        await always_triggers.lift_all(conn)
        self._skip(await load.apply_settings(conn, index.database.settings, await load.existing_roles(conn)))
        await self._execute(conn, "ANALYZE")

    async def _execute(self, conn: psycopg.AsyncConnection[Any], statement: LiteralString) -> None:
        try:
            await conn.execute(statement)
        except psycopg.Error as exc:
            raise postgres_error(exc, statement) from exc

    async def _run_once(
        self, conn: psycopg.AsyncConnection[Any], step: str, preamble: dump.Entry, entries: Sequence[dump.Entry]
    ) -> None:
        if step in await self._done(conn):
            return
        async with load.transaction(conn, f"step {step}"):
            self._skip(await load.run_script(conn, preamble, entries))
            await self._record(conn, **{step: True})

    # --- replay ---

    async def _replay(self, conn: psycopg.AsyncConnection[Any], index: Index, _script: dump.Script) -> None:
        done = await self._done(conn)
        replayed = done.get("replay", {})
        after = Lsn.parse(replayed["lsn"]) if replayed else self._plan.snapshot.lsn
        self._sequences = SequenceStates(replayed.get("sequences", index.sequences))
        first = int(replayed.get("segment", 0))
        self._summary.transactions_replayed = int(replayed.get("transactions", 0))
        assembler = TransactionAssembler(after=after, stop=self._plan.stop, spool=_spool)
        segments = [changes for changes in self._plan.segments if changes.ordinal >= first]
        worker = await connect(self._dsn, purpose="replay")
        try:
            ddl = await DdlReplay.open(worker, index.publication)
            applier = await Applier.open(worker, on_message=ddl.handlers)
            ddl.attach(applier)
            session = None
            async with aclosing(self._read_ahead(segments)) as bodies:
                number = 0
                async for changes, body, raw_bytes in bodies:
                    if session not in {None, _session(changes)}:
                        assembler.start_session()
                    session = _session(changes)
                    assembler.begin_segment(changes.ordinal)
                    await self._replay_segment(assembler, applier, ddl, inflate(body, raw_bytes))
                    number += 1
                    self._progress("replay", number, len(segments))
            await applier.commit(self._note_progress)
            self._skip(ddl.left_out)
        finally:
            await worker.close()

    async def _replay_segment(
        self, assembler: TransactionAssembler, applier: Applier, ddl: DdlReplay, pieces: Iterator[bytes]
    ) -> None:
        for record in segment.read_records(pieces):
            match record:
                case segment.Relation(xid, message):
                    assembler.preamble(xid, message)
                case segment.Context(xid):
                    assembler.context(xid)
                case segment.Sequences(states):
                    self._sequences.fold(states)
                case message:
                    transaction = assembler.feed(message)
                    if transaction is not None:
                        await applier.apply(transaction)
                        self._summary.transactions_replayed += 1
                        if applier.uncommitted_rows >= COMMIT_ROWS or ddl.commit_wanted:
                            await applier.commit(self._note_progress)
                            ddl.committed()

    async def _note_progress(self, cursor: psycopg.AsyncCursor[Any], last: SourceTransaction) -> None:
        await load.write_progress(
            cursor,
            replay={
                "lsn": str(last.end_lsn),
                "segment": last.resume_segment,
                "transactions": self._summary.transactions_replayed,
                "sequences": self._sequences.all(),
            },
        )

    async def _read_ahead(self, segments: Sequence[Changes]) -> AsyncGenerator[tuple[Changes, bytes, int], None]:
        """Fetch and verify the next segments while one is replayed."""
        waiting: list[asyncio.Task[tuple[bytes, int]]] = []
        try:
            for number, changes in enumerate(segments):
                for following in segments[number + len(waiting) : number + 1 + READ_AHEAD]:
                    fetch = fetch_segment(self._archive, following)
                    waiting.append(asyncio.create_task(fetch, name=f"fetch segment {following.ordinal}"))
                body, raw_bytes = await waiting.pop(0)
                yield changes, body, raw_bytes
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _set_sequences(self, conn: psycopg.AsyncConnection[Any], _index: Index, _script: dump.Script) -> None:
        states = [SequenceState.from_json(state) for state in self._sequences.all()]
        await set_sequences(conn, states)
        await raise_to_columns(conn)

    # --- reporting ---

    async def _record(self, conn: psycopg.AsyncConnection[Any], **values: Any) -> None:
        async with conn.cursor() as cursor:
            await load.write_progress(cursor, **values)

    def _skip(self, skipped: Sequence[Skipped]) -> None:
        self._summary.warnings += [f"{item.entry} left out: {item.reason}" for item in skipped]

    def _warn(self, index: Index, script: dump.Script) -> None:
        archived = {table.info.label for table in index.tables}
        for entry in script.pre:
            if dump.holds_rows(entry) and f"{entry.schema}.{entry.name}" not in archived:
                label = f"{entry.schema}.{entry.name}"
                self._summary.warnings.append(f"table {label} is not archived: it was restored without rows")
        for schema, name in index.database.unlogged_tables:
            self._summary.warnings.append(f"unlogged table {schema}.{name} is empty: its rows are never archived")
        if index.database.large_objects:
            self._summary.warnings.append(f"{index.database.large_objects} large objects are not archived")


def _session(changes: Changes) -> object:
    assert changes.object is not None
    return changes.object.writer, changes.connection


def _spool() -> Any:
    return tempfile.TemporaryFile()
