"""Runs steps on a source, one at a time over several connections, and freezes it at random moments.

A statement that has to wait for another connection fails after a while (lock_timeout): nothing ever deadlocks, and a
script gives the same again. `Drive` is used from a thread of its own, beside the daemon's event loop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from archiver.lsn import Lsn
from tests.dumps import pg_dump
from tests.fuzz.gen import Gen
from tests.fuzz.script import FREEZE, INIT, Step
from tests.fuzz.statements import next_step
from tests.fuzz.world import look

CONNECTIONS = 3
"""One more ends prepared transactions."""
_STATUS = {TransactionStatus.IDLE: "idle", TransactionStatus.INTRANS: "open", TransactionStatus.INERROR: "aborted"}
_OURS = ("does not have a replica identity", "archiver")
"""What no error and no warning of the source may say: it would be our doing."""
_SEQUENCES = """
SELECT format('%I.%I', nspname, relname), seqincrement FROM pg_sequence
  JOIN pg_class c ON c.oid = seqrelid JOIN pg_namespace n ON n.oid = relnamespace
 WHERE nspname !~ '^(pg_|archiver$)' ORDER BY 1
"""
_CONFIRMED = """
SELECT bool_or(confirmed_flush_lsn >= %s::pg_lsn) FROM pg_replication_slots
 WHERE database = current_database() AND NOT temporary
"""
_BLOCKERS = """
SELECT DISTINCT pid FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND pid = ANY (%s)
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


_SETTINGS = "-c lock_timeout=150ms -c statement_timeout=20s -c escape_string_warning=off -c client_min_messages=warning"
"""Of a connection, so that RESET ALL goes back to them."""
_PATIENCE = 20_000
"""Milliseconds for a lock while all others stand still: what holds it then will never let it go."""
_PATIENT = f"-c lock_timeout={_PATIENCE}"


@dataclass(frozen=True, slots=True)
class Frozen:
    """The source at one position: what a restore to it must be."""

    lsn: Lsn
    dump: list[str]
    sequences: dict[str, tuple[int, int]]
    step: int


@dataclass
class Drive:
    """`steps` is what was done so far, `complaints` what should never be said at a source."""

    dsn: str
    steps: list[Step] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    connections: list[psycopg.Connection[Any]] = field(default_factory=list)
    savepoints: dict[int, int] = field(default_factory=dict)

    def open(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            for role in ("fuzz_owner", "fuzz_reader"):
                with suppress(psycopg.errors.DuplicateObject):
                    conn.execute(f"CREATE ROLE {role}".encode())
                conn.execute(f"GRANT ALL ON SCHEMA public TO {role}".encode())
        for _ in range(CONNECTIONS + 1):
            conn = psycopg.connect(self.dsn, autocommit=True, options=_SETTINGS)
            conn.add_notice_handler(lambda notice: self._listen(notice.message_primary or ""))
            self.connections.append(conn)

    def close(self) -> None:
        for conn in self.connections:
            conn.close()

    # --- steps

    def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self.do(step)

    def do(self, step: Step) -> None:
        self.steps.append(step)
        if step.text == FREEZE:
            self._freeze()
        elif step.connection:
            self.outcomes.append(self._execute(step))

    def _execute(self, step: Step) -> str:
        conn = self.connections[step.connection - 1]
        try:
            if "CONCURRENTLY" in step.text and self.status(step.connection) == "idle":
                conn.execute("SET lock_timeout = '10s'")  # the daemon's looks are all that it can wait for
            conn.execute(step.text.encode())
        except psycopg.Error as exc:
            message = str(exc)
            self._listen(message)
            if conn.closed:
                raise
            outcome = message.partition("\n")[0]
        else:
            outcome = "ok"
        self._track(step)
        if "CONCURRENTLY" in step.text and self.status(step.connection) == "idle":
            conn.execute("RESET lock_timeout")
        return outcome

    def _listen(self, message: str) -> None:
        archived = any(step.text == INIT for step in self.steps)
        if archived and any(word in message for word in _OURS) and "lock timeout" not in message:
            self.complaints.append(f"step {len(self.steps)}: {message}")

    def _track(self, step: Step) -> None:
        number = step.connection
        word, _, rest = step.text.partition(" ")
        if self.status(number) == "idle":
            self.savepoints[number] = 0
        elif word == "SAVEPOINT" or step.text.startswith("ROLLBACK TO"):
            self.savepoints[number] = int(rest.rpartition("s")[2])
        elif word == "RELEASE" and self.status(number) == "open":
            self.savepoints[number] = int(rest.rpartition("s")[2]) - 1

    def status(self, number: int) -> str:
        return _STATUS[self.connections[number - 1].info.transaction_status]

    # --- freezing

    def _freeze(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            row = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            conn.execute("SELECT pg_current_xact_id()")  # wakes the WAL writer: all up to here is sent soon
        lsn = Lsn.parse(row[0]).before_page_header()
        self.frozen.append(Frozen(lsn, everything(self.dsn), sequences(self.dsn), len(self.steps)))
        self._wait_until_archived(lsn)

    def _wait_until_archived(self, lsn: Lsn) -> None:
        """A sequence that is set back before its state was read would have been, in the archive, never higher."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            for _ in range(300):
                row = conn.execute(_CONFIRMED, [str(lsn)]).fetchone()
                if row is not None and row[0]:
                    return
                time.sleep(0.1)
        raise TimeoutError(f"{lsn} was not archived within 30 s")

    def blockers(self) -> list[int]:
        """Connections whose locks a dump would wait for."""
        pids = {conn.info.backend_pid: number for number, conn in enumerate(self.connections, 1)}
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return sorted(pids[pid] for (pid,) in conn.execute(_BLOCKERS, [list(pids)]).fetchall())


def everything(dsn: str) -> list[str]:
    """What a restore must bring back: the dump, and the rows of materialized views, which no dump shows.

    Unlogged tables come back empty, so views may look different where there is one.
    """
    dump = pg_dump(dsn, "--no-unlogged-table-data", f"--lock-wait-timeout={_PATIENCE}")
    # An identity copied by LIKE is a bigint's with an integer's bound; after pg_dump it is an integer's without.
    dump = ["    NO MAXVALUE" if line == "    MAXVALUE 2147483647" else line for line in dump]
    # pg_dump writes it for an identity column that was dropped, too.
    dump = [line.replace(" OVERRIDING SYSTEM VALUE", "", 1) for line in dump]
    with psycopg.connect(dsn, autocommit=True, options=_PATIENT) as conn:
        world = look(conn)
        if world.of("r", "u"):
            return dump
        for view in world.of("m"):
            dump.append(f"-- rows of {view.full}")
            with suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                rows = conn.execute(f"SELECT v::text FROM {view.full} v ORDER BY 1".encode())
                dump += [row for (row,) in rows.fetchall()]
    return dump


def sequences(dsn: str) -> dict[str, tuple[int, int]]:
    """The last value that each sequence gave, and its increment. pg_sequences would take a lock that may be held."""
    found: dict[str, tuple[int, int]] = {}
    with psycopg.connect(dsn, autocommit=True, options=_PATIENT) as conn:
        for name, by in conn.execute(_SEQUENCES).fetchall():
            row = conn.execute(f"SELECT last_value, is_called FROM {name}".encode()).fetchone()
            assert row is not None
            found[name] = (row[0] if row[1] else row[0] - by, by)
    return found


def generate(drive: Drive, seed: int, length: int) -> Iterator[Step]:
    """Steps of a seed, each made from what its connection sees after all steps before it were done."""
    rng = random.Random(seed)
    version = drive.connections[0].info.server_version
    number, before = 0, rng.randint(0, length // 3)
    initialized = False
    prepared: list[str] = []
    while number < length or not initialized:
        number += 1
        if not initialized and number > before:
            initialized = True
            yield from _calm(drive, prepared, rng, everyone=True)
            # A base snapshot holds no rows of theirs: a restore refreshes them.
            for view in look(drive.connections[-1]).of("m"):
                yield Step(CONNECTIONS + 1, f"REFRESH MATERIALIZED VIEW {view.full}")
            yield Step(0, INIT)
        if initialized and (rng.random() < 0.03 or number == length):
            yield from _calm(drive, prepared, rng, everyone=False)
            yield Step(0, FREEZE)
        at = rng.randint(1, CONNECTIONS)
        status = drive.status(at)
        # `init` refuses tables with a virtual generated column and no key
        gen = Gen(rng, look(drive.connections[at - 1]), status == "idle", number, version if initialized else 170000)
        gen.archived, gen.inside = initialized, status != "idle"
        gen.busy = any(drive.status(other) != "idle" for other in range(1, CONNECTIONS + 1)) or bool(prepared)
        step = Step(at, next_step(gen, status, drive.savepoints.get(at, 0)))
        yield step
        if step.text.startswith("PREPARE TRANSACTION") and drive.outcomes[-1] == "ok":
            prepared.append(step.text.split(" ", 2)[2])
        elif prepared and rng.random() < 0.4:
            yield from _finish(prepared, rng)
    yield from _calm(drive, prepared, rng, everyone=True)
    yield Step(0, FREEZE)


def _finish(prepared: list[str], rng: random.Random) -> Iterator[Step]:
    for name in prepared:
        yield Step(CONNECTIONS + 1, f"{rng.choice(['COMMIT', 'ROLLBACK'])} PREPARED {name}")
    prepared.clear()


def _calm(drive: Drive, prepared: list[str], rng: random.Random, *, everyone: bool) -> Iterator[Step]:
    """End the transactions that a dump would wait for, or all."""
    yield from _finish(prepared, rng)
    numbers = range(1, CONNECTIONS + 1) if everyone else drive.blockers()
    for at in numbers:
        if drive.status(at) != "idle":
            yield Step(at, rng.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
