"""Transactions that change the source, and wait for its locks only briefly, again and again.

Whoever comes behind one that waits for a lock waits, too: a transaction that is open for hours must not stop everybody
else because we wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, LiteralString, TypeVar

import psycopg

from archiver.errors import PostgresError
from archiver.postgres.session import postgres_error

T = TypeVar("T")
PAUSE: Final = 1.0  # seconds
ATTEMPTS: Final = 30
_BRIEFLY: Final[LiteralString] = "SET LOCAL lock_timeout = '200ms'"
_WHO: Final = (
    "Try again when they have ended. They are among: SELECT pid, usename, state, query FROM pg_stat_activity"
    " WHERE xact_start IS NOT NULL ORDER BY xact_start"
)


async def with_brief_locks(conn: psycopg.AsyncConnection[Any], work: Callable[[], Awaitable[T]], where: str) -> T:
    """Do it in a transaction of its own, which is tried anew where a lock is not to be had. Raises PostgresError."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with conn.transaction():
                await conn.execute(_BRIEFLY)
                return await work()
        except psycopg.errors.LockNotAvailable as exc:
            if attempt == ATTEMPTS:
                raise PostgresError("open transactions hold locks that are needed", where=where, hint=_WHO) from exc
            await asyncio.sleep(PAUSE)
        except psycopg.Error as exc:
            raise postgres_error(exc, where) from exc
    raise AssertionError("unreachable")
