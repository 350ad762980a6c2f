"""What the daemon asks of the source beside the stream: clock and position, what the slot retains, sequences.

In: a connection string. Out: plain values. It reads and never writes, over one connection that it opens again
when that breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg

from archiver.errors import PostgresUnavailable
from archiver.format.pgmessages import Relation
from archiver.lsn import Lsn
from archiver.policy.schema_watch import Look
from archiver.postgres.catalog_look import CatalogReader
from archiver.postgres.session import connect, postgres_error

T = TypeVar("T")
PATIENCE = 30.0  # seconds for an answer; a look at a catalog of very many tables takes some
SAMPLE_PATIENCE = 5.0
COMMIT_MARGIN = timedelta(milliseconds=100)

_SAMPLE = """
SELECT pg_catalog.clock_timestamp(),
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_insert_lsn() END::text,
       pg_catalog.pg_wal_lsn_diff(
           CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                ELSE pg_catalog.pg_current_wal_insert_lsn() END, restart_lsn),
       safe_wal_size, coalesce(active, false)
  FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_replication_slots ON slot_name = %s
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was committed by `time` (the source's clock) lies at or before `lsn`.

    `retained` is how many bytes of WAL the slot then kept, `room` how many more it may keep: None is no limit.
    `active`: a walsender reads from the slot.
    """

    lsn: Lsn
    time: datetime
    retained: int
    room: int | None
    active: bool = True


class Source:
    """A side connection to the source. Calls are serialised; PostgresUnavailable means try again later."""

    def __init__(self, dsn: str, slot: str) -> None:
        self._dsn = dsn
        self._slot = slot
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self._catalog = CatalogReader()

    async def look(
        self,
        described: Collection[Relation] = (),
        announced: Set[int] = frozenset(),
        named: Mapping[int, str] | None = None,
    ) -> Look:
        """Look at the catalog, and for what the stream described of it. Raises PostgresError, PostgresUnavailable."""
        return await self.ask(lambda conn: self._catalog.look(conn, described, announced, named))

    async def sample(self) -> Sample:
        async def ask(conn: psycopg.AsyncConnection[Any]) -> Any:
            return await (await conn.execute(_SAMPLE, (self._slot,))).fetchone()

        time, lsn, retained, room, active = await self.ask(ask, SAMPLE_PATIENCE)
        if lsn is None:
            raise PostgresUnavailable("the standby has not replayed any WAL yet")
        # The clock was read first, but a commit takes its time a moment before its place in the WAL.
        position = Lsn.parse(lsn).before_page_header()
        return Sample(position, time - COMMIT_MARGIN, max(0, int(retained or 0)), room, active)

    async def ask(
        self, question: Callable[[psycopg.AsyncConnection[Any]], Coroutine[Any, Any, T]], patience: float = PATIENCE
    ) -> T:
        """Run a question on the connection. Raises PostgresError, PostgresUnavailable.

        Without an answer after `patience` seconds the connection is closed, which ends the question: to cancel it would
        be to wait for the very server that does not answer.
        """
        try:
            async with asyncio.timeout(patience):
                await self._lock.acquire()
        except TimeoutError:
            raise PostgresUnavailable(f"the source has not answered another question for {patience:.0f} s") from None
        try:
            return await self._ask_for(patience, question)
        finally:
            self._lock.release()

    async def _ask_for(
        self, patience: float, question: Callable[[psycopg.AsyncConnection[Any]], Coroutine[Any, Any, T]]
    ) -> T:
        asked = asyncio.ensure_future(self._ask(question))
        try:
            await asyncio.wait([asked], timeout=patience)
        finally:
            answered = asked.done()
            if not answered:
                await self.close()
                asked.cancel()
                await asyncio.wait([asked], timeout=1)
        if not answered:
            raise PostgresUnavailable(f"the source did not answer within {patience:.0f} s")
        return asked.result()

    async def _ask(self, question: Callable[[psycopg.AsyncConnection[Any]], Coroutine[Any, Any, T]]) -> T:
        try:
            return await question(await self._connected())
        except psycopg.Error as exc:
            raise postgres_error(exc) from exc

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._conn is None or self._conn.broken or self._conn.closed:
            self._conn = await connect(self._dsn, purpose="monitor")
            # A migration may lock a sequence for hours; segments must not wait for it.
            await self._conn.execute("SET lock_timeout = '1s'")
        return self._conn

    async def close(self) -> None:
        """End the connection; the next question opens another."""
        if self._conn is not None:
            await self._conn.close()
            self._conn = None
