"""Timelines: whether the server's history is the one that was archived.

In: a replication connection. Out: the LSN at which the server's history left another timeline. A standby that takes
over, and a server that was restored to a point, begin a new one there; LSNs behind it mean other things on each.

The format of a history file: PostgreSQL documentation, "Streaming Replication Protocol", TIMELINE_HISTORY.
"""

from __future__ import annotations

from typing import Any

import psycopg

from archiver.errors import PostgresError, UsageError
from archiver.lsn import Lsn
from archiver.postgres.session import postgres_error

_FIRST = 1
"""Has no history, and no file of it."""


async def left_at(conn: psycopg.AsyncConnection[Any], timeline: int, ancestor: int) -> Lsn:
    """Where the history of `timeline` left `ancestor`: LSN 0 if it never was a part of it."""
    if timeline == _FIRST:
        return Lsn(0)
    try:
        row = await (await conn.execute(b"TIMELINE_HISTORY %d" % timeline)).fetchone()
    except psycopg.Error as exc:
        raise postgres_error(exc, f"timeline {timeline}") from exc
    if row is None:
        raise PostgresError("the server does not know the history of its timeline", where=f"timeline {timeline}")
    content = row[1] if isinstance(row[1], str) else bytes(row[1]).decode()
    return parse_history(content).get(ancestor, Lsn(0))


def parse_history(content: str) -> dict[int, Lsn]:
    """The ancestors in a history file, and where each was left. Raises PostgresError."""
    lines = (line.split() for line in content.splitlines() if line.strip() and not line.startswith("#"))
    try:
        return {int(fields[0]): Lsn.parse(fields[1]) for fields in lines}
    except (ValueError, IndexError, UsageError):
        raise PostgresError("the server's history of timelines cannot be read") from None
