"""Replay: source transactions in, the same changes in the target out, many source transactions in one.

An Applier owns its connection while it lives. It commits only between source transactions and only when told, so
that the caller's progress row is in the same target transaction as what it speaks of. A change that
does not find its row raises IntegrityError: a restored state that diverged is never passed over in silence.

Within a target transaction changes gather in a Batch. A flush writes the net effect of each table: inserts by
COPY, updates and deletes by a join with staged rows. If that meets a constraint (two rows that swapped unique
values), the table is rolled back to the savepoint and its changes are applied one by one, in order. So it is where a
row holds an enum's label that was renamed before the row's commit: `renames` knows it.

The server writes one batch while the next is decoded: one task at a time uses the connection, and everything
else that needs it waits for that task first.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

import psycopg

from archiver.errors import IntegrityError, PostgresError
from archiver.format.journal import DDL, Entry
from archiver.format.pgmessages import Relation, RowMessage
from archiver.lsn import Lsn
from archiver.policy.batch import Batch, Phase, TableBatch
from archiver.policy.transactions import Change, SourceTransaction, Truncated
from archiver.postgres import apply_sql, search_path
from archiver.postgres.apply_rows import TableWriter, send_bytes_as_text
from archiver.postgres.renames import Renames
from archiver.postgres.session import postgres_error
from archiver.postgres.tables import look_up

EntryHandler = Callable[[psycopg.AsyncConnection[Any], Entry], Awaitable[None]]
Concerns = Callable[[Entry], bool]
BeforeRows = Callable[[], Awaitable[None]]
CommitHook = Callable[[psycopg.AsyncCursor[Any], SourceTransaction], Awaitable[None]]


async def _nothing() -> None:
    """Before rows, where no handler changes the schema."""


_TARGET: Final = "the target"
_CHANGES_AT_ONCE: Final = 1000  # some milliseconds of decoding; then what is being written gets its turn
_NO_ROWS: Final = (Truncated, Entry)
# Beside the canonical session of archiver.postgres.session. Deferred constraints hold at source commits only,
# which is where the target commits too.
_SETTINGS: Final[Mapping[str, str]] = {
    "synchronous_commit": "off",
    "work_mem": "64MB",
    "temp_buffers": "64MB",
}


class _Work(NamedTuple):
    """What is to be written into one table."""

    writer: TableWriter
    phases: list[Phase]
    changes: list[RowMessage]


class Applier:
    """Applies source transactions in commit order. Make one with `async with Applier.open(conn) as applier`.

    Where the role may not keep triggers and foreign keys from firing, the caller sees to it that there are none that
    would. `on_entry` handles entries of the journal by their kind, after everything before them is written; it may
    change the schema, so what is known of tables is forgotten then. An entry that does not `concern` the handlers costs
    nothing of that. `before_rows` is called before rows are written, before a truncation
    and before a commit.

    The target holds `relations.CREATE`. Changes of relations that are `left_out`, by their OIDs at the source, are
    passed over.

    `skip_rows` is for handlers: while it is true, rows and truncations of this transaction are passed over.

    `uncommitted_rows` counts changes since the last commit, without those that are not flushed yet.
    """

    def __init__(
        self,
        conn: psycopg.AsyncConnection[Any],
        *,
        batch: Batch,
        on_entry: Mapping[str, EntryHandler],
        concerns: Concerns,
        before_rows: BeforeRows,
        renames: Renames,
        left_out: Set[int],
    ) -> None:
        self._conn = conn
        self._cursor = psycopg.AsyncRawCursor(conn)
        self._batch = batch
        self._on_entry = on_entry
        self._concerns = concerns
        self._before_rows = before_rows
        self._renames = renames
        self._left_out = left_out
        self._writers: dict[int, TableWriter] = {}
        self._stages = 0
        self._since = self._until = Lsn(0)
        self._deferred = False
        self._writing: asyncio.Task[None] | None = None
        self._current: SourceTransaction | None = None
        self._ahead: Sequence[Entry] | None = None
        self._last_tagged: dict[str, Lsn] | None = None
        self.skip_rows = False
        self.last: SourceTransaction | None = None
        self.uncommitted_rows = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        conn: psycopg.AsyncConnection[Any],
        *,
        batch: Batch | None = None,
        on_entry: Mapping[str, EntryHandler] | None = None,
        concerns: Concerns = lambda _: True,
        before_rows: BeforeRows = _nothing,
        renames: Renames | None = None,
        left_out: Set[int] = frozenset(),
    ) -> AsyncIterator[Applier]:
        """Prepare the session of a connection from `session.connect`. Raises PostgresError.

        At the end nothing of it uses the connection any more; what was not committed is the caller's to roll back.
        """
        try:
            await conn.set_autocommit(True)
            await _prepare(conn)
            await conn.set_autocommit(False)
        except psycopg.Error as exc:
            raise postgres_error(exc, _TARGET) from exc
        send_bytes_as_text(conn)
        applier = cls(
            conn,
            batch=batch or Batch(),
            on_entry=on_entry or {},
            concerns=concerns,
            before_rows=before_rows,
            renames=renames or Renames(),
            left_out=left_out,
        )
        try:
            yield applier
        finally:
            await applier._abandon()

    async def apply(self, transaction: SourceTransaction) -> None:
        """Take over all changes of one source transaction, flushing when the batch is full."""
        self._until = transaction.end_lsn
        self._current = transaction
        self._ahead = self._last_tagged = None
        self.skip_rows = False
        with self._errors():
            changes = transaction.changes()
            while part := list(islice(changes, _CHANGES_AT_ONCE)):
                await self._take(part)
                await asyncio.sleep(0)
        self.last = transaction
        transaction.close()

    def ddl_after(self, lsn: Lsn) -> Iterator[Entry]:
        """The entries about DDL that are still to come in the transaction that is being applied."""
        entries = self._ddl()
        return islice(entries, bisect_right(entries, lsn, key=lambda entry: entry.lsn), None)

    def last_tagged(self, tag: str) -> Lsn:
        """Where this transaction ran its last statement with this tag; 0/0 if it runs none."""
        if self._last_tagged is None:
            self._last_tagged = {str(entry.said.get("tag")): entry.lsn for entry in self._ddl()}
        return self._last_tagged.get(tag, Lsn(0))

    def _ddl(self) -> Sequence[Entry]:
        """Read once a transaction, however many statements look ahead."""
        if self._ahead is None:
            found = self._current.entries() if self._current else ()
            self._ahead = [entry for entry in found if entry.kind == DDL]
        return self._ahead

    async def flush(self) -> None:
        """Write all pending changes. Raises IntegrityError, PostgresError."""
        await self._hand_over()
        await self._settle()

    async def commit(self, record: CommitHook) -> None:
        """Flush, let `record` write the caller's progress, commit. Without a transaction nothing happens."""
        await self.start_commit(record)
        await self._settle()

    async def start_commit(self, record: CommitHook) -> None:
        """A commit that the caller need not wait for: it comes before whatever it asks for next.

        `record` must know what it writes by now. An error is raised by one of the next calls.
        """
        if self.last is None:
            return
        await self._hand_over(record)
        self.uncommitted_rows = 0
        self.last = None

    @property
    def until(self) -> Lsn:
        """Where the source transaction ends that is being applied."""
        return self._until

    @property
    def has_uncommitted_rows(self) -> bool:
        """Whether there are changes since the last commit, flushed or not."""
        return self.uncommitted_rows > 0 or self._batch.rows > 0

    # --- changes that are rows

    async def _take(self, changes: Iterable[Change]) -> None:
        batch, writers = self._batch, self._writers
        for relation, change in changes:
            if isinstance(change, _NO_ROWS):
                await self._special(change)
            elif not self.skip_rows:
                writer = writers.get(relation.id)
                if writer is None or writer.relation is not relation:
                    if relation.id in self._left_out:
                        continue
                    writer = await self._writer(relation)
                batch.add(writer.shape, change)
                if batch.full:
                    await self._hand_over()

    # --- changes that are no rows

    async def _special(self, change: Truncated | Entry) -> None:
        if isinstance(change, Truncated):
            if not self.skip_rows:
                await self._truncate(change)
        elif self._concerns(change) and (handler := self._on_entry.get(change.kind)):
            await self.flush()
            await self._forget()
            await handler(self._conn, change)

    async def _truncate(self, change: Truncated) -> None:
        """What is pending for these tables has no effect any more; what is for others stays pending."""
        relations = [relation for relation in change.relations if relation.id not in self._left_out]
        if not relations:
            return
        for relation in relations:
            self._batch.drop(relation.id)
        await self._settle()
        await self._before_rows()
        tables = [await look_up(self._cursor, relation) for relation in relations]
        async with search_path.of_users(self._conn):
            await self._cursor.execute(apply_sql.truncate(tables, restart_identity=change.restart_identity))

    # --- tables

    async def _writer(self, relation: Relation) -> TableWriter:
        """The writer of a relation that is new, or that the stream has described again."""
        known = self._writers.get(relation.id)
        if known is not None and known.relation == relation:
            known.relation = relation
            return known
        if known is not None or any(str(each.relation) == str(relation) for each in self._writers.values()):
            await self.flush()
            await self._forget()
        await self._settle()
        self._stages += 1
        table = await look_up(self._cursor, relation)
        writer = TableWriter(self._conn, table, f"archiver_stage_{self._stages}")
        self._writers[relation.id] = writer
        return writer

    async def _forget(self) -> None:
        for writer in self._writers.values():
            await writer.forget()
        self._writers.clear()

    # --- writing

    async def _hand_over(self, record: CommitHook | None = None) -> None:
        """Start to write what is pending, and to commit if there is a record, behind what is being written."""
        rows = self._batch.rows
        work = [self._work_of(table) for table in self._batch.take()]
        await self._settle()
        commit = (record, self.last) if record and self.last else None
        self._writing = asyncio.create_task(self._write_all(work, self._span(), commit), name="write changes")
        self.uncommitted_rows += rows
        self._since = self._until

    def _work_of(self, table: TableBatch) -> _Work:
        with self._errors(f"{table.shape.relation}, {self._span()}"):
            return _Work(self._writers[table.shape.relation.id], table.phases(), table.changes)

    async def _settle(self) -> None:
        """Wait for what is being written; raise what it raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    async def _abandon(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write_all(
        self,
        work: Sequence[_Work],
        span: str,
        commit: tuple[CommitHook, SourceTransaction] | None,
    ) -> None:
        if not work and commit is None:
            return
        await self._before_rows()
        with self._errors(f"{_TARGET}, {span}"):
            async with search_path.of_users(self._conn):
                await self._write_tables(work, span)
                if commit is not None:  # where deferred constraints look at their rows
                    await self._commit(*commit)

    async def _write_tables(self, work: Sequence[_Work], span: str) -> None:
        for table in work:
            with self._errors(f"{table.writer.relation}, {span}"):
                await self._write(table)
                if table.writer.guarded:  # which leaves the session without a path
                    await self._conn.execute(search_path.enter(self._conn))

    async def _commit(self, record: CommitHook, last: SourceTransaction) -> None:
        async with self._conn.cursor() as cursor:
            await record(cursor, last)
        await self._conn.commit()
        self._deferred = False

    async def _write(self, table: _Work) -> None:
        if not self._deferred:
            await self._cursor.execute("SET CONSTRAINTS ALL DEFERRED")
            self._deferred = True
        await table.writer.prepare(table.phases)
        try:
            async with self._conn.transaction():  # a savepoint: the transaction has begun above or earlier
                await table.writer.write(table.phases)
        except (psycopg.IntegrityError, psycopg.errors.InvalidTextRepresentation):
            await self._write_singly(table)

    async def _write_singly(self, table: _Work) -> None:
        """Two rows may have swapped unique values, which the net effect cannot show; or a label has its old name."""
        try:
            async with self._conn.transaction():
                await table.writer.write_singly(table.changes)
        except psycopg.errors.InvalidTextRepresentation:
            for change in table.changes:
                await self._renames.with_its_labels(self._conn, partial(table.writer.write_singly, [change]))

    @contextmanager
    def _errors(self, where: str | None = None) -> Iterator[None]:
        """Errors leave with the place: the table, and the LSNs between which the change lies."""
        try:
            yield
        except psycopg.Error as exc:
            raise postgres_error(exc, where or f"{_TARGET}, {self._span()}") from exc
        except (IntegrityError, PostgresError) as exc:
            exc.where = exc.where or where or f"{_TARGET}, {self._span()}"
            raise

    def _span(self) -> str:
        return f"changes of {self._since} to {self._until}"


async def _prepare(conn: psycopg.AsyncConnection[Any]) -> None:
    """Set the session; triggers and foreign keys stay silent where the role may say so."""
    cursor = psycopg.AsyncRawCursor(conn)
    for name, value in _SETTINGS.items():
        await cursor.execute("SELECT pg_catalog.set_config($1, $2, false)", [name, value])
    # Values of a database without an encoding are passed on as they are.
    await cursor.execute("SELECT pg_catalog.current_setting('server_encoding') = 'SQL_ASCII'")
    if await cursor.fetchone() == (True,):
        await cursor.execute("SET client_encoding = 'SQL_ASCII'")
    with suppress(psycopg.errors.InsufficientPrivilege):
        await cursor.execute("SET session_replication_role = replica")
