"""The simulated source: a server with a WAL, a replication slot, walsenders, and connections at psycopg's level.

It stands in for `connect` and for `ReplicationStream` alone: what the daemon makes of the rows and the errors is the real
code. `on_confirm` hears of every position that a daemon confirms, before it counts.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import psycopg

from archiver.errors import PostgresUnavailable
from archiver.lsn import Lsn
from archiver.postgres.replication_slot import SystemIdentity
from archiver.postgres.sequences import Sequences, SequenceState
from archiver.postgres.session import postgres_error
from tests.simulation.clock import PROCESS, WORLD, Process, now
from tests.simulation.wal import RELATIONS, Decoder, Wal

SLOT = "archiver_sim"
SYSTEM = ("7000000000000000001", 1, "sim")
_TEMPORARY = "archiver_snapshot_"


@dataclass(slots=True)
class Slot:
    """`persisted`: the position that survives a crash of the server."""

    confirmed: Lsn
    persisted: Lsn
    session: Session | None = None
    lost: bool = False


@dataclass
class Server:
    """The source. `sender_timeout`: wal_sender_timeout in seconds."""

    wal: Wal
    chance: random.Random
    counts: Counter[str]
    on_confirm: Callable[[Lsn, Process | None], None]
    complain: Callable[[str], None]
    sender_timeout: float = 5.0
    drop_slot_at: int | None = None
    slot: Slot | None = None
    down: bool = False
    slow: float = 0.0
    maker: Process | None = None  # who has taken the slot's name, and waits for it
    connections: list[Connection] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)

    def make_slot(self) -> None:
        self.slot = Slot(self.wal.end, self.wal.end)

    @property
    def retained(self) -> int:
        return self.wal.insert_lsn - self.slot.confirmed if self.slot else 0

    # --- what goes wrong ---

    def grew(self) -> None:
        for session in self.sessions:
            session.readable.set()

    def cut(self) -> None:
        """All replication connections break."""
        for session in list(self.sessions):
            session.break_off(self.chance.choice((0.0, 0.5, 3.0)))

    def crash(self) -> None:
        """Everybody is disconnected; the slot is where it was last written down."""
        self.down = True
        for session in list(self.sessions):
            session.break_off(0.0)
        for connection in self.connections:
            connection.broken = True
        self.connections.clear()
        if self.slot is not None:
            self.slot.confirmed = self.slot.persisted

    def lose_slot(self, how: str) -> bool:
        """Somebody drops the slot, moves it on, or the server invalidates it. False if there is none to lose."""
        if self.slot is None or self.slot.lost:
            return False
        for session in list(self.sessions):
            session.break_off(0.0)
        if how == "dropped":
            self.slot = None
        elif how == "moved":
            self.slot.confirmed = self.slot.persisted = self.wal.end
        else:
            self.slot.lost = True
        return True

    # --- what is asked of it ---

    async def connect(self, dsn: str, *, purpose: str, replication: bool = False) -> Connection:
        """In place of archiver.postgres.session.connect."""
        await self._pause()
        if self.down:
            raise PostgresUnavailable("connection refused")
        connection = Connection(self)
        self.connections.append(connection)
        return connection

    async def start(self, dsn: str, slot: str, publication: str, lsn: Lsn, *, in_progress: bool = True) -> Session:
        """In place of ReplicationStream.start."""
        await self._pause()
        if self.down:
            raise PostgresUnavailable("connection refused")
        if self.slot is None:
            raise postgres_error(psycopg.errors.UndefinedObject("the slot does not exist"))
        if self.slot.lost:
            raise postgres_error(psycopg.errors.ObjectNotInPrerequisiteState("can no longer access the slot"))
        if self.slot.session is not None:
            raise postgres_error(psycopg.errors.ObjectInUse("the slot is active"))
        session = Session(self, self.slot, max(lsn, self.slot.confirmed))
        self.slot.session = session
        self.sessions.append(session)
        return session

    async def _pause(self) -> None:
        await asyncio.sleep(self.chance.uniform(0.001, 0.02) + self.slow)

    async def answer(self, query: str) -> tuple[Any, ...] | None:
        for shape, reply in _ANSWERS.items():
            if shape in query:
                return await reply(self)
        raise AssertionError(f"the simulated source does not know this query: {query}")

    async def _identify(self) -> tuple[Any, ...]:
        return (*SYSTEM[:2], str(self.wal.insert_lsn), SYSTEM[2])

    async def _sample(self) -> tuple[Any, ...]:
        return now(), str(self.wal.insert_lsn), self.retained, None, bool(self.slot and self.slot.session)

    async def _show_slot(self) -> tuple[Any, ...] | None:
        slot = self.slot
        if slot is None:
            return None
        row = {
            "slot_name": SLOT, "plugin": "pgoutput", "database": SYSTEM[2],
            "active": slot.session is not None, "active_pid": 1 if slot.session else None,
            "confirmed_flush_lsn": str(slot.confirmed), "wal_status": "lost" if slot.lost else "reserved",
        }  # fmt: skip
        return (row,)

    async def _no_losses(self) -> tuple[Any, ...]:
        return (0,)

    async def _trusted_journal(self) -> tuple[Any, ...]:
        return (1,)

    async def _no_slot(self) -> None:
        return None

    async def _drop_lost_slot(self) -> tuple[Any, ...] | None:
        return await self._drop_slot() if self.slot is not None and self.slot.lost else None

    async def _drop_slot(self) -> tuple[Any, ...]:
        if self.slot is None:
            raise psycopg.errors.UndefinedObject("the slot does not exist")
        if self.slot.session is not None:
            raise psycopg.errors.ObjectInUse("the slot is active")
        if not self.slot.lost and (self.drop_slot_at is None or self.retained < self.drop_slot_at):
            self.complain("a daemon dropped a slot that was whole")
        self.slot = None
        self.counts["slot given up"] += 1
        return ("",)

    async def _new_slot(self, *, lasting: bool) -> tuple[Any, ...]:
        """Waits for the transactions that run, as the server does."""
        if not lasting:
            await self._wait_for_transactions()
        elif self.slot is not None or (self.maker is not None and self.maker.state != "dead"):
            raise psycopg.errors.DuplicateObject("the slot exists")
        else:
            self.maker = PROCESS.get()
            try:
                await self._wait_for_transactions()
            finally:
                self.maker = None
            self.make_slot()
        return SLOT, str(self.wal.end), "snapshot", "pgoutput"

    async def _wait_for_transactions(self) -> None:
        running = list(self.wal.open)
        while any(transaction in self.wal.open for transaction in running):
            await asyncio.sleep(0.2)

    async def _new_main_slot(self) -> tuple[Any, ...]:
        return await self._new_slot(lasting=True)

    async def _new_temporary_slot(self) -> tuple[Any, ...]:
        return await self._new_slot(lasting=False)

    async def _nothing(self) -> None:
        return None

    async def _position(self) -> tuple[Any, ...]:
        return (str(self.wal.insert_lsn),)

    async def _running(self) -> tuple[Any, ...]:
        return [], 1

    async def _captures_ddl(self) -> tuple[Any, ...]:
        """Its event triggers are there: no schema ever changes in the simulation."""
        return (True,)

    async def _tables(self) -> tuple[Any, ...]:
        return (list(RELATIONS),)

    async def _in_recovery(self) -> tuple[Any, ...]:
        return (False,)


_ANSWERS: dict[str, Callable[[Server], Any]] = {
    "IDENTIFY_SYSTEM": Server._identify,
    "SELECT pg_catalog.pg_is_in_recovery()": Server._in_recovery,
    "clock_timestamp": Server._sample,
    "SELECT CASE WHEN pg_catalog.pg_is_in_recovery": Server._position,
    "SET TRANSACTION": Server._nothing,
    "SELECT ARRAY(SELECT oid::bigint FROM pg_catalog.pg_class": Server._tables,
    "DELETE FROM archiver.journal": Server._nothing,
    "pg_current_snapshot": Server._running,
    "pubowner": Server._nothing,
    "puballtables": Server._captures_ddl,
    "pg_event_trigger": Server._captures_ddl,
    "archiver.losses": Server._no_losses,
    "relname = 'journal'": Server._trusted_journal,
    "invalidation_reason": Server._drop_lost_slot,
    "pg_drop_replication_slot": Server._drop_slot,
    f'CREATE_REPLICATION_SLOT "{_TEMPORARY}': Server._new_temporary_slot,
    "CREATE_REPLICATION_SLOT": Server._new_main_slot,
    f"to_jsonb {_TEMPORARY}": Server._no_slot,
    "to_jsonb": Server._show_slot,
    "lock_timeout": Server._nothing,
    "pg_locks": Server._nothing,
}


class Connection:
    """As much of a psycopg connection as the daemon uses of one."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.info = SimpleNamespace(server_version=180000, backend_pid=1)
        self.broken = False
        self.closed = False

    async def execute(self, query: Any, params: Any = None) -> Cursor:
        text = query if isinstance(query, str) else query.as_string(None)
        if isinstance(params, tuple) and "to_jsonb" in text and str(params[0]).startswith(_TEMPORARY):
            text = f"to_jsonb {_TEMPORARY}"
        await self.server._pause()
        self._require_open()
        row = await self.server.answer(text)
        self._require_open()
        return Cursor(row)

    def transaction(self) -> nullcontext[None]:
        return nullcontext()

    def cursor(self, row_factory: Any = None) -> nullcontext[Self]:
        return nullcontext(self)

    def _require_open(self) -> None:
        if self.closed or self.broken or self.server.down:
            self.broken = True
            raise psycopg.OperationalError("the connection is lost")

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Cursor:
    def __init__(self, row: tuple[Any, ...] | None) -> None:
        self._row = row

    async def fetchone(self) -> tuple[Any, ...] | None:
        return self._row

    async def fetchall(self) -> list[Any]:
        return []


class Session:
    """A walsender and the connection to it: what ReplicationStream is to the daemon."""

    def __init__(self, server: Server, slot: Slot, start: Lsn) -> None:
        self.system = SystemIdentity(SYSTEM[0], int(SYSTEM[1]), Lsn(0), SYSTEM[2])
        self._server = server
        self._slot = slot
        self._chance = server.chance
        self._decoder = Decoder(server.wal, start, server.chance)
        self._frames: deque[bytes] = deque()
        self._broken = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self.stalled_until = 0.0
        self.process = PROCESS.get()
        self.readable = asyncio.Event()
        self._loop.call_later(server.sender_timeout / 2, self._watch, context=WORLD)

    async def receive(self, patience: float) -> list[bytes]:
        self._require_unbroken()
        if not self._available():
            self.readable.clear()
            try:
                async with asyncio.timeout(patience):
                    await self.readable.wait()
            except TimeoutError:
                pass
            self._require_unbroken()
        if not self._available():
            return []
        taken = self._chance.randint(1, len(self._frames))
        return [self._frames.popleft() for _ in range(taken)]

    def _available(self) -> bool:
        if self._loop.time() < self.stalled_until:
            return False
        if not self._frames and self._decoder.behind:
            self._frames += self._decoder.read(self._chance.randint(1, 40))
        return bool(self._frames)

    async def send_status(self, written: Lsn, flushed: Lsn) -> None:
        self._server.on_confirm(flushed, self.process)
        self._require_unbroken()
        if self._loop.time() < self.stalled_until:
            return  # it waits in a buffer of the network's, with what may never arrive
        self._heard = self._loop.time()
        slot = self._slot
        if slot.session is self and self._server.slot is slot:
            slot.confirmed = max(slot.confirmed, flushed)
            if self._chance.random() < 0.1:
                slot.persisted = slot.confirmed
        if not self._decoder.behind or self._chance.random() < 0.5:
            self._frames.append(self._decoder.keepalive())
            self.readable.set()

    async def close(self) -> None:
        self._closed = True
        self.break_off(0.0)

    def give_up(self, _why: str) -> None:
        """The daemon believes that this connection is dead."""
        self.break_off(0.0)

    def break_off(self, delay: float) -> None:
        """The connection is gone; after `delay` the server has noticed, too."""
        if not self._broken:
            self._broken = True
            self.readable.set()
        if self in self._server.sessions:
            self._server.sessions.remove(self)
        self._loop.call_later(delay, self._release, context=WORLD)

    def _release(self) -> None:
        if self._slot.session is self:
            self._slot.session = None

    def _watch(self) -> None:
        """wal_sender_timeout. A daemon that lives and can be reached must never let it come to that."""
        if self._broken:
            return
        silent_for = self._loop.time() - max(self._heard, self.stalled_until)
        if silent_for >= self._server.sender_timeout:
            alive = self.process is not None and self.process.state == "alive"
            if alive and self._loop.time() - self.process.thawed_at > self._server.sender_timeout:  # type: ignore[union-attr]
                self._server.complain("a daemon that lives did not answer the server in time")
            self.break_off(0.0)
            return
        self._loop.call_later(self._server.sender_timeout / 4, self._watch, context=WORLD)

    def _require_unbroken(self) -> None:
        if self._broken:
            raise PostgresUnavailable("the connection broke")


async def read_sequences(connection: Connection, *, skip_held: bool = False) -> Sequences:
    """In place of archiver.postgres.sequences.read_sequences: there is one, and every row takes a value of it."""
    try:
        await connection.execute("SET lock_timeout")
    except psycopg.Error as exc:
        raise postgres_error(exc) from exc
    value = connection.server.wal.sequence
    return Sequences([SequenceState("public", "ledger_id_seq", max(1, value), value > 0)], [])
