"""A base snapshot beside those who want tables for themselves: nobody waits for it, and it comes to its end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest

from archiver import snapshots, table_copies
from archiver.errors import InTheWay, SchemaMoved
from archiver.format.manifest import Snapshot
from archiver.postgres.replication_slot import Blocker
from archiver.postgres.session import connect
from archiver.postgres.shown_catalog import is_unchanged, shown
from archiver.postgres.snapshot import begin_snapshot
from archiver.postgres.snapshot_tables import _TABLES
from archiver.snapshots import take_snapshot
from tests.fix_archive import MakeSetup, Setup

TABLES = """
CREATE TABLE big AS SELECT i AS id, repeat('x', 200) AS v FROM generate_series(1, 150000) i;
ALTER TABLE big ADD PRIMARY KEY (id);
CREATE TABLE small (id int PRIMARY KEY, v text); INSERT INTO small SELECT i, 'y' FROM generate_series(1, 100) i
"""
EXCLUSIVE = ("ALTER TABLE {table} ALTER v TYPE text", "REINDEX TABLE {table}")  # neither is a change to be seen


@pytest.fixture
async def busy(make_setup: MakeSetup) -> Setup:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(TABLES)
    await setup.init()
    return setup


class Waits(Thread):
    """An application's session, which says how long its longest statement took."""

    def __init__(self, dsn: str, work: Callable[[psycopg.Connection[Any], int], None]) -> None:
        super().__init__(daemon=True)
        self._dsn = dsn
        self._work = work
        self._ended = Event()
        self.longest = 0.0
        self.count = 0

    def run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._ended.is_set():
                began = monotonic()
                self._work(conn, self.count)
                self.longest = max(self.longest, monotonic() - began)
                self.count += 1

    def stop(self) -> None:
        self._ended.set()
        self.join(60)


@contextmanager
def working(*sessions: Waits) -> Iterator[None]:
    for session in sessions:
        session.start()
    try:
        yield
    finally:
        for session in sessions:
            session.stop()


def read(conn: psycopg.Connection[Any], number: int) -> None:
    conn.execute(f"SELECT v FROM {('big', 'small')[number % 2]} WHERE id = 1")  # type: ignore[arg-type]
    sleep(0.002)


def take_exclusively(conn: psycopg.Connection[Any], number: int) -> None:
    chance = random.Random(number)
    sleep(chance.uniform(0, 1.5))
    conn.execute(chance.choice(EXCLUSIVE).format(table=chance.choice(("big", "small"))).encode())


async def snapshot(setup: Setup, told: list[str] | None = None) -> Snapshot:
    def tell(blockers: Sequence[Blocker]) -> None:
        (told if told is not None else []).extend(map(str, blockers))

    async with setup.open() as archive:
        await archive.follow()
        return await take_snapshot(archive, setup.config.require_source(), setup.config.snapshot, on_blocked=tell)


@pytest.fixture
def slow_copies(monkeypatch: pytest.MonkeyPatch) -> Event:
    """The big table takes some seconds; the event says that it has begun."""
    genuine, begun = table_copies._add, Event()

    def add(rows: Sequence[bytes], *args: Any) -> None:
        begun.set()
        sleep(len(rows) * 20e-6)
        genuine(rows, *args)

    monkeypatch.setattr(table_copies, "_add", add)
    return begun


async def test_nobody_waits_for_a_base_snapshot(busy: Setup, slow_copies: Event) -> None:
    reader, owner = Waits(busy.dsn, read), Waits(busy.dsn, take_exclusively)
    told: list[str] = []
    with working(reader, owner):
        began = monotonic()
        taken = await snapshot(busy, told)
        lasted = monotonic() - began
    assert lasted > 2, "the copies were not slow enough to show anything"
    assert told, "nobody was ever in the way"
    assert reader.longest < 2, f"of {reader.count} reads one waited {reader.longest:.1f} s in {lasted:.1f} s"
    assert owner.longest < 1.5 + 2, "those who wanted a table for themselves waited"
    assert (taken.tables, taken.rows) == (2, 150_100)


async def test_a_copy_that_was_given_up_is_whole_at_a_restore(busy: Setup, slow_copies: Event) -> None:
    with busy.connect() as conn:
        taking = asyncio.create_task(snapshot(busy, told := []))
        await asyncio.to_thread(slow_copies.wait)
        await asyncio.to_thread(conn.execute, "ALTER TABLE big ALTER v TYPE text")
        await taking
        expected = conn.execute("SELECT count(*), sum(hashtext(v || id)) FROM big").fetchone()
    assert told
    async with busy.daemon():
        await busy.archived()
        restored, _ = await busy.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT count(*), sum(hashtext(v || id)) FROM big").fetchone() == expected


@contextmanager
def held(setup: Setup, monkeypatch: pytest.MonkeyPatch, table: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody holds the table from right after the slot is made, which waits for all transactions before it."""
    genuine = snapshots.create_slot
    with setup.connect() as holder:

        async def then_held(*args: Any, **kwargs: Any) -> Any:
            made = await genuine(*args, **kwargs)
            holder.execute(f"BEGIN; LOCK TABLE {table}".encode())
            return made

        monkeypatch.setattr(snapshots, "create_slot", then_held)
        yield holder


async def test_a_table_that_somebody_holds_is_waited_for_while_nothing_else_is_held(
    busy: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with held(busy, monkeypatch, "small") as holder, busy.connect() as other:
        pid = holder.info.backend_pid
        taking = asyncio.create_task(snapshot(busy, told))
        other.execute("SET lock_timeout = '1s'")
        for _ in range(20):
            await asyncio.to_thread(other.execute, "BEGIN; LOCK TABLE big; COMMIT")
            await asyncio.sleep(0.1)
        assert not taking.done()
        holder.execute("COMMIT")
        assert (await taking).tables == 2
    assert any(f"pid {pid}" in each for each in told)


@pytest.mark.parametrize("where", ["the catalog", "a table"])
async def test_a_base_snapshot_that_never_gets_a_lock_says_who_holds_it(
    busy: Setup, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for module in (snapshots, table_copies):
        monkeypatch.setattr(module, "TRIES", 3)
    if where == "a table":
        monkeypatch.setattr(
            "archiver.postgres.snapshot_tables._TABLES",
            _TABLES.replace("pg_relation_size(c.oid)", "8192").replace("pg_table_size(c.oid)", "8192"),
        )
        monkeypatch.setattr(snapshots, "dump_schema", anything)
    told: list[str] = []
    with held(busy, monkeypatch, "small") as holder:
        with pytest.raises(InTheWay):
            await snapshot(busy, told)
        assert any(f"pid {holder.info.backend_pid}" in each for each in told)


async def anything(*_: Any, **__: Any) -> str:
    return ""


SHOWN = """
CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql RETURN a; CREATE VIEW w AS SELECT f(1) AS one;
CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood DEFAULT 'ok', v text);
CREATE TABLE other (id int); CREATE MATERIALIZED VIEW m AS SELECT 1 AS one; CREATE SEQUENCE s;
CREATE INDEX i ON t (v); COMMENT ON TABLE t IS 'old'; INSERT INTO t SELECT 1
"""
CHANGES = {
    "CREATE OR REPLACE FUNCTION f(a int) RETURNS int LANGUAGE sql RETURN a + 1": False,
    "DROP VIEW w; DROP FUNCTION f": False,
    "ALTER FUNCTION f RENAME TO g": False,
    "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'": False,
    "ALTER TABLE t ADD COLUMN n int": False,
    "ALTER TABLE t RENAME COLUMN v TO u": False,
    "ALTER TABLE other RENAME TO another": False,
    "DROP INDEX i": False,
    "COMMENT ON TABLE t IS 'new'": False,
    "GRANT SELECT ON t TO PUBLIC": False,
    "ALTER SEQUENCE s INCREMENT 2": False,
    "CREATE TABLE new (id serial PRIMARY KEY)": True,
    "CREATE TABLE new (); DROP TABLE new": True,
    "CREATE TEMPORARY TABLE new AS SELECT * FROM t": True,
    "CREATE FUNCTION g() RETURNS int LANGUAGE sql RETURN 1": True,
    "CREATE INDEX ON t (id)": True,
    "INSERT INTO t VALUES (2); SELECT nextval('s'); ANALYZE t": True,
    "TRUNCATE t": True,
    "REFRESH MATERIALIZED VIEW m": True,
    "VACUUM FULL t": True,
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_schema_is_whole_where_nothing_that_it_shows_was_changed(make_setup: MakeSetup, change: str) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(SHOWN)
        reader, later = await connect(setup.dsn, purpose="test"), await connect(setup.dsn, purpose="test")
        async with reader, later:
            await begin_snapshot(reader, None)
            before = await shown(reader)
            assert await is_unchanged(later, before)
            for statement in change.split("; "):
                conn.execute(statement.encode())
            assert await is_unchanged(later, before) is CHANGES[change]


async def test_a_schema_that_was_torn_is_read_again(make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump asks for a function's arguments as of now: of one that is gone it writes none."""
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(SHOWN)
    await setup.init()
    genuine = snapshots.dump_schema
    calls = 0

    async def beside_ddl(*args: Any, **kwargs: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            with setup.connect() as conn:
                conn.execute("DROP VIEW w; DROP FUNCTION f")
        return await genuine(*args, **kwargs)

    monkeypatch.setattr(snapshots, "dump_schema", beside_ddl)
    async with setup.daemon():
        await setup.archived()
        restored, summary = await setup.restore()
    assert calls == 2
    assert not summary.warnings
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT to_regproc('f'), to_regclass('w')").fetchone() == (None, None)


async def test_ddl_without_end_costs_no_more_than_the_base_snapshot(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MOVED_ATTEMPTS", 3)
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(SHOWN)
    await setup.init()

    def replace(conn: psycopg.Connection[Any], number: int) -> None:
        conn.execute(f"CREATE OR REPLACE FUNCTION f(a int) RETURNS int LANGUAGE sql RETURN a + {number}".encode())

    with working(Waits(setup.dsn, replace)), pytest.raises(SchemaMoved, match="changed while"):
        await snapshot(setup)
    assert (await snapshot(setup)).tables == 2
