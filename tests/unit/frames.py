"""CopyData payloads as a walsender sends them, written by hand. Time and LSN run together."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from archiver.format import pgoutput as p
from archiver.lsn import Lsn
from tests.pgoutput_encoder import encode

START = datetime(2026, 11, 22, 3, tzinfo=UTC)
TABLE = p.Relation(10, "public", "t", "d", (p.Column("id", 23, -1, True),))
OTHER = p.Relation(11, "public", "other", "d", TABLE.columns)
WIDER = p.Relation(10, "public", "t", "d", (*TABLE.columns, p.Column("more", 25, -1, False)))
MOOD = p.Type(77, "public", "mood")


def at(lsn: int) -> datetime:
    return START + timedelta(seconds=lsn)


def wal(message: bytes) -> bytes:
    """A message in its XLogData."""
    return b"w" + struct.pack(">QQq", 1, 2, 3) + message


def keepalive(end: int) -> bytes:
    return b"k" + struct.pack(">Qq?", end, 0, False)


def begin(lsn: int, xid: int = 1) -> bytes:
    return wal(encode(p.Begin(Lsn(lsn - 2), at(lsn), xid)))


def commit(lsn: int, time: int | None = None) -> bytes:
    return wal(encode(p.Commit(Lsn(lsn - 2), Lsn(lsn), at(lsn if time is None else time))))


def described(relation: p.Relation | p.Type, xid: int | None = None) -> bytes:
    return wal(encode(relation, xid=xid))


def insert(value: bytes, relation: int = 10, xid: int | None = None) -> bytes:
    return wal(encode(p.Insert(relation, (value,), 0), xid=xid))


def truncate(*relations: int, xid: int | None = None) -> bytes:
    return wal(encode(p.Truncate(relations, False, False), xid=xid))


def message(prefix: str, content: bytes, lsn: int, *, transactional: bool = True, xid: int | None = None) -> bytes:
    return wal(encode(p.LogicalMessage(transactional, Lsn(lsn), prefix, content), xid=xid))


JOURNAL = p.Relation(
    90, "archiver", "journal", "d",
    tuple(p.Column(name, 25, -1, name == "id") for name in ("id", "kind", "key", "about", "content")),
)  # fmt: skip


def journal_row(kind: str, said: dict[str, Any] | str, identity: str = "2f0c") -> tuple[bytes | None, ...]:
    content = said if isinstance(said, str) else json.dumps(said)
    return (identity.encode(), kind.encode(), None, None, content.encode("utf-8", "surrogatepass"))


def entry(kind: str, said: dict[str, Any] | str, xid: int | None = None) -> bytes:
    """A row of the journal."""
    return wal(encode(p.Insert(JOURNAL.id, journal_row(kind, said), 0), xid=xid))


def block(xid: int, *frames: bytes, first: bool = False) -> list[bytes]:
    """A streamed block."""
    return [wal(encode(p.StreamStart(xid, first))), *frames, wal(encode(p.StreamStop()))]


def stream_commit(xid: int, lsn: int) -> bytes:
    return wal(encode(p.StreamCommit(xid, Lsn(lsn - 2), Lsn(lsn), at(lsn))))


def stream_abort(xid: int, subxid: int) -> bytes:
    return wal(encode(p.StreamAbort(xid, subxid, None, None)))
