"""Replay: change segments of an archive in, their transactions in the target out, up to where the plan stops.

In: a plan, what an interrupted replay recorded, and a connection to a database that holds the base snapshot. How far it
has come is recorded in the target, in the transactions of the rows. Nothing of a segment is used before all of it
is verified; the next ones are fetched meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, Final

import psycopg

from archiver.archive import OpenArchive
from archiver.format import segment
from archiver.format.ddl import first_line
from archiver.format.dump_roles import Skipped
from archiver.format.manifest import Changes
from archiver.format.seal import inflate
from archiver.lsn import Lsn
from archiver.policy.sequence_log import SequenceStates
from archiver.policy.target import Plan
from archiver.policy.transactions import SourceTransaction, TransactionAssembler
from archiver.postgres import load
from archiver.postgres.apply import Applier
from archiver.postgres.ddl_replay import DdlReplay
from archiver.postgres.renames import Renames
from archiver.recovery_plan import fetch_segment
from archiver.snapshots import Index

COMMIT_ROWS = 200_000  # changes of the source in one transaction of the target
READ_AHEAD: Final = 2  # change segments fetched and verified while one is replayed
_RECORDS_AT_ONCE: Final = 1000  # between two turns of what is being written; some milliseconds
_NEW_OBJECTS: Final = 200_000  # between two searches for cycles: rows are none, and looking cost a quarter of the time

Done = Callable[[int, int], None]
"""Called with the number of segments replayed and to be replayed."""


class Replay:
    """One replay. `done` is what `write_progress` recorded as `replay`, or None.

    Afterwards `sequences` holds the states at the target and `transactions` counts those of the source; `left_out`,
    and the `missing` roles that made it so, are for the report.
    """

    def __init__(self, archive: OpenArchive, plan: Plan, index: Index, done: dict[str, Any] | None) -> None:
        done = done or {}
        self.sequences = SequenceStates(done.get("sequences", index.sequences))
        self.transactions = int(done.get("transactions", 0))
        self.left_out: Sequence[Skipped] = [Skipped(*item) for item in done.get("left_out", ())]
        self.missing = frozenset[str](done.get("missing", ()))
        self._renames = Renames(done.get("renames", ()))
        self._archive = archive
        self._publication = index.publication
        self._without_rows = index.without_rows
        first = int(done.get("segment", 0))
        self._segments = [changes for changes in plan.segments if changes.ordinal >= first]
        after = Lsn.parse(done["lsn"]) if done else plan.snapshot.lsn
        self._stop = plan.stop
        self._reaches_target = False
        self._assembler = TransactionAssembler(after=after, stop=plan.stop, spool=_spool)

    async def run(self, conn: psycopg.AsyncConnection[Any], on_segment: Done) -> None:
        """Replay all segments and commit. Raises IntegrityError, PostgresError."""
        ddl = await DdlReplay.open(conn, self._publication)
        ddl.runner.left_out, ddl.runner.missing = list(self.left_out), set(self.missing)
        ddl.renames = self._renames
        with _few_searches_for_cycles():
            async with Applier.open(
                conn,
                on_entry=ddl.handlers,
                concerns=ddl.concerns,
                before_rows=ddl.before_rows,
                renames=self._renames,
                left_out=self._without_rows,
            ) as applier:
                ddl.attach(applier)
                await self._run(applier, ddl, on_segment)
        self.left_out, self.missing = ddl.runner.left_out, frozenset(ddl.runner.missing)

    async def _run(self, applier: Applier, ddl: DdlReplay, on_segment: Done) -> None:
        session, number = None, 0
        async with aclosing(self._read_ahead()) as bodies:
            async for changes, body, raw_bytes in bodies:
                if session not in {None, _session(changes)}:
                    self._assembler.start_session()
                session = _session(changes)
                self._assembler.begin_segment(changes.ordinal)
                self._reaches_target = changes.end_lsn >= self._stop
                await self._replay_segment(applier, ddl, inflate(body, raw_bytes))
                number += 1
                on_segment(number, len(self._segments))
        await applier.commit(self._progress(ddl))

    async def _replay_segment(self, applier: Applier, ddl: DdlReplay, pieces: Iterator[bytes]) -> None:
        feed = self._assembler.feed
        for number, record in enumerate(segment.read_records(pieces)):
            if not number % _RECORDS_AT_ONCE:
                await asyncio.sleep(0)
            if not isinstance(record, bytes):
                self._note(record)
            elif (transaction := feed(record)) is not None:
                await self._replay_transaction(applier, ddl, transaction)

    async def _replay_transaction(self, applier: Applier, ddl: DdlReplay, transaction: SourceTransaction) -> None:
        """Many in one transaction of the target; but rows are committed before DDL.

        The server builds an index also over rows that its own transaction deleted, whatever is wrong with them.
        """
        if applier.has_uncommitted_rows and ddl.changes_schema(transaction):
            await self._commit(applier, ddl)
        await applier.apply(transaction)
        self.transactions += 1
        if applier.uncommitted_rows >= COMMIT_ROWS or ddl.commit_wanted:
            await self._commit(applier, ddl)

    async def _commit(self, applier: Applier, ddl: DdlReplay) -> None:
        await applier.start_commit(self._progress(ddl))
        ddl.committed()

    def _note(self, record: segment.Relation | segment.Sequences | segment.Context) -> None:
        match record:
            case segment.Relation(xid, message):
                self._assembler.preamble(xid, message)
            case segment.Context(xid):
                self._assembler.context(xid)
            case segment.Sequences(states):
                self.sequences.fold(states, after_target=self._reaches_target)

    def _progress(self, ddl: DdlReplay) -> partial[Any]:
        """Records how far the replay has come by now, and what a resumed one has to report."""
        return partial(
            _note_progress,
            transactions=self.transactions,
            sequences=self.sequences.all(),
            left_out=[[item.entry, item.reason, first_line(item.statement)] for item in ddl.runner.left_out],
            missing=sorted(ddl.runner.missing),
            renames=self._renames.to_json(),
        )

    async def _read_ahead(self) -> AsyncGenerator[tuple[Changes, bytes, int], None]:
        """Fetch and verify the next segments while one is replayed."""
        waiting: list[asyncio.Task[tuple[bytes, int]]] = []
        segments = self._segments
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


async def _note_progress(cursor: psycopg.AsyncCursor[Any], last: SourceTransaction, **counts: Any) -> None:
    place = {"lsn": str(last.end_lsn), "segment": last.resume_segment}
    await load.write_progress(cursor, replay=place | counts)


@contextmanager
def _few_searches_for_cycles() -> Iterator[None]:
    """Millions of rows come and go by their reference counts."""
    before = gc.get_threshold()
    gc.set_threshold(_NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _session(changes: Changes) -> object:
    assert changes.object is not None
    return changes.object.writer, changes.connection


def _spool() -> Any:
    return tempfile.TemporaryFile()
