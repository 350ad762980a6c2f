"""The other direction of archiver.format.pgoutput, for tests: messages as the server writes them (proto.c)."""

from __future__ import annotations

import struct
from typing import Any

from archiver.format import pgoutput as p


def encode(message: p.Message, *, xid: int | None = None) -> bytes:
    """`xid` gives row, Relation, Type, Truncate and logical messages the form they have in a streamed block."""
    tag: bytes
    body: bytes
    tag, body = _BODIES[type(message)](message)
    between = struct.pack(">I", xid) if xid is not None and tag[0] in p.XID_TAGS else b""
    return tag + between + body


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def namespace(value: str) -> bytes:
    return text("" if value == "pg_catalog" else value)


def value(column: p.Value) -> bytes:
    if column is None:
        return b"n"
    if isinstance(column, p.Unchanged):
        return b"u"
    return b"t" + struct.pack(">I", len(column)) + column


def row(columns: p.Row) -> bytes:
    return struct.pack(">H", len(columns)) + b"".join(map(value, columns))


def old(columns: p.Row | None, full: bool) -> bytes:
    return b"" if columns is None else (b"O" if full else b"K") + row(columns)


def relation(m: p.Relation) -> bytes:
    columns = [
        struct.pack(">B", c.key) + text(c.name) + struct.pack(">Ii", c.type_id, c.type_modifier) for c in m.columns
    ]
    head = struct.pack(">I", m.id) + namespace(m.namespace) + text(m.name) + m.identity.encode()
    return head + struct.pack(">H", len(columns)) + b"".join(columns)


def prepared(m: Any, lsn: int) -> bytes:
    return struct.pack(">BQQqI", 0, lsn, m.end_lsn, p.to_pg_time(m.time), m.xid) + text(m.gid)


def stream_abort(m: p.StreamAbort) -> bytes:
    head = struct.pack(">II", m.xid, m.subxid)
    return head if m.lsn is None or m.time is None else head + struct.pack(">Qq", m.lsn, p.to_pg_time(m.time))


_BODIES: dict[type, Any] = {
    p.Begin: lambda m: (b"B", struct.pack(">QqI", m.final_lsn, p.to_pg_time(m.time), m.xid)),
    p.Commit: lambda m: (b"C", struct.pack(">BQQq", 0, m.commit_lsn, m.end_lsn, p.to_pg_time(m.time))),
    p.Origin: lambda m: (b"O", struct.pack(">Q", m.lsn) + text(m.name)),
    p.Relation: lambda m: (b"R", relation(m)),
    p.Type: lambda m: (b"Y", struct.pack(">I", m.id) + namespace(m.namespace) + text(m.name)),
    p.Insert: lambda m: (b"I", struct.pack(">I", m.relation_id) + b"N" + row(m.new)),
    p.Update: lambda m: (b"U", struct.pack(">I", m.relation_id) + old(m.old, m.old_full) + b"N" + row(m.new)),
    p.Delete: lambda m: (b"D", struct.pack(">I", m.relation_id) + old(m.old, m.old_full)),
    p.Truncate: lambda m: (
        b"T",
        struct.pack(">IB", len(m.relation_ids), m.cascade | m.restart_identity << 1)
        + b"".join(struct.pack(">I", oid) for oid in m.relation_ids),
    ),
    p.LogicalMessage: lambda m: (
        b"M",
        struct.pack(">BQ", m.transactional, m.lsn) + text(m.prefix) + struct.pack(">I", len(m.content)) + m.content,
    ),
    p.StreamStart: lambda m: (b"S", struct.pack(">IB", m.xid, m.first)),
    p.StreamStop: lambda _: (b"E", b""),
    p.StreamCommit: lambda m: (
        b"c",
        struct.pack(">IBQQq", m.xid, 0, m.commit_lsn, m.end_lsn, p.to_pg_time(m.time)),
    ),
    p.StreamAbort: lambda m: (b"A", stream_abort(m)),
    p.BeginPrepare: lambda m: (
        b"b",
        struct.pack(">QQqI", m.prepare_lsn, m.end_lsn, p.to_pg_time(m.time), m.xid) + text(m.gid),
    ),
    p.Prepare: lambda m: (b"P", prepared(m, m.prepare_lsn)),
    p.CommitPrepared: lambda m: (b"K", prepared(m, m.commit_lsn)),
    p.RollbackPrepared: lambda m: (
        b"r",
        struct.pack(
            ">BQQqqI", 0, m.prepare_end_lsn, m.end_lsn, p.to_pg_time(m.prepare_time), p.to_pg_time(m.time), m.xid
        )
        + text(m.gid),
    ),
    p.StreamPrepare: lambda m: (b"p", prepared(m, m.prepare_lsn)),
}
