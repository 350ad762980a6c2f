"""Writes the changes of one table into the target: as a net effect, or one by one.

Every UPDATE and DELETE is counted: one that finds fewer or more rows than it must raises IntegrityError. psycopg's
errors pass through; the caller owns transaction and savepoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from operator import itemgetter
from typing import Any, Final

import psycopg
from psycopg.adapt import Dumper

from archiver.errors import IntegrityError
from archiver.format.pgmessages import UNCHANGED, Delete, Insert, Row, RowMessage, Update
from archiver.policy.batch import DELETE, INSERT, REPLACE, UPDATE, KeyedNet, MultisetNet, NewRows, Phase, Shape, fill
from archiver.postgres import run_as
from archiver.postgres.apply_sql import Statements
from archiver.postgres.copytext import blocks
from archiver.postgres.spelled import MARKER, inserts, spell
from archiver.postgres.tables import Table
from archiver.postgres.users_code import Guarded

_FEW: Final = 16  # up to here single statements in one round trip save the five that staging takes
_PIPELINE: Final = 500  # statements between two round trips

Values = tuple[Any, ...]
Single = tuple[bytes, Values]


class _TextDumper(Dumper):
    """A value of the stream as a parameter: text of a type that the statement determines."""

    def dump(self, obj: Any) -> bytes:
        value: bytes = obj
        return value


def send_bytes_as_text(conn: psycopg.AsyncConnection[Any]) -> None:
    """From now on `bytes` parameters on this connection are values in text format, not bytea."""
    conn.adapters.register_dumper(bytes, _TextDumper)


class TableWriter:
    """Writes one table. `stage` is a name for its staging table that no other writer uses."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], table: Table, stage: str) -> None:
        self.relation = table.shape.relation
        self.shape: Shape = table.shape
        self._conn = conn
        self._cursor = psycopg.AsyncRawCursor(conn)
        self._written = table.written
        self._key = table.shape.key or ()
        self._narrowing = table.narrowing
        self._write_of = _picker(self._written)
        self._key_of = _picker(self._key)
        self.guarded = table.guarded
        self._statements = Statements(table, stage, MARKER) if table.guarded else Statements(table, stage)
        self._update_one = cache(self._statements.update_one)
        self._staged: int | None = None

    # --- net effects

    async def write(self, phases: Iterable[Phase]) -> None:
        """Apply the phases of a batch."""
        for phase in phases:
            if self.guarded and not isinstance(phase, list):
                await self._write_guarded(self.guarded, phase)
            elif isinstance(phase, list):
                await self.write_singly(phase)
            elif len(phase) <= _FEW:
                await self._write_few(phase)
            elif isinstance(phase, NewRows):
                await self._copy(self._statements.copy(), map(self._write_of, phase.rows))
            elif isinstance(phase, KeyedNet):
                await self._write_keyed(phase)
            else:
                await self._write_multiset(phase)

    async def prepare(self, phases: Iterable[Phase]) -> None:
        """Make what `write` needs; outside of a savepoint, so that it outlives a rollback to it."""
        calls = run_as.calls(self._conn)
        if self._staged != calls and not self.guarded and any(map(_needs_stage, phases)):
            await self._cursor.execute(self._statements.drop_stage())  # it is back after a rollback
            await self._cursor.execute(self._statements.create_stage())
            self._staged = calls

    async def forget(self) -> None:
        """Drop the staging table, which would keep the table's types from being changed."""
        if self._staged is not None:
            await self._cursor.execute(self._statements.drop_stage())
            self._staged = None

    async def write_singly(self, changes: Iterable[RowMessage]) -> None:
        """Apply changes one by one in their order, many in a round trip."""
        await self._run(single for change in changes for single in self._singles(change))

    async def _write_few(self, phase: NewRows | KeyedNet | MultisetNet) -> None:
        """Rows that only a scan finds are found by one scan together."""
        if isinstance(phase, MultisetNet) and (gone := phase.deleted()):
            statement, values = self._delete_few(gone)
            # By an index of that column if there is one: without statistics the planner would read the table.
            await self._cursor.execute("SET LOCAL enable_seqscan = off")
            await self._counted(statement, sum(copies for _, copies in gone), values)
            await self._cursor.execute("SET LOCAL enable_seqscan = DEFAULT")
        await self._run(self._singles_of(phase))

    async def _write_guarded(self, guarded: Guarded, phase: NewRows | KeyedNet | MultisetNet) -> None:
        """Without staging: as the table's owner, who reads values spelled out."""
        if isinstance(phase, MultisetNet):
            gone = iter(phase.deleted())
            while some := list(islice(gone, _FEW)):
                statement, values = self._delete_few(some)
                [found] = await guarded.run(self._conn, [spell(statement, values)])
                self._check(found, sum(copies for _, copies in some))
            new: Iterable[Row] = phase.inserted()
        else:
            new = phase.rows if isinstance(phase, NewRows) else phase.rows(INSERT, REPLACE)
        if isinstance(phase, KeyedNet):
            await self._run(self._changed(phase))
        columns = [self.relation.columns[at].name for at in self._written]
        for insert in inserts(guarded.table, columns, map(self._write_of, new)):
            await guarded.run(self._conn, [insert])

    def _delete_few(self, gone: Sequence[tuple[Row, int]]) -> Single:
        values = tuple(value for row, copies in gone for value in (*self._write_of(row), b"%d" % copies))
        return self._statements.delete_few_copies(len(gone), self._narrow(gone)), values

    async def _write_keyed(self, net: KeyedNet) -> None:
        """Deletes first: they make room for unique values that updates and inserts take."""
        if gone := net.rows(DELETE, REPLACE):
            await self._stage(self._key, map(self._key_of, gone))
            await self._joined(self._statements.delete_staged(), len(gone))
        for columns, rows in self._by_columns(net.rows(UPDATE)).items():
            staged = (*self._key, *columns)
            await self._stage(staged, map(_picker(staged), rows))
            await self._joined(self._statements.update_staged(columns), len(rows))
        if new := net.rows(INSERT, REPLACE):
            await self._copy(self._statements.copy(), map(self._write_of, new))

    async def _write_multiset(self, net: MultisetNet) -> None:
        if gone := net.deleted():
            rows = ((*self._write_of(row), b"%d" % copies) for row, copies in gone)
            await self._stage(self._written, rows, copies=True)
            statement = self._statements.delete_staged_copies(self._narrow(gone))
            await self._counted(statement, sum(copies for _, copies in gone))
        await self._copy(self._statements.copy(), map(self._write_of, net.inserted()))

    def _narrow(self, gone: Sequence[tuple[Row, int]]) -> int | None:
        """The best column to look by that none of these rows has a null in."""
        return next((at for at in self._narrowing if all(row[at] is not None for row, _ in gone)), None)

    def _by_columns(self, rows: Iterable[Row]) -> dict[tuple[int, ...], list[Row]]:
        """Updates by the columns they set. One that sets none (all else unchanged) is nothing to do."""
        settable = tuple(at for at in self._written if at not in self._key)
        groups: dict[tuple[int, ...], list[Row]] = {settable: []}
        whole = groups[settable].append
        for row in rows:
            if UNCHANGED in row:
                columns = tuple(at for at in settable if row[at] is not UNCHANGED)
                groups.setdefault(columns, []).append(row)
            else:
                whole(row)
        return {columns: group for columns, group in groups.items() if columns and group}

    async def _stage(self, columns: Sequence[int], rows: Iterable[Values], *, copies: bool = False) -> None:
        await self._cursor.execute(self._statements.clear_stage())
        await self._copy(self._statements.copy_stage(columns, copies=copies), rows)

    async def _copy(self, statement: bytes, rows: Iterable[Values]) -> None:
        async with self._cursor.copy(statement) as copy:
            for block in blocks(rows):
                await copy.write(block)

    async def _joined(self, statement: bytes, expected: int) -> None:
        """By the key's index: the planner may prefer to read the whole table and hash it, which takes longer."""
        await self._cursor.execute("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off")
        await self._counted(statement, expected)
        await self._cursor.execute("SET LOCAL enable_hashjoin = DEFAULT; SET LOCAL enable_mergejoin = DEFAULT")

    async def _counted(self, statement: bytes, expected: int, values: Values = ()) -> None:
        await self._cursor.execute(statement, values)
        self._check(self._cursor.rowcount, expected)

    def _check(self, found: int, expected: int) -> None:
        if found != expected:
            raise IntegrityError(
                f"the restored state diverged: {expected} rows of {self.relation} change, {found} were found",
                hint="Restore into an empty database; if that is what happened, run: archiver verify --read-data.",
            )

    # --- single changes

    async def _run(self, singles: Iterable[Single]) -> None:
        """Each statement must hit exactly one row."""
        iterator = iter(singles)
        while part := list(islice(iterator, _PIPELINE)):
            if self.guarded:
                for found in await self.guarded.run(self._conn, [spell(*single) for single in part]):
                    self._check(found, 1)
                continue
            async with self._conn.pipeline():
                cursors = [await self._send(statement, values) for statement, values in part]
            for cursor in cursors:
                self._check(cursor.rowcount, 1)

    async def _send(self, statement: bytes, values: Values) -> psycopg.AsyncRawCursor[Any]:
        cursor = psycopg.AsyncRawCursor(self._conn)
        return await cursor.execute(statement, values)

    def _singles_of(self, net: NewRows | KeyedNet | MultisetNet) -> Iterator[Single]:
        if isinstance(net, NewRows):
            yield from map(self._insert, net.rows)
        elif isinstance(net, KeyedNet):
            yield from self._changed(net)
            yield from map(self._insert, net.rows(INSERT, REPLACE))
        elif isinstance(net, MultisetNet):
            yield from map(self._insert, net.inserted())

    def _changed(self, net: KeyedNet) -> Iterator[Single]:
        for row in net.rows(DELETE, REPLACE):
            yield self._statements.delete_one(), self._key_of(row)
        for columns, rows in self._by_columns(net.rows(UPDATE)).items():
            pick = _picker((*columns, *self._key))
            yield from ((self._update_one(columns), pick(row)) for row in rows)

    def _singles(self, change: RowMessage) -> Iterator[Single]:
        if type(change) is Insert:
            yield self._insert(change.new)
        elif type(change) is Delete:
            yield self._delete(change.old)
        elif type(change) is Update and self._key:
            yield from self._update(change)
        elif type(change) is Update and change.old is not None:
            yield self._delete(change.old)
            yield self._insert(fill(change.new, change.old))

    def _insert(self, row: Row) -> Single:
        return self._statements.insert_one(), self._write_of(row)

    def _delete(self, row: Row) -> Single:
        if self._key:
            return self._statements.delete_one(), self._key_of(row)
        return self._statements.delete_one_copy(), self._write_of(row)

    def _update(self, change: Update) -> Iterator[Single]:
        """Key columns are set only if they change: UPDATE may not set GENERATED ALWAYS AS IDENTITY columns."""
        new, old = change.new, change.old or change.new
        columns = tuple(
            at for at in self._written if new[at] is not UNCHANGED and not (at in self._key and new[at] == old[at])
        )
        if columns:
            yield self._update_one(columns), (*(new[at] for at in columns), *self._key_of(old))


def _needs_stage(phase: Phase) -> bool:
    if isinstance(phase, list | NewRows) or len(phase) <= _FEW:
        return False
    if isinstance(phase, MultisetNet):
        return any(count < 0 for count in phase.delta.values())
    return any(op != INSERT for op, _ in phase.pending.values())


def _picker(columns: Sequence[int]) -> Callable[[Row], Values]:
    """itemgetter that gives a tuple for any number of columns."""
    if len(columns) >= 2:
        return itemgetter(*columns)
    if not columns:
        return lambda _: ()
    (at,) = columns
    return lambda row: (row[at],)
