"""What pgoutput says: one type per message, and PostgreSQL's times.

Nothing here reads or writes bytes: that is `archiver.format.pgoutput`. A column is its bytes in text format,
NULL, or UNCHANGED; no value is ever interpreted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, NamedTuple

from archiver.errors import IntegrityError
from archiver.lsn import Lsn

_PG_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Unchanged(Enum):
    """The type of UNCHANGED: a TOASTed value that an UPDATE left alone and the server did not send."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED

Value = bytes | None | Unchanged
Row = tuple[Value, ...]


class Begin(NamedTuple):
    final_lsn: Lsn
    time: datetime
    xid: int


class Commit(NamedTuple):
    commit_lsn: Lsn
    end_lsn: Lsn
    time: datetime


class Origin(NamedTuple):
    lsn: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type_id: int
    type_modifier: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """`identity` is pg_class.relreplident: d(efault), n(othing), f(ull) or i(ndex)."""

    id: int
    namespace: str
    name: str
    identity: str
    columns: tuple[Column, ...]

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}"


class Type(NamedTuple):
    id: int
    namespace: str
    name: str


class Insert(NamedTuple):
    """`size` is the length of the message in bytes, here as in Update and Delete."""

    relation_id: int
    new: Row
    size: int


class Update(NamedTuple):
    """`old` holds the key columns, or with `old_full` the whole old row; None when the key did not change."""

    relation_id: int
    old: Row | None
    old_full: bool
    new: Row
    size: int


class Delete(NamedTuple):
    """`old` holds the key columns, others being None, or with `old_full` the whole old row."""

    relation_id: int
    old: Row
    old_full: bool
    size: int


class Truncate(NamedTuple):
    relation_ids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(NamedTuple):
    """What pg_logical_emit_message() wrote."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


class StreamStart(NamedTuple):
    xid: int
    first: bool


class StreamStop(NamedTuple):
    pass


class StreamCommit(NamedTuple):
    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    time: datetime


class StreamAbort(NamedTuple):
    """`subxid` equals `xid` when the whole transaction aborts. LSN and time come with streaming 'parallel'."""

    xid: int
    subxid: int
    lsn: Lsn | None
    time: datetime | None


class BeginPrepare(NamedTuple):
    prepare_lsn: Lsn
    end_lsn: Lsn
    time: datetime
    xid: int
    gid: str


class Prepare(NamedTuple):
    prepare_lsn: Lsn
    end_lsn: Lsn
    time: datetime
    xid: int
    gid: str


class CommitPrepared(NamedTuple):
    commit_lsn: Lsn
    end_lsn: Lsn
    time: datetime
    xid: int
    gid: str


class RollbackPrepared(NamedTuple):
    prepare_end_lsn: Lsn
    end_lsn: Lsn
    prepare_time: datetime
    time: datetime
    xid: int
    gid: str


class StreamPrepare(NamedTuple):
    prepare_lsn: Lsn
    end_lsn: Lsn
    time: datetime
    xid: int
    gid: str


RowMessage = Insert | Update | Delete
Message = (
    RowMessage
    | Begin
    | Commit
    | Origin
    | Relation
    | Type
    | Truncate
    | LogicalMessage
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | StreamPrepare
)


def from_pg_time(microseconds: int) -> datetime:
    """A TimestampTz: microseconds since 2000-01-01 UTC. Raises IntegrityError outside the years 1 to 9999."""
    try:
        return _PG_EPOCH + timedelta(microseconds=microseconds)
    except OverflowError as exc:
        raise IntegrityError(f"not a time: {microseconds} µs since 2000-01-01") from exc


def to_pg_time(time: datetime) -> int:
    return (time - _PG_EPOCH) // _MICROSECOND
