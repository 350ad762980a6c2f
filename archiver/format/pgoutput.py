"""pgoutput: one raw logical replication message in, one typed message out.

Covers protocol versions 1 to 4 as `CREATE PUBLICATION`'s built-in plugin writes them in text format. Layouts:
PostgreSQL documentation, "Logical Replication Message Formats", and src/backend/replication/logical/proto.c.
Anything that is not exactly one well-formed message raises IntegrityError and nothing else; trailing bytes
are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeVar

from archiver.errors import IntegrityError
from archiver.format.pgmessages import (
    UNCHANGED,
    Begin,
    BeginPrepare,
    Column,
    Commit,
    CommitPrepared,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Prepare,
    Relation,
    RollbackPrepared,
    Row,
    RowMessage,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    Truncate,
    Type,
    Unchanged,
    Update,
    Value,
    from_pg_time,
    to_pg_time,
)
from archiver.lsn import Lsn

# fmt: off
__all__ = [
    "BEGIN", "BEGIN_PREPARE", "COMMIT", "ORIGIN", "PREPARED", "ROLLBACK_PREPARED", "ROW_TAGS",
    "STREAM_ABORT", "STREAM_ABORT_PARALLEL", "STREAM_COMMIT", "STREAM_START", "STREAM_STOP", "UNCHANGED",
    "XID_TAGS", "Begin", "BeginPrepare", "Column", "Commit", "CommitPrepared", "Delete", "Insert",
    "LogicalMessage", "Message", "Origin", "Prepare", "Relation", "RollbackPrepared", "Row", "RowMessage",
    "StreamAbort", "StreamCommit", "StreamPrepare", "StreamStart", "StreamStop", "Tag", "Truncate",
    "Type", "Unchanged", "Update", "Value", "decode", "decode_row", "from_pg_time", "parse_begin",
    "parse_commit", "to_pg_time",
]
# fmt: on


class Tag:
    """The first byte of each message."""

    BEGIN: Final = ord("B")
    COMMIT: Final = ord("C")
    ORIGIN: Final = ord("O")
    RELATION: Final = ord("R")
    TYPE: Final = ord("Y")
    INSERT: Final = ord("I")
    UPDATE: Final = ord("U")
    DELETE: Final = ord("D")
    TRUNCATE: Final = ord("T")
    MESSAGE: Final = ord("M")
    STREAM_START: Final = ord("S")
    STREAM_STOP: Final = ord("E")
    STREAM_COMMIT: Final = ord("c")
    STREAM_ABORT: Final = ord("A")
    BEGIN_PREPARE: Final = ord("b")
    PREPARE: Final = ord("P")
    COMMIT_PREPARED: Final = ord("K")
    ROLLBACK_PREPARED: Final = ord("r")
    STREAM_PREPARE: Final = ord("p")


ROW_TAGS: Final = frozenset({Tag.INSERT, Tag.UPDATE, Tag.DELETE})
# Between Stream Start and Stream Stop these carry the xid of their (sub)transaction behind the tag.
XID_TAGS: Final = ROW_TAGS | {Tag.RELATION, Tag.TYPE, Tag.TRUNCATE, Tag.MESSAGE}

# Layouts start at the tag ("x"): an LSN and a time are 8 bytes, an xid and an oid 4, flags 1.
BEGIN: Final = struct.Struct(">xQqI")  # final LSN, commit time, xid
COMMIT: Final = struct.Struct(">xBQQq")  # flags, commit LSN, end LSN, commit time
STREAM_START: Final = struct.Struct(">xIB")  # xid, 1 in the first block of this xid
STREAM_STOP: Final = struct.Struct(">x")
STREAM_COMMIT: Final = struct.Struct(">xIBQQq")  # xid, flags, commit LSN, end LSN, commit time
STREAM_ABORT: Final = struct.Struct(">xII")  # xid, subtransaction xid (the same: the whole transaction)
STREAM_ABORT_PARALLEL: Final = struct.Struct(">xIIQq")  # ... abort LSN, abort time (streaming 'parallel')
BEGIN_PREPARE: Final = struct.Struct(">xQQqI")  # prepare LSN, end LSN, prepare time, xid; then the gid
PREPARED: Final = struct.Struct(">xBQQqI")  # flags, LSN, end LSN, time, xid; then the gid (P, K and p)
ROLLBACK_PREPARED: Final = struct.Struct(">xBQQqqI")  # flags, prepare end LSN, end LSN, two times, xid; gid
ORIGIN: Final = struct.Struct(">xQ")  # commit LSN on the origin; then its name

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_COLUMN: Final = struct.Struct(">Ii")  # type oid, type modifier
_TRUNCATE: Final = struct.Struct(">IB")  # number of relations, option bits
_LOGICAL: Final = struct.Struct(">BQ")  # flags, LSN

M = TypeVar("M")


def parse_begin(message: bytes) -> Begin:
    """The Begin in a message whose tag the caller has looked at. Raises IntegrityError."""
    return _guarded(message, _begin, 1)


def parse_commit(message: bytes) -> Commit:
    """The Commit in a message whose tag the caller has looked at. Raises IntegrityError."""
    return _guarded(message, _commit, 1)


def decode(message: bytes, *, streamed: bool = False) -> Message:
    """Decode one message; `streamed` says that it stood between Stream Start and Stream Stop.

    The xid that messages carry there is not part of the result. Raises IntegrityError.
    """
    tag = message[0] if message else -1
    decoder = _ROW_DECODERS.get(tag) or _DECODERS.get(tag)
    if decoder is None:
        raise _malformed(message, "unknown kind")
    return _guarded(message, decoder, 5 if streamed and tag in XID_TAGS else 1)


def decode_row(message: bytes, *, streamed: bool = False) -> RowMessage:
    """As `decode`, for an Insert, Update or Delete only, without the detours. Raises IntegrityError."""
    try:
        row, end = _ROW_DECODERS[message[0]](message, 5 if streamed else 1)
    except (IndexError, KeyError, ValueError, struct.error) as exc:
        raise _malformed(message, repr(exc)) from exc
    if end != len(message):
        raise _malformed(message, f"{end} bytes expected")
    return row


def _guarded(message: bytes, decoder: Callable[[bytes, int], tuple[M, int]], at: int) -> M:
    try:
        decoded, end = decoder(message, at)
    except (IndexError, ValueError, struct.error) as exc:
        raise _malformed(message, repr(exc)) from exc
    if end != len(message):
        raise _malformed(message, f"{end} bytes expected")
    return decoded


def _malformed(message: bytes, why: str) -> IntegrityError:
    kind = repr(chr(message[0])) if message else "empty"
    return IntegrityError(f"malformed pgoutput message ({kind}, {len(message)} bytes): {why}")


# --- decoders: (message, offset behind tag and xid) to (decoded, offset of the end) -------------------------
# They may raise IndexError, ValueError (which UnicodeDecodeError is) and struct.error; `decode` turns these
# into IntegrityError. A length that points behind the message makes the end offset wrong, which is refused.


def _tuple(data: bytes, at: int) -> tuple[Row, int]:
    """TupleData. One tight loop: this is where a replay spends its time in this module."""
    values: list[Value] = []
    append, length_at = values.append, _U32.unpack_from
    count = data[at] << 8 | data[at + 1]
    at += 2
    for _ in range(count):
        kind = data[at]
        if kind == 0x74:  # t: text
            (length,) = length_at(data, at + 1)
            start = at + 5
            at = start + length
            append(data[start:at])
        elif kind == 0x6E:  # n: NULL
            append(None)
            at += 1
        elif kind == 0x75:  # u: unchanged TOAST
            append(UNCHANGED)
            at += 1
        else:
            raise ValueError("a column in binary format" if kind == 0x62 else f"column kind {kind}")
    return tuple(values), at


def _insert(data: bytes, at: int) -> tuple[Insert, int]:
    _expect(data, at + 4, b"N")
    new, end = _tuple(data, at + 5)
    return Insert(_U32.unpack_from(data, at)[0], new, end), end


def _update(data: bytes, at: int) -> tuple[Update, int]:
    kind = data[at + 4]
    relation = _U32.unpack_from(data, at)[0]
    if kind == 0x4E:  # N
        new, end = _tuple(data, at + 5)
        return Update(relation, None, False, new, end), end
    _expect(data, at + 4, b"KO")
    old, end = _tuple(data, at + 5)
    _expect(data, end, b"N")
    new, end = _tuple(data, end + 1)
    return Update(relation, old, kind == 0x4F, new, end), end


def _delete(data: bytes, at: int) -> tuple[Delete, int]:
    _expect(data, at + 4, b"KO")
    old, end = _tuple(data, at + 5)
    return Delete(_U32.unpack_from(data, at)[0], old, data[at + 4] == 0x4F, end), end


def _begin(data: bytes, _: int) -> tuple[Begin, int]:
    lsn, time, xid = BEGIN.unpack_from(data)
    return Begin(Lsn(lsn), from_pg_time(time), xid), BEGIN.size


def _commit(data: bytes, _: int) -> tuple[Commit, int]:
    flags, lsn, end_lsn, time = COMMIT.unpack_from(data)
    _check(flags == 0, "unknown flags")
    return Commit(Lsn(lsn), Lsn(end_lsn), from_pg_time(time)), COMMIT.size


def _origin(data: bytes, _: int) -> tuple[Origin, int]:
    (lsn,) = ORIGIN.unpack_from(data)
    name, end = _string(data, ORIGIN.size)
    return Origin(Lsn(lsn), name), end


def _relation(data: bytes, at: int) -> tuple[Relation, int]:
    (oid,) = _U32.unpack_from(data, at)
    namespace, at = _string(data, at + 4)
    name, at = _string(data, at)
    identity = chr(data[at])
    _check(identity in "dnfi", "unknown replica identity")
    (count,) = _U16.unpack_from(data, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        column, at = _column(data, at)
        columns.append(column)
    return Relation(oid, namespace or "pg_catalog", name, identity, tuple(columns)), at


def _column(data: bytes, at: int) -> tuple[Column, int]:
    key = data[at]
    _check(key <= 1, "unknown column flags")
    name, at = _string(data, at + 1)
    type_id, modifier = _COLUMN.unpack_from(data, at)
    return Column(name, type_id, modifier, key == 1), at + _COLUMN.size


def _type(data: bytes, at: int) -> tuple[Type, int]:
    (oid,) = _U32.unpack_from(data, at)
    namespace, at = _string(data, at + 4)
    name, at = _string(data, at)
    return Type(oid, namespace or "pg_catalog", name), at


def _truncate(data: bytes, at: int) -> tuple[Truncate, int]:
    count, options = _TRUNCATE.unpack_from(data, at)
    _check(options <= 3, "unknown options")
    at += _TRUNCATE.size
    end = at + 4 * count
    _check(end == len(data), "wrong number of relations")
    ids = tuple(oid for (oid,) in _U32.iter_unpack(data[at:end]))
    return Truncate(ids, bool(options & 1), bool(options & 2)), end


def _message(data: bytes, at: int) -> tuple[LogicalMessage, int]:
    flags, lsn = _LOGICAL.unpack_from(data, at)
    _check(flags <= 1, "unknown flags")
    prefix, at = _string(data, at + _LOGICAL.size)
    (length,) = _U32.unpack_from(data, at)
    at += 4
    return LogicalMessage(flags == 1, Lsn(lsn), prefix, data[at : at + length]), at + length


def _stream_start(data: bytes, _: int) -> tuple[StreamStart, int]:
    xid, first = STREAM_START.unpack_from(data)
    _check(first <= 1, "unknown flags")
    return StreamStart(xid, first == 1), STREAM_START.size


def _stream_stop(_data: bytes, at: int) -> tuple[StreamStop, int]:
    return StreamStop(), at


def _stream_commit(data: bytes, _: int) -> tuple[StreamCommit, int]:
    xid, flags, lsn, end_lsn, time = STREAM_COMMIT.unpack_from(data)
    _check(flags == 0, "unknown flags")
    return StreamCommit(xid, Lsn(lsn), Lsn(end_lsn), from_pg_time(time)), STREAM_COMMIT.size


def _stream_abort(data: bytes, _: int) -> tuple[StreamAbort, int]:
    if len(data) == STREAM_ABORT.size:
        xid, subxid = STREAM_ABORT.unpack(data)
        return StreamAbort(xid, subxid, None, None), STREAM_ABORT.size
    xid, subxid, lsn, time = STREAM_ABORT_PARALLEL.unpack_from(data)
    return StreamAbort(xid, subxid, Lsn(lsn), from_pg_time(time)), STREAM_ABORT_PARALLEL.size


def _begin_prepare(data: bytes, _: int) -> tuple[BeginPrepare, int]:
    lsn, end_lsn, time, xid = BEGIN_PREPARE.unpack_from(data)
    gid, end = _string(data, BEGIN_PREPARE.size)
    return BeginPrepare(Lsn(lsn), Lsn(end_lsn), from_pg_time(time), xid, gid), end


def _prepared(make: Callable[[Lsn, Lsn, datetime, int, str], M]) -> Callable[[bytes, int], tuple[M, int]]:
    """Prepare, Commit Prepared and Stream Prepare share one layout."""

    def decoder(data: bytes, _: int) -> tuple[M, int]:
        flags, lsn, end_lsn, time, xid = PREPARED.unpack_from(data)
        _check(flags == 0, "unknown flags")
        gid, end = _string(data, PREPARED.size)
        return make(Lsn(lsn), Lsn(end_lsn), from_pg_time(time), xid, gid), end

    return decoder


def _rollback_prepared(data: bytes, _: int) -> tuple[RollbackPrepared, int]:
    flags, lsn, end_lsn, prepared, time, xid = ROLLBACK_PREPARED.unpack_from(data)
    _check(flags == 0, "unknown flags")
    gid, end = _string(data, ROLLBACK_PREPARED.size)
    times = from_pg_time(prepared), from_pg_time(time)
    return RollbackPrepared(Lsn(lsn), Lsn(end_lsn), *times, xid, gid), end


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1


def _expect(data: bytes, at: int, kinds: bytes) -> None:
    if data[at] not in kinds:
        raise ValueError(f"tuple kind {data[at]}")


def _check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


_ROW_DECODERS: Final[dict[int, Callable[[bytes, int], tuple[RowMessage, int]]]] = {
    Tag.INSERT: _insert,
    Tag.UPDATE: _update,
    Tag.DELETE: _delete,
}
_DECODERS: Final[dict[int, Callable[[bytes, int], tuple[Message, int]]]] = {
    Tag.BEGIN: _begin,
    Tag.COMMIT: _commit,
    Tag.ORIGIN: _origin,
    Tag.RELATION: _relation,
    Tag.TYPE: _type,
    Tag.TRUNCATE: _truncate,
    Tag.MESSAGE: _message,
    Tag.STREAM_START: _stream_start,
    Tag.STREAM_STOP: _stream_stop,
    Tag.STREAM_COMMIT: _stream_commit,
    Tag.STREAM_ABORT: _stream_abort,
    Tag.BEGIN_PREPARE: _begin_prepare,
    Tag.PREPARE: _prepared(Prepare),
    Tag.COMMIT_PREPARED: _prepared(CommitPrepared),
    Tag.ROLLBACK_PREPARED: _rollback_prepared,
    Tag.STREAM_PREPARE: _prepared(StreamPrepare),
}
