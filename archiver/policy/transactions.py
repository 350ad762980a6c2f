"""Raw messages of consecutive change segments in, committed source transactions in commit order out.

It never does I/O (large transactions go to a spool file that the caller supplies), never emits a transaction
whose commit it has not seen, and never emits one twice. What it cannot place raises IntegrityError.

The rules that follow from how the server streams:
- a server that is asked again after a lost connection sends every uncommitted transaction from its first
  message: a new session drops all open ones, and a first streamed block drops what there was of that xid;
- a Relation message inside a streamed block is seen by that transaction alone until it commits; afterwards it
  counts for all, unless a younger one of the same relation has arrived meanwhile;
- an aborted subtransaction takes its rows and its Relation messages with it (the server sends them again).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from archiver.errors import IntegrityError
from archiver.format import journal
from archiver.format.pgoutput import (
    ROW_TAGS,
    Commit,
    Relation,
    StreamAbort,
    StreamCommit,
    StreamStart,
    Tag,
    decode,
    parse_begin,
    parse_commit,
)
from archiver.lsn import Lsn
from archiver.policy.source_transaction import XID_FIELD, Change, OpenTransaction, SourceTransaction, Truncated
from archiver.policy.spool import SpoolFactory

__all__ = ["Change", "SourceTransaction", "TransactionAssembler", "Truncated"]

DEFAULT_MEMORY: Final = 32 << 20

_KEPT: Final = ROW_TAGS | {Tag.TRUNCATE, Tag.RELATION}
_IGNORED: Final = frozenset({Tag.ORIGIN, Tag.TYPE, Tag.MESSAGE})
_JOURNAL: Final = f"{journal.SCHEMA}\0{journal.TABLE}\0".encode()


class TransactionAssembler:
    """Feed it every message in order, and tell it of each segment and each session as they begin.

    `after`: what the target already holds; commits that end at or below it are dropped. It moves with
    every transaction emitted. `stop`: the first commit that ends above it makes `done` true. `spool` makes the file
    for what exceeds `memory` bytes over all open transactions.
    """

    def __init__(
        self,
        *,
        after: Lsn,
        spool: SpoolFactory,
        stop: Lsn | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self.after = after
        self.done = False
        self._stop = stop
        self._spool = spool
        self._memory = memory
        self._segment = 0
        self._relations: dict[int, Relation] = {}
        self._relations_shared = False
        self._arrivals: dict[int, int] = {}
        self._arrival = 0
        self._streams: dict[int, OpenTransaction] = {}
        self._plain: OpenTransaction | None = None
        self._current: OpenTransaction | None = None
        self._held = 0
        self._journals: set[bytes] = set()  # the relation ids of archiver's own journal

    # --- borders

    def start_session(self) -> None:
        """A new connection to the source begins here: what was open is sent again."""
        for opened in [*self._streams.values(), *([self._plain] if self._plain else [])]:
            opened.messages.close()
        self._streams.clear()
        self._plain = self._current = None
        self._held = 0

    def begin_segment(self, ordinal: int) -> None:
        """A new change segment begins here. Ordinals rise."""
        self._segment = ordinal

    def context(self, xid: int) -> None:
        """The segment begins within a transaction: between Begin and Commit (0), or in a streamed block of xid."""
        if self.done:
            return
        if self._current is not None:
            if (self._current.xid if self._current.streamed else 0) != xid:
                raise IntegrityError(f"a change segment goes on with transaction {xid}, the one before with another")
        elif xid:
            self._current = self._stream(xid, first=False)
        else:
            self._plain = self._current = self._open(0, streamed=False, complete=False)

    def preamble(self, xid: int, message: bytes) -> None:
        """A Relation or Type message of an earlier segment, repeated: of all (xid 0), or of one streamed transaction.

        Of a streamed transaction it has the form of a streamed message.
        """
        relation = decode(message, streamed=xid != 0)
        if self.done or not isinstance(relation, Relation):
            return
        self._learn(message, 5 if xid else 1)
        if xid:
            self._keep(self._stream(xid, first=False), message)
        elif self._plain is not None:
            # It may repeat what this very transaction said, so it must not count for its earlier rows.
            self._keep(self._plain, message)
        else:
            self._define(relation)

    def oldest_open(self) -> int | None:
        """The ordinal of the segment in which the oldest open transaction began."""
        opened = [*self._streams.values(), *([self._plain] if self._plain else [])]
        return min((each.segment for each in opened if each.complete), default=None)

    # --- messages

    def feed(self, message: bytes) -> SourceTransaction | None:
        """Take the next message; a commit gives back its transaction. Raises IntegrityError."""
        if self.done:
            return None
        tag = message[0] if message else 0
        current = self._current
        if tag in ROW_TAGS and current is not None and current.complete:
            if self._journals and message[5 if current.streamed else 1 :][:4] in self._journals:
                current.has_journal = True
            self._append(current, message)
            return None
        if tag in _KEPT:
            self._take(message)
            return None
        if tag in _IGNORED:
            return None
        handler = _HANDLERS.get(tag)
        if handler is None:
            raise IntegrityError(f"unexpected message {message[:1]!r} in the stream")
        return handler(self, message)

    def _take(self, message: bytes) -> None:
        current = self._current
        if current is None:
            # The rest of a transaction that began before the first segment read.
            self._plain = self._current = current = self._open(0, streamed=False, complete=False)
        self._keep(current, message)

    def _keep(self, opened: OpenTransaction, message: bytes) -> None:
        if message[0] == Tag.RELATION:
            self._learn(message, 5 if opened.streamed else 1)
            self._arrival += 1
            opened.relations.append((self._arrival, message))
        if opened.complete:
            self._append(opened, message)

    def _append(self, opened: OpenTransaction, message: bytes) -> None:
        self._held += opened.messages.append(message)
        if self._held > self._memory:
            self._spill_largest()

    def _learn(self, message: bytes, at: int) -> None:
        if message.startswith(_JOURNAL, at + 4):
            self._journals.add(message[at : at + 4])

    def _spill_largest(self) -> None:
        opened = [*self._streams.values(), *([self._plain] if self._plain else [])]
        largest = max((each.messages for each in opened), key=lambda messages: messages.held)
        self._held -= largest.held
        largest.spill()

    def _open(self, xid: int, *, streamed: bool, complete: bool = True) -> OpenTransaction:
        return OpenTransaction(xid, self._segment, self._spool, streamed=streamed, complete=complete)

    def _drop(self, opened: OpenTransaction | None) -> None:
        if opened is not None:
            self._held -= opened.messages.held
            opened.messages.close()

    # --- one handler a message

    def _begin(self, message: bytes) -> None:
        self._outside_of_a_block(message)
        self._drop(self._plain)
        self._plain = self._current = self._open(parse_begin(message).xid, streamed=False)

    def _commit(self, message: bytes) -> SourceTransaction | None:
        self._outside_of_a_block(message)
        opened, self._plain, self._current = self._plain, None, None
        return self._emit(opened, parse_commit(message))

    def _stream_start(self, message: bytes) -> None:
        self._outside_of_a_block(message)
        start = decode(message)
        assert isinstance(start, StreamStart)
        self._drop(self._plain)
        self._plain = None
        self._current = self._stream(start.xid, first=start.first)

    def _stream(self, xid: int, *, first: bool) -> OpenTransaction:
        opened = self._streams.get(xid)
        if first or opened is None:
            self._drop(opened)
            opened = self._streams[xid] = self._open(xid, streamed=True, complete=first)
        return opened

    def _stream_stop(self, message: bytes) -> None:
        decode(message)
        self._current = self._plain = None

    def _stream_commit(self, message: bytes) -> SourceTransaction | None:
        self._outside_of_a_block(message)
        commit = decode(message)
        assert isinstance(commit, StreamCommit)
        return self._emit(self._streams.pop(commit.xid, None), commit)

    def _stream_abort(self, message: bytes) -> None:
        self._outside_of_a_block(message)
        abort = decode(message)
        assert isinstance(abort, StreamAbort)
        if abort.xid == abort.subxid:
            self._drop(self._streams.pop(abort.xid, None))
        elif abort.xid in self._streams:
            self._streams[abort.xid].aborted.add(abort.subxid.to_bytes(4, "big"))

    def _outside_of_a_block(self, message: bytes) -> None:
        if self._current is not None and self._current.streamed:
            raise IntegrityError(f"message {message[:1]!r} inside a streamed block of transaction {self._current.xid}")

    # --- commits and relations

    def _emit(self, opened: OpenTransaction | None, commit: Commit | StreamCommit) -> SourceTransaction | None:
        if commit.end_lsn <= self.after:
            self._drop(opened)
            self._merge(opened)
            return None
        if self._stop is not None and commit.end_lsn > self._stop:
            self.done = True
            self.start_session()
            return None
        if opened is None or not opened.complete:
            raise IntegrityError(
                "a transaction began before the first change segment that was read",
                where=str(commit.end_lsn),
                hint="Start reading at an earlier change segment.",
            )
        self.after = commit.end_lsn
        self._held -= opened.messages.held
        oldest = self.oldest_open()
        resume = self._segment if oldest is None else min(oldest, self._segment)
        transaction = SourceTransaction(opened, self._relations, commit, resume)
        self._relations_shared = True
        self._merge(opened)
        return transaction

    def _merge(self, opened: OpenTransaction | None) -> None:
        """From now on the relations that a committed transaction described count for all."""
        for arrival, message in opened.relations if opened else ():
            if opened and opened.streamed and message[XID_FIELD] in opened.aborted:
                continue
            relation = decode(message, streamed=opened.streamed if opened else False)
            if isinstance(relation, Relation) and arrival > self._arrivals.get(relation.id, 0):
                self._define(relation, arrival)

    def _define(self, relation: Relation, arrival: int | None = None) -> None:
        if self._relations.get(relation.id) == relation:
            return
        if self._relations_shared:
            # An emitted transaction goes on seeing the relations as they were at its commit.
            self._relations = dict(self._relations)
            self._relations_shared = False
        if arrival is None:
            self._arrival = arrival = self._arrival + 1
        self._relations[relation.id] = relation
        self._arrivals[relation.id] = arrival


_HANDLERS: Final[dict[int, Callable[[TransactionAssembler, bytes], SourceTransaction | None]]] = {
    Tag.BEGIN: TransactionAssembler._begin,
    Tag.COMMIT: TransactionAssembler._commit,
    Tag.STREAM_START: TransactionAssembler._stream_start,
    Tag.STREAM_STOP: TransactionAssembler._stream_stop,
    Tag.STREAM_COMMIT: TransactionAssembler._stream_commit,
    Tag.STREAM_ABORT: TransactionAssembler._stream_abort,
}
