"""Sessions of ours that hold locks of tables, and are ended as soon as somebody waits for one of them.

In: a connection that looks on and holds nothing, and the purpose that the sessions were opened for. Out: who waited.
The work of a session that is ended is lost, and is done again: nobody waits for a base snapshot longer than the grace
and the time of one look. It ends only sessions of its own role.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final, LiteralString

import psycopg

from archiver.postgres.replication_slot import Blocker
from archiver.postgres.session import application_name, postgres_error

LOOK_EVERY: Final = 0.05  # seconds
TRIES: Final = 20


def grace_at(attempt: int) -> timedelta:
    """How long somebody may wait for us before we give way: the more often we did, the longer, up to a second."""
    return timedelta(milliseconds=min(1000, 200 * 2 ** (attempt // 4)))


def pause_after(attempt: int) -> timedelta:
    """How long we leave tables alone when we gave way, or got no lock."""
    return timedelta(seconds=min(5.0, 0.25 * 2**attempt))


_WHO: Final[LiteralString] = """
       coalesce(w.backend_xid::text::bigint, 0), w.pid, NULL, w.usename::text, w.datname::text, w.application_name,
       w.state, w.xact_start, w.query
"""
_WAITING: Final[LiteralString] = f"""
SELECT o.pid, pg_catalog.clock_timestamp() - l.waitstart, {_WHO}
  FROM pg_catalog.pg_locks l
 CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(l.pid)) AS b (pid)
  JOIN pg_catalog.pg_stat_activity o ON o.pid = b.pid AND o.application_name = %(name)s
   AND o.usesysid = (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user)
  JOIN pg_catalog.pg_stat_activity w ON w.pid = l.pid AND w.application_name IS DISTINCT FROM o.application_name
 WHERE NOT l.granted AND l.locktype = 'relation' AND l.waitstart IS NOT NULL
"""  # noqa: S608 - a constant
_END: Final[LiteralString] = "SELECT pg_catalog.pg_terminate_backend(%s)"
_HOLDING: Final[LiteralString] = f"""
SELECT DISTINCT ON (w.pid) {_WHO}
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity w ON w.pid = l.pid
 WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
"""  # noqa: S608 - a constant


class GivingWay:
    """Watches all sessions that are opened for `purpose` (session.connect), as long as `keep` runs."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], purpose: str) -> None:
        self._conn = conn
        self._waited: dict[int, Blocker] = {}
        self.purpose = purpose
        self.grace = grace_at(0)
        self.graces: dict[int, timedelta] = {}
        """Of sessions, by process id, for which another one holds."""

    async def keep(self) -> None:
        """Look, for ever. Raises PostgresError, PostgresUnavailable: nothing of ours may hold a lock unseen."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(LOOK_EVERY)
        except psycopg.Error as exc:
            raise postgres_error(exc, "looking for who waits") from exc

    async def _look(self) -> None:
        rows = await (await self._conn.execute(_WAITING, {"name": application_name(self.purpose)})).fetchall()
        for holder, waited, *who in rows:
            if waited > self.graces.get(holder, self.grace) and holder not in self._waited:
                self._waited[holder] = Blocker(*who)
                await self._conn.execute(_END, (holder,))

    def has_ended(self, pid: int) -> bool:
        """Whether this session was ended: what it has sent by then may still be on its way."""
        return pid in self._waited

    def take_waiter(self, pid: int) -> Blocker | None:
        """Who waited for this session, so that it was ended; None if nobody did. It is forgotten by that."""
        return self._waited.pop(pid, None)

    def take_waiters(self) -> list[Blocker]:
        """Those who waited for any session; they are forgotten by that."""
        waited, self._waited = list(self._waited.values()), {}
        return waited

    async def holders(self) -> list[Blocker]:
        """Who holds, or waits for, a lock that keeps every reader of a table out. Raises PostgresError."""
        try:
            return [Blocker(*row) for row in await (await self._conn.execute(_HOLDING)).fetchall()]
        except psycopg.Error as exc:
            raise postgres_error(exc, "looking for who is in the way") from exc
