"""One committed source transaction: raw messages in, decoded changes with their relations out, lazily.

Decoding happens while the changes are iterated, so that memory stays bounded however large the transaction is.
A row that does not fit what the stream said of its relation raises IntegrityError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from archiver.errors import IntegrityError
from archiver.format import journal
from archiver.format.pgoutput import (
    ROW_TAGS,
    Commit,
    Delete,
    Insert,
    Relation,
    RowMessage,
    StreamCommit,
    Truncate,
    Update,
    decode,
    decode_row,
)
from archiver.policy.spool import MessageSpool, SpoolFactory

NO_RELATION: Final = Relation(0, "", "", "n", ())
XID_FIELD: Final = slice(1, 5)  # of a message in a streamed block


class Truncated(NamedTuple):
    """A Truncate whose relations are looked up: all that were emptied, those reached by CASCADE included."""

    relations: tuple[Relation, ...]
    restart_identity: bool


# With NO_RELATION beside a Truncated or an entry of the journal.
Change = tuple[Relation, RowMessage | Truncated | journal.Entry]


class SourceTransaction:
    """One committed transaction. `changes` decodes as it goes, so that memory stays bounded.

    `resume_segment` is the ordinal of the first segment that a restore needs to read again when it stops after
    this transaction.
    """

    __slots__ = (
        "_aborted",
        "_has_journal",
        "_messages",
        "_relations",
        "_streamed",
        "commit_lsn",
        "end_lsn",
        "resume_segment",
        "time",
        "xid",
    )

    def __init__(
        self,
        opened: OpenTransaction,
        relations: dict[int, Relation],
        commit: Commit | StreamCommit,
        resume_segment: int,
    ) -> None:
        self.xid = opened.xid
        self.commit_lsn = commit.commit_lsn
        self.end_lsn = commit.end_lsn
        self.time = commit.time
        self.resume_segment = resume_segment
        self._messages = opened.messages
        self._streamed = opened.streamed
        self._aborted = opened.aborted
        self._has_journal = opened.has_journal
        self._relations = relations

    def changes(self) -> Iterator[Change]:
        """The changes in their order. Raises IntegrityError for a row that does not fit its relation."""
        seen: dict[int, Relation] = {}
        streamed, aborted = self._streamed, self._aborted
        for message in self._messages:
            if aborted and message[XID_FIELD] in aborted:
                continue
            tag = message[0]
            if tag in ROW_TAGS:
                row = decode_row(message, streamed=streamed)
                relation = seen.get(row.relation_id) or self._look_up(seen, row.relation_id)
                if type(row) is not Insert or len(row.new) != len(relation.columns):
                    _check_width(relation, row)
                if relation.namespace != journal.SCHEMA:
                    yield relation, row
                elif type(row) is Insert and journal.is_journal(relation):
                    yield NO_RELATION, journal.parse_entry(relation, row.new)
            else:
                yield from self._other(message, seen)

    def entries(self) -> Iterator[journal.Entry]:
        """Its entries of the journal alone, for one who must look ahead. Costs nothing where there are none."""
        if self._has_journal:
            yield from (change for _, change in self.changes() if isinstance(change, journal.Entry))

    def close(self) -> None:
        """Free the memory or the file. Needed only to free it early."""
        self._messages.close()

    def _other(self, message: bytes, seen: dict[int, Relation]) -> Iterator[Change]:
        decoded = decode(message, streamed=self._streamed)
        if isinstance(decoded, Relation):
            seen[decoded.id] = decoded
        elif isinstance(decoded, Truncate):
            named = (self._look_up(seen, oid) for oid in decoded.relation_ids)
            relations = tuple(relation for relation in named if not journal.is_own(relation))
            yield NO_RELATION, Truncated(relations, decoded.restart_identity)

    def _look_up(self, seen: dict[int, Relation], oid: int) -> Relation:
        relation = seen.get(oid) or self._relations.get(oid)
        if relation is None:
            raise IntegrityError(f"a row of relation {oid}, which the stream never described", where=str(self.end_lsn))
        seen[oid] = relation
        return relation


class OpenTransaction:
    """A transaction whose commit has not been seen. `complete` is False when its beginning was not read."""

    __slots__ = ("aborted", "complete", "has_journal", "messages", "relations", "segment", "streamed", "xid")

    def __init__(self, xid: int, segment: int, spool: SpoolFactory, *, streamed: bool, complete: bool = True) -> None:
        self.xid = xid
        self.segment = segment
        self.streamed = streamed
        self.complete = complete
        self.messages = MessageSpool(spool)
        self.has_journal = False
        self.relations: list[tuple[int, bytes]] = []
        self.aborted: set[bytes] = set()


def _check_width(relation: Relation, row: RowMessage) -> None:
    width = len(relation.columns)
    if (
        (type(row) is Insert and len(row.new) == width)
        or (type(row) is Update and len(row.new) == width and (row.old is None or len(row.old) == width))
        or (type(row) is Delete and len(row.old) == width)
    ):
        return
    raise IntegrityError(f"a row of {relation} does not have the {width} columns that the stream described")
