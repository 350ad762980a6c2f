"""The capture side of the change stream: what arrives on one replication connection becomes change segments.

In: CopyData payloads as the walsender sent them. Out: cuts, each the plaintext of one change segment and what its
manifest says about it. Nothing is interpreted but type byte, relation id, LSN and time of Begin and Commit, and the
rows of archiver's own journal. Logical messages, which anybody may write, are dropped.
A `ChangeStream` lives as long as its connection: after a reconnect the server repeats what was not committed.

Layouts: PostgreSQL documentation, "Streaming Replication Protocol" and "Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from archiver.errors import IntegrityError, PostgresError
from archiver.format import journal, pgoutput
from archiver.format.journal import Point
from archiver.format.manifest import Lost
from archiver.format.pgoutput import BEGIN, COMMIT, STREAM_ABORT, STREAM_COMMIT, from_pg_time
from archiver.format.segment import LENGTH, Context, Relation, encode
from archiver.lsn import Lsn
from archiver.policy.breaks import Sending
from archiver.policy.cut import Cut
from archiver.policy.journal_entries import BRIEF, JournalEntries

_XLOG_DATA = ord("w")
_KEEPALIVE = ord("k")
_HEADER = 25  # 'w', start LSN, end LSN, send time: dropped, see docs/format.md
_LARGE = 1 << 16  # from here on a copy costs more than a view
_ROWS = frozenset(b"IUD")
_INSERT = ord("I")
_OWN_SCHEMA = journal.SCHEMA.encode() + b"\0"
_PLAIN = 0
_U32 = struct.Struct(">I")
_KEEPALIVE_BODY = struct.Struct(">Qq?")  # WAL end, send time, reply wanted


_Noted = tuple[bytes, Lost | Point]
"""What an entry of the journal says, and the subtransaction that wrote it."""


class ChangeStream:
    """Follows one connection from `start` on; `ordinal` is that of the first change segment it will cut."""

    def __init__(self, start: Lsn, ordinal: int, journal: int | None = None) -> None:
        self.position = start
        """Every commit that ends at or before it has arrived."""
        self.journal = journal
        """The OID of archiver's own. Where there is none the table of that name says nothing; where there is one, what
        another said is a loss."""
        self._messages = 0
        self._commits = 0
        self._received_bytes = 0
        self._ordinal = ordinal
        self._cut = Cut(ordinal, start, start)
        self._relations: dict[int, dict[bytes, tuple[bytes, ...]]] = {_PLAIN: {}}
        self._types: list[bytes] = []
        self._known: dict[int, set[bytes]] = {_PLAIN: set()}
        self._context = _PLAIN  # the xid of the streamed block that we are in
        self._begin: tuple[Sending, int, int] | None = None  # commit time, ordinal of its first segment
        self._own: dict[bytes, pgoutput.Relation] = {}  # tables in schema archiver
        self._own_known: set[tuple[int, bytes]] = set()  # those that the open segment describes, by context
        self._noted: dict[int, list[_Noted]] = {}  # by context
        self._heard = JournalEntries()
        self._describing: set[bytes] = set()
        self._foreign: set[int] = set()  # contexts of transactions that come from another server
        self._open: dict[int, int] = {}  # streamed transactions, and the segment in which each began
        self._control: dict[int, Callable[[bytes], bool | None]] = {
            ord("B"): self._on_begin,
            ord("C"): self._on_commit,
            ord("R"): self._on_relation,
            ord("Y"): self._on_type,
            ord("T"): self._on_truncate,
            ord("M"): lambda _message: True,  # nobody asks for them
            ord("O"): self._on_origin,
            ord("S"): self._on_stream_start,
            ord("E"): self._on_stream_stop,
            ord("c"): self._on_stream_commit,
            ord("A"): self._on_stream_abort,
        }

    @property
    def sending(self) -> Sending | None:
        """The transaction of which a part has come."""
        if self._begin is not None:
            return self._begin[0]
        return Sending(self._context) if self._context else None

    @property
    def size(self) -> int:
        """Bytes of plaintext in the open change segment."""
        return len(self._cut.body)

    def takes_long(self, frames: Sequence[bytes]) -> bool:
        """Whether it may take more than a moment to take them in: there may be a long text of DDL to be parsed."""
        return self._heard.take_long or max(map(len, frames), default=0) > BRIEF

    def feed(self, frames: Sequence[bytes]) -> None:
        """Take in CopyData payloads. Raises PostgresError for what no server sends."""
        try:
            self._feed(frames)
        except (struct.error, LookupError, ValueError, IntegrityError) as exc:
            raise PostgresError(f"the server sent a replication message that cannot be read: {exc}") from exc

    def _feed(self, frames: Sequence[bytes]) -> None:
        """This loop is the hot path: bench/capture.py."""
        body = self._cut.body
        pack = LENGTH.pack
        context = self._context
        at = 30 if context else 26
        known = self._known[context]
        dropped = 0
        for frame in frames:
            if frame[0] != _XLOG_DATA:
                self._on_transport(frame)
                dropped += 1
                continue
            tag = frame[_HEADER]
            if tag in _ROWS:
                relation = frame[at : at + 4]
                if relation not in known and self._meet(relation, frame):
                    dropped += 1
                    continue
            else:
                if self._on_control(frame[_HEADER:], tag):
                    dropped += 1
                    continue
                context = self._context
                at = 30 if context else 26
                known = self._known[context]
            size = len(frame)
            body += pack(size - _HEADER)
            body += frame[_HEADER:] if size < _LARGE else memoryview(frame)[_HEADER:]
        messages = len(frames) - dropped
        self._messages += messages
        self._cut.messages += messages
        self._received_bytes += sum(map(len, frames))

    def take_counts(self) -> tuple[int, int, int]:
        """Messages, commits and bytes received since the last call."""
        counts = (self._messages, self._commits, self._received_bytes)
        self._messages = self._commits = self._received_bytes = 0
        return counts

    def cut(self) -> Cut:
        """Close the open change segment and open the next one."""
        done = self._cut
        done.end = self.position
        done.announced, self._heard.announced = self._heard.announced, set()
        done.named, self._heard.named = self._heard.named, {}
        done.open_from = min([*self._open.values(), *([self._begin[2]] if self._begin else [])], default=None)
        self._ordinal += 1
        self._cut = Cut(self._ordinal, self.position, self.position)
        self._known = {xid: set() for xid in self._relations}
        self._own_known = set()
        if self._context or self._begin:
            self._cut.body += encode(Context(self._context))
        return done

    def _on_transport(self, frame: bytes) -> None:
        if frame[0] != _KEEPALIVE:
            raise PostgresError(f"the server sent a replication message of an unknown type: {chr(frame[0])!r}")
        end, *_ = _KEEPALIVE_BODY.unpack_from(frame, 1)
        if self._begin is None:  # all that was committed before `end` has been sent
            self.position = max(self.position, Lsn(end))

    def _on_control(self, message: bytes, tag: int) -> bool | None:
        """Whether a message is dropped."""
        handler = self._control.get(tag)
        if handler is None:
            raise PostgresError(f"the server sent a message of an unknown type: {chr(tag)!r}")
        return handler(message)

    def _meet(self, relation: bytes, frame: bytes) -> bool:
        """A row of a table that this segment has not described yet, or of archiver's own. Whether it is dropped."""
        own = self._own.get(relation)
        if own is None:
            self._introduce(relation)
            return False
        if self.journal is None or not journal.is_journal(own) or frame[_HEADER] != _INSERT:
            return True
        if own.id != self.journal:
            self._note_once(frame[_HEADER:], Lost(lsn=Lsn(0), reason="unreadable"))
            return True
        if (self._context, relation) not in self._own_known:
            self._introduce(relation)
            self._known[self._context].discard(relation)  # each of its rows is to be met
            self._own_known.add((self._context, relation))
        self._note(own, frame[_HEADER:])
        return False

    def _note(self, relation: pgoutput.Relation, message: bytes) -> None:
        """What an entry says that the manifest must say, too."""
        row = pgoutput.decode_row(message, streamed=self._context != 0)
        assert isinstance(row, pgoutput.Insert)
        if (said := self._heard.said(self._context, relation, row.new)) is not None:
            self._note_once(message, said)

    def _note_once(self, message: bytes, what: Lost | Point) -> None:
        within = message[1:5] if self._context else b""
        noted = self._noted.setdefault(self._context, [])
        if (within, what) not in noted:  # a manifest has room for so many
            noted.append((within, what))

    def _introduce(self, relation: bytes) -> None:
        """Repeat a relation's description in this segment before the first row that needs it."""
        for xid in dict.fromkeys((self._context, _PLAIN)):
            described = self._relations[xid].get(relation)
            if described is not None:
                for message in described:
                    self._cut.body += encode(Relation(xid, message))
                self._known[self._context].add(relation)
                return
        raise PostgresError("the server sent a row of a table that it did not describe")

    def _on_begin(self, message: bytes) -> None:
        lsn, time, xid = BEGIN.unpack_from(message)
        self._begin = (Sending(xid, Lsn(lsn)), time, self._ordinal)
        self._noted.pop(_PLAIN, None)
        self._heard.forget(_PLAIN)
        self._foreign.discard(_PLAIN)

    def _on_commit(self, message: bytes) -> None:
        _, lsn, end, time = COMMIT.unpack_from(message)
        self._commit(_PLAIN, self._begin[0].xid if self._begin else 0, lsn, end, time)
        self._settle(_PLAIN, end, time)
        if self._describing:  # by its end all is known that the transaction said, such as that it made the table
            self._cut.described |= self._describing
            self._describing.clear()
        self._begin = None

    def _commit(self, context: int, xid: int, lsn: int, end: int, time: int) -> None:
        self._commits += 1
        self._cut.note(xid, lsn, end, time, foreign=bool(self._foreign) and context in self._foreign)
        if end > self.position:
            self.position = Lsn(end)

    def _on_origin(self, _message: bytes) -> None:
        """The commit's time is by that server's clock (DecodeCommit, decode.c)."""
        self._foreign.add(self._context)

    def _on_type(self, message: bytes) -> None:
        self._types.append(message)

    def _on_relation(self, message: bytes) -> None:
        at = 5 if self._context else 1
        relation = message[at : at + 4]
        self._relations[self._context][relation] = (*self._types, message)
        self._types.clear()
        if message.startswith(_OWN_SCHEMA, at + 4):
            described = pgoutput.decode(message, streamed=self._context != 0)
            assert isinstance(described, pgoutput.Relation)
            self._own[relation] = described
            self._own_known.add((self._context, relation))
            return
        if not self._context:
            self._describing.add(message)
        self._known[self._context].add(relation)

    def _on_truncate(self, message: bytes) -> None:
        at = 5 if self._context else 1
        (count,) = _U32.unpack_from(message, at)
        for index in range(count):
            relation = message[at + 5 + 4 * index : at + 9 + 4 * index]
            if relation not in self._known[self._context]:
                self._introduce(relation)

    def _settle(self, context: int, end: int, time: int) -> None:
        """What a committed transaction said of itself counts from its commit on."""
        if not self._noted:
            return
        for _, noted in self._noted.pop(context, ()):
            if isinstance(noted, Point):
                self._cut.points.append((noted, from_pg_time(time)))
            else:
                self._cut.lost.append(noted.model_copy(update={"lsn": Lsn(end)}))

    def _on_stream_start(self, message: bytes) -> None:
        (xid,) = _U32.unpack_from(message, 1)
        self._context = xid
        self._open.setdefault(xid, self._ordinal)
        self._relations.setdefault(xid, {})
        self._known.setdefault(xid, set())

    def _on_stream_stop(self, _message: bytes) -> None:
        self._context = _PLAIN

    def _on_stream_commit(self, message: bytes) -> None:
        xid, _, lsn, end, time = STREAM_COMMIT.unpack_from(message)
        self._commit(xid, xid, lsn, end, time)
        self._settle(xid, end, time)
        described = self._relations.get(xid, {})
        # Rows that follow are shaped as this transaction left their tables; what this segment has not said
        # of them must be said again, should they come.
        for relation, messages in described.items():
            plain = self._relations[_PLAIN][relation] = tuple(_without_xid(part) for part in messages)
            if relation not in self._own:
                self._cut.described.add(plain[-1])
            self._known[_PLAIN].discard(relation)
            self._own_known.discard((_PLAIN, relation))
        self._forget(xid)

    def _on_stream_abort(self, message: bytes) -> None:
        xid, subxid = STREAM_ABORT.unpack_from(message)
        if xid == subxid:
            self._forget(xid)
        elif xid in self._noted:
            gone = subxid.to_bytes(4, "big")
            self._noted[xid] = [(within, noted) for within, noted in self._noted[xid] if within != gone]

    def _forget(self, xid: int) -> None:
        for by_xid in (self._open, self._relations, self._known, self._noted):
            by_xid.pop(xid, None)
        self._heard.forget(xid)
        self._foreign.discard(xid)
        self._own_known = {known for known in self._own_known if known[0] != xid}


def _without_xid(message: bytes) -> bytes:
    return message[:1] + message[5:]
