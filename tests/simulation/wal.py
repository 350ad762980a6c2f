"""A model of a database's WAL: the ledger's transactions as they are written, and what a walsender makes of them.

Transactions overlap, are small or large, have subtransactions that roll back, commit or abort. `Wal` is what was written;
a `Decoder` is one session of logical decoding with pgoutput (protocol 2, streaming), as the server does it: nothing of
a transaction that had committed at the start, all of every other one, streamed ones again from their beginning.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from archiver.format import pgoutput as p
from archiver.lsn import Lsn
from tests.pgoutput_encoder import encode
from tests.unit.frames import keepalive, wal

_PAGE = 8192
_COLUMN = (p.Column("id", 20, -1, True),)
RELATIONS = {oid: p.Relation(oid, "public", name, "d", _COLUMN) for oid, name in ((10, "ledger"), (11, "audit"))}


@dataclass(frozen=True, slots=True)
class Committed:
    """One line of the ledger: what must come back."""

    xid: int
    lsn: Lsn
    end: Lsn
    time: datetime
    ids: tuple[int, ...]


@dataclass(slots=True)
class Change:
    xid: int  # of the subtransaction
    relation: int
    id: int


@dataclass(eq=False, slots=True)
class Transaction:
    xid: int
    large: bool
    subxid: int
    changes: list[Change] = field(default_factory=list)
    aborted: dict[int, Lsn] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """A place in the WAL. `count`: how many changes the transaction had by then."""

    kind: Literal["change", "subabort", "abort", "commit", "other"]
    end: Lsn
    transaction: Transaction | None = None
    count: int = 0
    commit: Committed | None = None
    subxid: int = 0


class Wal:
    """What the source has written. `sequence` is the last value that its one sequence gave."""

    def __init__(self, chance: random.Random, clock: Callable[[], datetime]) -> None:
        self._chance = chance
        self.clock = clock
        self.end = Lsn(16 << 20)
        self.records: list[Record] = []
        self.ledger: list[Committed] = []
        self.open: list[Transaction] = []
        self.sequence = 0
        self._xid = 700

    @property
    def insert_lsn(self) -> Lsn:
        """As pg_current_wal_insert_lsn() tells it: behind the header of a fresh page."""
        offset = self.end % _PAGE
        return self.end if offset else Lsn(self.end + (24 if self.end % (16 << 20) else 40))

    def begin(self, *, large: bool) -> Transaction:
        self._xid += 1
        transaction = Transaction(self._xid, large, self._xid)
        self.open.append(transaction)
        return transaction

    def insert(self, transaction: Transaction) -> None:
        self.sequence += 1
        relation = self._chance.choice((10, 11))
        transaction.changes.append(Change(transaction.subxid, relation, self.sequence))
        self._write("change", transaction)

    def savepoint(self, transaction: Transaction) -> None:
        self._xid += 1
        transaction.subxid = self._xid

    def roll_back_to_savepoint(self, transaction: Transaction) -> None:
        if transaction.subxid == transaction.xid:
            return
        subxid, transaction.subxid = transaction.subxid, transaction.xid
        record = self._write("subabort", transaction, subxid=subxid)
        transaction.aborted[subxid] = record.end

    def abort(self, transaction: Transaction) -> None:
        self.open.remove(transaction)
        self._write("abort", transaction)

    def commit(self, transaction: Transaction, time: datetime) -> None:
        """`time`: taken a moment before the place in the WAL."""
        self.open.remove(transaction)
        start, end = self.insert_lsn, self._advance()
        ids = tuple(change.id for change in transaction.changes if change.xid not in transaction.aborted)
        committed = Committed(transaction.xid, start, end, time, ids)
        self.ledger.append(committed)
        self.records.append(Record("commit", end, transaction, len(transaction.changes), committed))

    def noise(self, size: int = 0) -> None:
        """Other databases, checkpoints."""
        self._write("other", None, size=size)

    def _write(self, kind: Literal["change", "subabort", "abort", "other"], transaction: Transaction | None, *,
               subxid: int = 0, size: int = 0) -> Record:  # fmt: skip
        count = len(transaction.changes) if transaction else 0
        record = Record(kind, self._advance(size), transaction, count, subxid=subxid)
        self.records.append(record)
        return record

    def _advance(self, size: int = 0) -> Lsn:
        end = self.insert_lsn + (size or self._chance.randrange(40, 900))
        offset = end % _PAGE
        self.end = Lsn(end + 48 if 0 < offset <= 40 else end)  # no record ends inside a page's header
        return self.end


def write_something(wal: Wal, chance: random.Random) -> None:
    """The application's next step."""
    act = chance.random()
    if act < 0.25 or not wal.open:
        transaction = wal.begin(large=chance.random() < 0.4)
        wal.insert(transaction)
        if not transaction.large:
            wal.commit(transaction, wal.clock() - timedelta(seconds=chance.uniform(0, 0.05)))
    elif act < 0.7:
        transaction = chance.choice(wal.open)
        for _ in range(chance.randint(1, 6)):
            wal.insert(transaction)
    elif act < 0.8:
        chance.choice((wal.savepoint, wal.roll_back_to_savepoint))(chance.choice(wal.open))
    elif act < 0.85:
        wal.noise(chance.choice((0, 0, 30_000)))
    elif act < 0.95:
        wal.commit(chance.choice(wal.open), wal.clock() - timedelta(seconds=chance.uniform(0, 0.05)))
    else:
        wal.abort(chance.choice(wal.open))


class Decoder:
    """What one walsender sends from `start` on. `read` makes frames of the next records; `position` is how far it is."""

    def __init__(self, source: Wal, start: Lsn, chance: random.Random) -> None:
        self._wal = source
        self._start = start
        self._chance = chance
        self._next = next((n for n, record in enumerate(source.records) if record.end > start), len(source.records))
        self.position = start
        self._described: set[int] = set()
        self._streams: dict[int, set[int]] = {}  # streamed transactions, and the relations described in each
        self._sent: dict[int, int] = {}

    @property
    def behind(self) -> int:
        """Records not read yet."""
        return len(self._wal.records) - self._next

    def read(self, most: int) -> list[bytes]:
        frames: list[bytes] = []
        for record in self._wal.records[self._next : self._next + most]:
            frames += self._decode(record)
            self._next += 1
            self.position = max(self.position, record.end)
        return frames

    def keepalive(self) -> bytes:
        return keepalive(self.position)

    def _decode(self, record: Record) -> list[bytes]:
        transaction = record.transaction
        if transaction is None:
            return []
        if record.kind == "commit":
            return self._commit(transaction, record)
        if record.kind == "change":
            due = transaction.large and self._chance.random() < 0.4
            return self._stream(transaction, record) if due else []
        if transaction.xid not in self._streams:
            return []
        if record.kind == "abort":
            self._streams.pop(transaction.xid)
            return [wal(encode(p.StreamAbort(transaction.xid, transaction.xid, None, None)))]
        self._streams[transaction.xid] = set()  # the server describes relations again
        return [wal(encode(p.StreamAbort(transaction.xid, record.subxid, None, None)))]

    def _stream(self, transaction: Transaction, record: Record) -> list[bytes]:
        """A streamed block of what was not sent yet."""
        xid = transaction.xid
        rows = self._rows(transaction, record, self._sent.get(xid, 0))
        if not rows:
            return []
        first = xid not in self._streams
        described = self._streams.setdefault(xid, set())
        self._sent[xid] = record.count
        frames = [wal(encode(p.StreamStart(xid, first)))]
        for change in rows:
            frames += self._describe(change, described, xid=change.xid)
            frames.append(wal(encode(_insert(change), xid=change.xid)))
        return [*frames, wal(encode(p.StreamStop()))]

    def _commit(self, transaction: Transaction, record: Record) -> list[bytes]:
        commit, xid = record.commit, transaction.xid
        assert commit is not None
        if xid in self._streams:
            rest = self._stream(transaction, record)
            self._described |= self._streams.pop(xid)
            return [*rest, wal(encode(p.StreamCommit(xid, commit.lsn, commit.end, commit.time)))]
        rows = self._rows(transaction, record, 0)
        frames = [wal(encode(p.Begin(commit.lsn, commit.time, xid)))]
        for change in rows:
            frames += self._describe(change, self._described)
            frames.append(wal(encode(_insert(change))))
        return [*frames, wal(encode(p.Commit(commit.lsn, commit.end, commit.time)))]

    def _rows(self, transaction: Transaction, record: Record, sent: int) -> list[Change]:
        gone = {xid for xid, lsn in transaction.aborted.items() if lsn <= record.end}
        return [change for change in transaction.changes[sent : record.count] if change.xid not in gone]

    def _describe(self, change: Change, described: set[int], xid: int | None = None) -> list[bytes]:
        if change.relation in described:
            return []
        described.add(change.relation)
        return [wal(encode(RELATIONS[change.relation], xid=xid))]


def _insert(change: Change) -> p.Insert:
    return p.Insert(change.relation, (str(change.id).encode(),), 0)
