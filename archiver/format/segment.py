"""Change segments: which records a segment's plaintext is made of, and how it is read back.

A segment is a run of records, each a big-endian u32 length and that many bytes. A record whose first byte is a
letter is a pgoutput message, verbatim. One whose first byte is below 0x20 is archiver's own:

    RELATION   0x01, u32 xid, message: a Type or Relation message of an earlier segment, repeated before the first
               row of this segment that needs it; xid 0, or the streamed transaction to which it belongs
    SEQUENCES  0x02, JSON: states of sequences, read after the last commit of this segment
    CONTEXT    0x03, u32 xid: the first record of a segment that begins within a transaction: 0 between Begin and
               Commit, otherwise between Stream Start and Stream Stop of that xid

No I/O; damage is an IntegrityError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from archiver.errors import IntegrityError

RELATION = 0x01
SEQUENCES = 0x02
CONTEXT = 0x03
LENGTH = struct.Struct(">I")
_XID = struct.Struct(">BI")
_FIRST_TAG = 0x20  # below: records of archiver's own
MAX_RECORD_BYTES = (1 << 31) - 1  # a message of the replication protocol is an int32 long


class Relation(NamedTuple):
    xid: int
    message: bytes


class Sequences(NamedTuple):
    states: bytes


class Context(NamedTuple):
    xid: int


Record = bytes | Relation | Sequences | Context


def encode(item: Record) -> bytes:
    """One record with its length."""
    match item:
        case Relation(xid, message):
            data = _XID.pack(RELATION, xid) + message
        case Context(xid):
            data = _XID.pack(CONTEXT, xid)
        case Sequences(states):
            data = bytes([SEQUENCES]) + states
        case message:
            data = message
    return LENGTH.pack(len(data)) + data


def read_records(pieces: Iterable[bytes]) -> Iterator[Record]:
    """The records of a segment from its plaintext in pieces of any size. Raises IntegrityError."""
    buffer = bytearray()
    wanted = LENGTH.size
    unpack_from = LENGTH.unpack_from
    for piece in pieces:
        buffer += piece
        if len(buffer) < wanted:
            continue
        data = bytes(buffer)
        position, size = 0, len(data)
        while size - position >= LENGTH.size:
            start = position + LENGTH.size
            (length,) = unpack_from(data, position)
            end = start + length
            if end > size or not length:
                wanted = LENGTH.size + _checked(length)
                break
            record = data[start:end]
            yield record if record[0] >= _FIRST_TAG else _decode(record)
            position = end
            wanted = LENGTH.size
        buffer = bytearray(data[position:])
    if buffer:
        raise IntegrityError("a change segment ends within a record")


def _checked(length: int) -> int:
    if not 0 < length <= MAX_RECORD_BYTES:
        raise IntegrityError(f"a change segment holds a record of {length} bytes")
    return length


def _decode(data: bytes) -> Record:
    """A record of archiver's own."""
    tag = data[0]
    if tag == RELATION and len(data) > _XID.size:
        return Relation(_XID.unpack_from(data)[1], data[_XID.size :])
    if tag == SEQUENCES:
        return Sequences(data[1:])
    if tag == CONTEXT and len(data) == _XID.size:
        return Context(_XID.unpack_from(data)[1])
    raise IntegrityError(f"a change segment holds a record of an unknown kind: {tag}")
