"""Many row changes in, their net effect per table out; decides nothing about SQL and does no I/O.

A table whose rows have a key is KEYED: later changes to a row supersede earlier ones. A table without one is a
MULTISET: identical rows are counted. What cannot be expressed as a net effect (an update that changes the key
of a row of which a value is not known) becomes a run of single changes, in its place between net effects.
Changes that contradict each other (an update of a deleted row) raise IntegrityError: the stream is corrupt.

Only whole tables keep their order, tables among each other do not: neither foreign keys nor triggers fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, Literal

from archiver.errors import IntegrityError
from archiver.format.pgmessages import UNCHANGED, Delete, Insert, Relation, Row, RowMessage, Update, Value

DEFAULT_ROWS: Final = 100_000
DEFAULT_BYTES: Final = 64 << 20
_ROW_OVERHEAD: Final = 250  # of a message and its place in two containers, in CPython
_VALUE_OVERHEAD: Final = 45

Op = Literal["I", "U", "R", "D"]
INSERT: Final = "I"  # a new row
UPDATE: Final = "U"  # an existing row; values that are UNCHANGED stay
REPLACE: Final = "R"  # an existing row, deleted and inserted again
DELETE: Final = "D"  # an existing row; of the values only the key is known


@dataclass(frozen=True, slots=True)
class Shape:
    """How a table's rows are told apart: by the columns at `key`, or, when None, only by all their values."""

    relation: Relation
    key: tuple[int, ...] | None


class KeyedNet:
    """The net effect on a table with a key: at most one operation a row, in order of first appearance."""

    def __init__(self, shape: Shape) -> None:
        assert shape.key
        self._relation = shape.relation
        self._key_columns = shape.key
        self._key: Callable[[Row], Any] = itemgetter(*shape.key)
        self.pending: dict[Any, tuple[Op, Row]] = {}

    def __len__(self) -> int:
        return len(self.pending)

    def rows(self, *ops: Op) -> list[Row]:
        """Rows with one of these operations; of a DELETE the row is known in its key columns only."""
        return [row for op, row in self.pending.values() if op in ops]

    def add(self, change: RowMessage) -> bool:
        """Merge a change. False: nothing was done, it has to be applied singly after what is pending."""
        if type(change) is Insert:
            self._insert(self._key(change.new), change.new)
        elif type(change) is Update:
            return self._update(change)
        elif type(change) is Delete:
            self._delete(self._key(change.old), change.old)
        return True

    def _insert(self, key: Any, row: Row) -> None:
        before = self.pending.get(key)
        if before is None:
            self.pending[key] = (INSERT, row)
        elif before[0] == DELETE:
            self.pending[key] = (REPLACE, row)
        else:
            raise self._corrupt("a row was inserted twice")

    def _update(self, change: Update) -> bool:
        new, old = change.new, change.old
        if old is not None:
            new = fill(new, old) if change.old_full else _fill_key(new, old, self._key_columns)
            old_key = self._key(old)
            if old_key != self._key(new):
                return self._change_key(old_key, old, new)
        key = self._key(new)
        before = self.pending.get(key)
        if before is None:
            self.pending[key] = (UPDATE, new)
        elif before[0] == DELETE:
            raise self._corrupt("a deleted row was updated")
        else:
            self.pending[key] = (before[0], fill(new, before[1]))
        return True

    def _change_key(self, old_key: Any, old: Row, new: Row) -> bool:
        """To move a row to another key is to delete it and insert it, if all of it is known."""
        before = self.pending.get(old_key)
        if before is not None and before[0] != DELETE:
            new = fill(new, before[1])
        if UNCHANGED in new:
            return False
        self._delete(old_key, old)
        self._insert(self._key(new), new)
        return True

    def _delete(self, key: Any, row: Row) -> None:
        before = self.pending.get(key)
        if before is None:
            self.pending[key] = (DELETE, row)
        elif before[0] == INSERT:
            del self.pending[key]
        elif before[0] == DELETE:
            raise self._corrupt("a row was deleted twice")
        else:
            self.pending[key] = (DELETE, row)

    def _corrupt(self, what: str) -> IntegrityError:
        # The key's value may be personal data, so it does not go into messages.
        columns = ", ".join(self._relation.columns[column].name for column in self._key_columns)
        return IntegrityError(f"{what} in {self._relation}, by its key ({columns})")


class MultisetNet:
    """The net effect on a table without a key: how many of each row came or, below zero, went."""

    def __init__(self, shape: Shape) -> None:
        self._relation = shape.relation
        self.delta: dict[Row, int] = {}

    def __len__(self) -> int:
        return sum(map(abs, self.delta.values()))

    def inserted(self) -> Iterator[Row]:
        for row, count in self.delta.items():
            for _ in range(count):
                yield row

    def deleted(self) -> list[tuple[Row, int]]:
        return [(row, -count) for row, count in self.delta.items() if count < 0]

    def add(self, change: RowMessage) -> bool:
        if type(change) is Insert:
            self._count(change.new, 1)
        elif type(change) is Update:
            old = self._whole(change.old, change.old_full)
            self._count(old, -1)
            self._count(self._whole(fill(change.new, old), True), 1)
        elif type(change) is Delete:
            self._count(self._whole(change.old, change.old_full), -1)
        return True

    def _count(self, row: Row, by: int) -> None:
        count = self.delta.get(row, 0) + by
        if count:
            self.delta[row] = count
        else:
            del self.delta[row]

    def _whole(self, row: Row | None, full: bool) -> Row:
        if row is None or not full or UNCHANGED in row:
            raise IntegrityError(
                f"a change to {self._relation}, which has no key, came without the whole old row",
                hint="The table needs a primary key or REPLICA IDENTITY FULL at the source.",
            )
        return row


@dataclass(frozen=True, slots=True)
class NewRows:
    """Nothing but inserts: what would be inserted twice, the target's key refuses."""

    rows: list[Row]

    def __len__(self) -> int:
        return len(self.rows)


Phase = NewRows | KeyedNet | MultisetNet | list[RowMessage]


@dataclass(slots=True)
class TableBatch:
    """The changes to one table: `phases` one after the other, or `changes` one by one, come to the same."""

    shape: Shape
    changes: list[RowMessage] = field(default_factory=list)

    def phases(self) -> list[Phase]:
        """The net effect. Raises IntegrityError for changes that contradict each other."""
        rows = [change.new for change in self.changes if type(change) is Insert]
        if len(rows) == len(self.changes):
            return [NewRows(rows)]
        phases: list[Phase] = []
        net = self._new_net()
        for change in self.changes:
            if net.add(change):
                continue
            if len(net):
                phases.append(net)
                net = self._new_net()
                if net.add(change):
                    continue
            if phases and isinstance(phases[-1], list):
                phases[-1].append(change)
            else:
                phases.append([change])
        return [*phases, net] if len(net) else phases

    def _new_net(self) -> KeyedNet | MultisetNet:
        return KeyedNet(self.shape) if self.shape.key else MultisetNet(self.shape)


class Batch:
    """Pending changes of all tables, by relation id, up to a number of rows and an estimate of memory."""

    def __init__(self, *, max_rows: int = DEFAULT_ROWS, max_bytes: int = DEFAULT_BYTES) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self.tables: dict[int, TableBatch] = {}
        self.rows = 0
        self.bytes = 0

    @property
    def full(self) -> bool:
        return self.rows >= self._max_rows or self.bytes >= self._max_bytes

    def add(self, shape: Shape, change: RowMessage) -> None:
        """The caller flushes a table whose shape changes before it adds changes of the new shape."""
        oid = shape.relation.id
        table = self.tables.get(oid)
        if table is None:
            table = self.tables[oid] = TableBatch(shape)
        table.changes.append(change)
        self.rows += 1
        # An update may hold two rows.
        self.bytes += change.size + _ROW_OVERHEAD + 2 * _VALUE_OVERHEAD * len(shape.relation.columns)

    def drop(self, relation_id: int) -> None:
        """Forget the pending changes of a table, which is truncated. Their bytes count on: it is an estimate."""
        if (table := self.tables.pop(relation_id, None)) is not None:
            self.rows -= len(table.changes)

    def take(self) -> list[TableBatch]:
        """Hand over all pending changes and start anew."""
        taken = list(self.tables.values())
        self.tables = {}
        self.rows = self.bytes = 0
        return taken


def fill(new: Row, old: Row) -> Row:
    """A new row with the old one's values where the stream says that they did not change."""
    if UNCHANGED not in new:
        return new
    return tuple([before if value is UNCHANGED else value for value, before in zip(new, old, strict=True)])


def _fill_key(new: Row, old: Row, key: tuple[int, ...]) -> Row:
    """A key value that is TOASTed comes as UNCHANGED in the new row and whole in the old key."""
    if UNCHANGED not in new:
        return new
    filled: list[Value] = list(new)
    for column in key:
        if filled[column] is UNCHANGED:
            filled[column] = old[column]
    return tuple(filled)
