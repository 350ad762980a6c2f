"""Replication slots: made, looked at, dropped.

In: a replication connection, and an ordinary one to look on from. Out: a slot with its consistent point and,
if wanted, a snapshot of exactly that point. Never: a wait without saying for whom, or a half-made slot left
behind after a timeout or a cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from archiver.errors import PostgresError
from archiver.lsn import Lsn
from archiver.postgres.session import connect, postgres_error

PLUGIN: Final = "pgoutput"


@dataclass(frozen=True, slots=True)
class CreatedSlot:
    """Streaming starts at `lsn`; `snapshot` shows the database just there, while the connection does nothing else."""

    name: str
    lsn: Lsn
    snapshot: str | None


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that a new slot waits for. What the role may not see is None; a prepared one has a `gid`."""

    transaction: int
    pid: int | None
    gid: str | None
    user: str | None
    database: str | None
    application: str | None
    state: str | None
    started: datetime | None
    query: str | None

    def __str__(self) -> str:
        if self.gid is not None:
            return f"prepared transaction {self.gid!r} of {self.user}"
        details = [self.application, self.state, f"since {self.started:%Y-%m-%d %H:%M:%S}Z" if self.started else None]
        known = ", ".join(filter(None, details))
        return f"pid {self.pid} of {self.user}{f' ({known})' if known else ''}"


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """What IDENTIFY_SYSTEM says, and whether it is a standby. A changed `system_id` is another cluster."""

    system_id: str
    timeline: int
    position: Lsn
    database: str
    standby: bool = False

    def is_one_with(self, other: SystemIdentity) -> bool:
        """Whether both are the same server on the same timeline: then positions mean the same."""
        return (self.system_id, self.timeline) == (other.system_id, other.timeline)


# --- Making --------------------------------------------------------------------------------------------

POLL: Final = timedelta(seconds=1)
_GONE_WITHIN: Final = 10.0


async def create_slot(
    conn: psycopg.AsyncConnection[Any],
    name: str,
    *,
    temporary: bool = False,
    export: bool = True,
    watch: psycopg.AsyncConnection[Any],
    on_blocked: Callable[[Sequence[Blocker]], None] | None = None,
    timeout: timedelta | None = None,  # noqa: ASYNC109  # ends with an error that names the blocker
) -> CreatedSlot:
    """Make a logical slot for pgoutput on a replication connection.

    The server waits for every transaction that was running, in any database. `watch`, an ordinary autocommit
    connection, sees which; `on_blocked` is told each second. After `timeout` PostgresError names them. An
    attempt that fails or is cancelled closes `conn` and leaves no slot.
    """
    if await slot_info(watch, name) is not None:
        # asked first, so that undoing an attempt can never drop a slot that was there before it
        raise PostgresError(f"the slot is there already: {name}", hint=_HINTS["42710"])
    making = asyncio.create_task(_create(conn, name, temporary, export), name=f"create slot {name}")
    try:
        return await _watch(making, conn, watch, on_blocked or _tell_nobody, timeout)
    except BaseException as exc:
        try:
            await _undo(making, conn, watch, name)
        except (PostgresError, TimeoutError) as failed:
            raise exc from failed  # a cancellation stays one, though the source has gone away
        raise


def each_once(tell: Callable[[Blocker], None]) -> Callable[[Sequence[Blocker]], None]:
    """An `on_blocked` that tells of each blocker once."""
    told: set[str] = set()

    def on_blocked(blockers: Sequence[Blocker]) -> None:
        for blocker in blockers:
            if str(blocker) not in told:
                told.add(str(blocker))
                tell(blocker)

    return on_blocked


def _tell_nobody(_: Sequence[Blocker]) -> None:
    pass


async def _create(conn: psycopg.AsyncConnection[Any], name: str, temporary: bool, export: bool) -> CreatedSlot:
    try:
        row = await (await conn.execute(create_statement(conn, name, temporary=temporary, export=export))).fetchone()
    except psycopg.Error as exc:
        raise slot_error(exc, name) from exc
    assert row is not None
    return CreatedSlot(row[0], Lsn.parse(row[1]), row[2])


def create_statement(conn: psycopg.AsyncConnection[Any], name: str, *, temporary: bool, export: bool) -> sql.Composed:
    """Options in parentheses came with 15. From 17 on a lasting slot follows a failover, if the standby syncs slots."""
    kept = sql.SQL("TEMPORARY ") if temporary else sql.SQL("")
    if conn.info.server_version >= 150000:
        options = ["SNAPSHOT 'export'" if export else "SNAPSHOT 'nothing'"]
        options += ["FAILOVER"] if conn.info.server_version >= 170000 and not temporary else []
        snapshot = sql.SQL(f"({', '.join(options)})")
    else:
        snapshot = sql.SQL("EXPORT_SNAPSHOT") if export else sql.SQL("NOEXPORT_SNAPSHOT")
    head = sql.SQL("CREATE_REPLICATION_SLOT {} {}LOGICAL {} ")
    return head.format(sql.Identifier(name), kept, sql.SQL(PLUGIN)) + snapshot


async def _watch(
    making: asyncio.Task[CreatedSlot],
    conn: psycopg.AsyncConnection[Any],
    watch: psycopg.AsyncConnection[Any],
    on_blocked: Callable[[Sequence[Blocker]], None],
    timeout: timedelta | None,  # noqa: ASYNC109
) -> CreatedSlot:
    clock = asyncio.get_running_loop().time
    deadline = None if timeout is None else clock() + timeout.total_seconds()
    while True:
        left = POLL.total_seconds() if deadline is None else min(POLL.total_seconds(), deadline - clock())
        done, _ = await asyncio.wait([making], timeout=max(left, 0))
        if done:
            return making.result()
        blockers = await list_blockers(watch, conn.info.backend_pid)
        if deadline is not None and clock() >= deadline:
            raise _still_blocked(blockers, timeout)
        if blockers:
            on_blocked(blockers)


def _still_blocked(blockers: Sequence[Blocker], timeout: timedelta | None) -> PostgresError:
    names = "; ".join(map(str, blockers)) or "no transaction that can be seen"
    ends = [f"SELECT pg_terminate_backend({b.pid})" for b in blockers if b.pid is not None]
    ends += [f"ROLLBACK PREPARED '{b.gid}'" for b in blockers if b.gid is not None]
    how = f"End what is in the way or wait for it: {'; '.join(ends)}." if ends else "Try again."
    return PostgresError(f"the slot could not be made within {timeout}: it waits for {names}", hint=how)


async def _undo(
    making: asyncio.Task[CreatedSlot],
    conn: psycopg.AsyncConnection[Any],
    watch: psycopg.AsyncConnection[Any],
    name: str,
) -> None:
    """Cancel the statement and hang up: the server then removes what it had of the slot.

    The cancellation may come too late for a slot that lasts; it is dropped.
    """
    refused = making.done() and not making.cancelled() and making.exception() is not None
    making.cancel()
    await asyncio.gather(making, return_exceptions=True)
    await conn.close()
    if not refused:
        async with asyncio.timeout(_GONE_WITHIN):
            await drop_when_idle(watch, name)


async def drop_when_idle(watch: psycopg.AsyncConnection[Any], name: str) -> None:
    """Drop a slot, if it is there, once its walsender has noticed that nobody reads any more."""
    while (info := await slot_info(watch, name)) is not None:
        if info.active:
            await asyncio.sleep(0.05)
        else:
            await drop_slot(watch, name)


_BLOCKERS: Final[LiteralString] = """
with waiting as (
    select transactionid from pg_catalog.pg_locks
     where pid = %(pid)s and locktype = 'transactionid' and not granted
), holders as (
    select l.transactionid, l.pid, l.transactionid in (select * from waiting) as waited_for
      from pg_catalog.pg_locks l
     where l.locktype = 'transactionid' and l.granted and l.mode = 'ExclusiveLock'
       and l.pid is distinct from %(pid)s
       and pg_catalog.age(l.transactionid) >= (select max(pg_catalog.age(transactionid)) from waiting)
    union
    select w.transactionid, null, true from waiting w
)
select h.transactionid::text::bigint as transaction, h.pid, x.gid,
       coalesce(a.usename, x.owner)::text as user, coalesce(a.datname, x.database)::text as database,
       nullif(a.application_name, '') as application, a.state,
       coalesce(a.xact_start, x.prepared) as started, pg_catalog.left(a.query, 100) as query
from holders h
left join pg_catalog.pg_stat_activity a on a.pid = h.pid
left join pg_catalog.pg_prepared_xacts x on x.transaction = h.transactionid
where a.pid is not null or x.gid is not null
order by h.waited_for desc, started
"""
"""pg_locks shows every role who holds and who awaits a transaction; pg_stat_activity hides what others run.
A slot waits for one after the other: the one it waits for now comes first, then older ones."""


async def list_blockers(watch: psycopg.AsyncConnection[Any], waiting_pid: int) -> list[Blocker]:
    """The transactions that the backend `waiting_pid` waits for."""
    try:
        async with watch.cursor(row_factory=class_row(Blocker)) as cur:
            return await (await cur.execute(_BLOCKERS, {"pid": waiting_pid})).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc, "looking for blocking transactions") from exc


# --- Looking and dropping ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A row of pg_replication_slots. `invalidation` says why a slot is lost, as far as the version tells."""

    name: str
    plugin: str | None
    database: str | None
    active: bool
    active_pid: int | None
    confirmed_flush_lsn: Lsn | None
    wal_status: str | None
    invalidation: str | None

    @property
    def is_lost(self) -> bool:
        return self.wal_status == "lost" or self.invalidation is not None


_SLOT: Final[LiteralString] = """
select to_jsonb(s) from pg_catalog.pg_replication_slots s where slot_name = %s
"""


async def slot_info(conn: psycopg.AsyncConnection[Any], name: str) -> SlotInfo | None:
    """What the server says of a slot, on an ordinary connection; None if there is none of that name."""
    row = await _one(conn, _SLOT, (name,), name)
    return slot_info_from(row[0]) if row else None


def slot_info_from(row: dict[str, Any]) -> SlotInfo:
    """A row of pg_replication_slots, of any version, as JSON."""
    return SlotInfo(
        name=row["slot_name"],
        plugin=row["plugin"],
        database=row["database"],
        active=row["active"],
        active_pid=row["active_pid"],
        confirmed_flush_lsn=_lsn(row["confirmed_flush_lsn"]),
        wal_status=row["wal_status"],
        invalidation=_invalidation(row),
    )


def _invalidation(row: dict[str, Any]) -> str | None:
    """`invalidation_reason` came with 17, `conflicting` with 16; before, a lost slot has lost its WAL."""
    reason = row.get("invalidation_reason")
    if reason is not None:
        return str(reason)
    if row.get("conflicting"):
        return "conflict with recovery"
    return "wal_removed" if row["wal_status"] == "lost" else None


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)


async def drop_slot(conn: psycopg.AsyncConnection[Any], name: str) -> bool:
    """Drop a slot, on an ordinary connection; False if there was none. Raises PostgresError while it is in use."""
    try:
        await conn.execute("SELECT pg_catalog.pg_drop_replication_slot(%s)", (name,))
    except psycopg.errors.UndefinedObject:
        return False
    except psycopg.Error as exc:
        raise slot_error(exc, name) from exc
    return True


_DROP_LOST: Final[LiteralString] = """
select pg_catalog.pg_drop_replication_slot(slot_name)
  from (select s.slot_name, to_jsonb(s) as row from pg_catalog.pg_replication_slots s where s.slot_name = %s) as slot
 where row->>'wal_status' = 'lost' or row->>'invalidation_reason' is not null or row->>'conflicting' = 'true'
"""


async def drop_lost_slot(conn: psycopg.AsyncConnection[Any], name: str) -> None:
    """Drop a slot that is lost, in the statement that looks at it: another daemon may have made a new one meanwhile."""
    try:
        await conn.execute(_DROP_LOST, (name,))
    except psycopg.Error as exc:
        raise slot_error(exc, name) from exc


async def identify(dsn: str, *, purpose: str) -> SystemIdentity:
    """Who the server is, asked on a replication connection made for that. Raises what `session.connect` raises."""
    conn = await connect(dsn, purpose=purpose, replication=True)
    try:
        return await identify_system(conn)
    finally:
        await conn.close()


async def identify_system(conn: psycopg.AsyncConnection[Any]) -> SystemIdentity:
    """Who the server is, on a replication connection."""
    row = await _one(conn, "IDENTIFY_SYSTEM", None, "IDENTIFY_SYSTEM")
    recovery = await _one(conn, "SELECT pg_catalog.pg_is_in_recovery()", None, "IDENTIFY_SYSTEM")
    assert row is not None
    assert recovery is not None
    return SystemIdentity(str(row[0]), int(row[1]), Lsn.parse(row[2]), row[3], bool(recovery[0]))


async def _one(
    conn: psycopg.AsyncConnection[Any], query: LiteralString, params: tuple[Any, ...] | None, where: str
) -> tuple[Any, ...] | None:
    try:
        return await (await conn.execute(query, params)).fetchone()
    except psycopg.Error as exc:
        raise postgres_error(exc, where) from exc


# --- Errors --------------------------------------------------------------------------------------------

_HINTS: Final[dict[str, str]] = {
    "53400": "Raise max_replication_slots, or drop a slot that nobody needs: SELECT * FROM pg_replication_slots.",
    "42501": "Give the role what it lacks: ALTER ROLE … REPLICATION, or on a managed service its own role, "
    "such as GRANT rds_replication TO …",
    "42710": "Choose another name in source.slot, or drop the slot that has it.",
    "55000": "Set wal_level to logical and restart the server; on RDS, set rds.logical_replication to 1.",
    "42602": "Use lower-case letters, digits and underscores in source.slot.",
}
"""By SQLSTATE: configuration_limit_exceeded, insufficient_privilege, duplicate_object,
object_not_in_prerequisite_state, invalid_name."""


def slot_error(exc: psycopg.Error, name: str) -> PostgresError:
    """The error for what PostgreSQL says of a slot, with a hint that fits slots."""
    error = postgres_error(exc, f"slot {name}")
    error.hint = _HINTS.get(exc.sqlstate or "", error.hint)
    return error
