"""The daemon dies, is cut off, or meets a source that is not what it was: nothing is lost, doubled or passed over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.daemon import Daemon
from archiver.embedded import S3Server
from archiver.errors import ArchiverError
from archiver.format.manifest import Changes, Gap
from archiver.recovery_plan import read_history
from archiver.verify import verify
from tests.fix_archive import MakeSetup, Setup
from tests.integration.test_capture import digest
from tests.integration.test_memory import write_config

SLOT = "FROM pg_replication_slots WHERE database = current_database()"
SCHEMA = """
CREATE TABLE item (id bigint PRIMARY KEY, name text);
CREATE TABLE ledger (id bigserial PRIMARY KEY, client int, what text);
CREATE TABLE untouched (id int PRIMARY KEY);
"""


def file_regions(folder: Path) -> list[dict[str, str]]:
    return [{"name": name, "url": f"file://{folder}/{name}"} for name in ("primary", "secondary")]


@pytest.fixture
async def ledger(make_setup: MakeSetup, tmp_path: Path) -> Setup:
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms", "max_bytes": "128KiB"})
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    with setup.connect() as conn:
        conn.execute(SCHEMA)
    await setup.init()
    return setup


def with_fields(setup: Setup, **sections: Any) -> Setup:
    """The same with other sections in its configuration."""
    fields = setup.config.model_dump() | sections
    return Setup(setup.dsn, type(setup.config).model_validate(fields), setup.make_database)


class Process:
    """`archiver run` as a process of its own, which can be killed."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self._config = folder / "archiver.toml"
        self._log = folder / "daemon.log"
        write_config(setup, self._config)

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "archiver", "--config", str(self._config), "run"]
        environ = os.environ | {"ARCHIVER_SEGMENT__MAX_AGE": "200ms", "ARCHIVER_SEGMENT__MAX_BYTES": "128KiB"}
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environ)

    def log(self) -> str:
        return self._log.read_text()[-3000:]


# --- kill -9 ---


async def write(dsn: str, client: int, stop: asyncio.Event) -> None:
    """Small transactions, and from client 0 now and then one that is large enough to be streamed."""
    chance = random.Random(client)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        number = 0
        while not stop.is_set():
            number += 1
            large = client == 0 and number % 5 == 0
            first = client * 10**9 + number * 10**5
            with suppress(psycopg.errors.DivisionByZero):
                async with conn.transaction():
                    insert = "INSERT INTO item SELECT i, repeat('x', 50) FROM generate_series(%s::bigint, %s) i"
                    await conn.execute(insert, (first, first + (3000 if large else chance.randrange(5))))
                    await conn.execute("INSERT INTO ledger (client, what) VALUES (%s, 'first')", (client,))
                    await conn.execute("UPDATE item SET name = 'changed' WHERE id = %s", (first,))
                    await conn.execute(
                        "DELETE FROM item WHERE id BETWEEN %s AND %s", (first - 10**5, first - 10**5 + 9)
                    )
                    if chance.random() < 0.1:
                        await conn.execute("SELECT 1/0")
            await asyncio.sleep(chance.random() * 0.02)


@asynccontextmanager
async def load(dsn: str, clients: int = 4) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for client in range(clients):
            tasks.create_task(write(dsn, client, stop))
        yield
        stop.set()


async def test_a_daemon_killed_again_and_again_under_load_loses_and_doubles_nothing(
    ledger: Setup, tmp_path: Path
) -> None:
    chance = random.Random(42)
    process = Process(ledger, tmp_path)
    name = psycopg.conninfo.conninfo_to_dict(ledger.dsn)["dbname"]
    with ledger.connect() as conn:
        conn.execute(f"ALTER DATABASE {name} SET logical_decoding_work_mem = '64kB'")
    async with load(ledger.dsn):
        for _ in range(10):
            daemon = process.start()
            await asyncio.sleep(chance.uniform(0.8, 2.8))
            assert daemon.poll() is None, process.log()
            daemon.kill()
            daemon.wait()
    daemon = process.start()
    try:
        await ledger.archived()
        daemon.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(daemon.wait, 30) == 0, process.log()
    finally:
        daemon.kill()
    expected = [digest(ledger.dsn, table) for table in ("item", "ledger")]
    restored, _ = await ledger.restore()
    assert [digest(restored, table) for table in ("item", "ledger")] == expected
    async with ledger.open() as archive:
        report = await verify(archive, read_data=True)
        changes = (await read_history(archive)).changes
    assert report.ok, report.findings
    assert sum(entry.commits for entry in changes) > 100
    assert [entry.ordinal for entry in changes] == list(range(1, len(changes) + 1))


# --- what is cut off ---


class Gate:
    """Holds back the manifests that one region should store, as a slow region does."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = asyncio.Event()


async def test_a_connection_lost_while_a_region_is_slow_does_not_fence_the_daemon_off(
    ledger: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest stands in the first region, and the daemon must know its own."""
    from archiver.store.file import FileStore

    gate, put = Gate(), FileStore.put

    async def slow_put(self: FileStore, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if self.name == "secondary" and key.startswith("manifests/"):
            gate.waiting.set()
            await gate.open.wait()
        await put(self, key, data, if_absent=if_absent)

    monkeypatch.setattr(FileStore, "put", slow_put)
    async with ledger.daemon():
        await ledger.archived()
        with ledger.connect() as conn:
            gate.open.clear()
            conn.execute("INSERT INTO untouched VALUES (1)")
            gate.waiting.clear()
            await asyncio.wait_for(gate.waiting.wait(), 10)
            conn.execute(f"SELECT pg_terminate_backend(active_pid) {SLOT}")
            await asyncio.sleep(1)
            gate.open.set()
            conn.execute("INSERT INTO untouched VALUES (2)")
        async with asyncio.timeout(15):
            await ledger.archived()
    async with ledger.open() as archive:
        changes = (await read_history(archive)).changes
    assert [entry.ordinal for entry in changes] == list(range(1, len(changes) + 1))
    restored, _ = await ledger.restore()
    assert digest(restored, "untouched") == digest(ledger.dsn, "untouched")


async def test_a_slot_that_was_moved_during_a_lost_connection_is_never_a_silent_gap(
    ledger: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archiver.daemon.random.uniform", lambda _low, _high: 2.0)

    async def run() -> None:
        async with ledger.daemon():
            await ledger.archived()
            with ledger.connect() as conn:
                conn.execute(f"SELECT pg_terminate_backend(active_pid, 5000) {SLOT}")
                conn.execute("INSERT INTO untouched VALUES (1)")
                conn.execute(f"SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) {SLOT}")
            await asyncio.sleep(10)  # two of them until it reconnects, one until it starts again

    with suppress(ArchiverError):  # to stop loudly is as good as to go on with a gap: the next start records it
        await run()
        await ledger.archived()
    async with ledger.daemon():
        await ledger.archived()
    async with ledger.open() as archive:
        assert len((await read_history(archive)).gaps) == 1


# --- what must not stop it ---


async def test_a_locked_sequence_does_not_hold_the_archive_up(ledger: Setup) -> None:
    """A migration may hold such a lock for hours, while the source keeps all WAL for us."""
    async with ledger.daemon():
        await ledger.archived()
        with ledger.connect() as migration, ledger.connect() as conn:
            migration.execute("BEGIN")
            migration.execute("TRUNCATE ledger RESTART IDENTITY")  # locks the sequence, too
            conn.execute("INSERT INTO untouched VALUES (1)")
            try:
                async with asyncio.timeout(8):
                    await ledger.archived()
            finally:
                migration.execute("ROLLBACK")


async def test_a_base_snapshot_that_cannot_be_taken_does_not_stop_capture(ledger: Setup) -> None:
    """Somebody removes pg_dump: capture must go on, or the source's disk fills."""
    async with with_fields(ledger, snapshot={"pg_dump": "/nowhere/pg_dump"}).daemon() as daemon:
        async with asyncio.timeout(15):
            while daemon.not_ready() is not None:
                await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        assert daemon.not_ready() is None


# --- stopping ---


async def test_sigterm_stops_a_daemon_that_waits_for_a_source_that_is_away(ledger: Setup, tmp_path: Path) -> None:
    source = ledger.config.require_source().model_dump() | {"dsn": "postgresql://postgres@127.0.0.1:1/nobody"}
    stop = asyncio.Event()
    running = asyncio.create_task(Daemon(with_fields(ledger, source=source).config).run(stop))
    await asyncio.sleep(1)
    stop.set()
    done, _ = await asyncio.wait([running], timeout=3)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert done


@pytest.mark.parametrize("wait", [0.0, 1.0], ids=["with one segment waiting", "with no more room"])
async def test_sigterm_ends_a_daemon_in_peace_though_a_region_is_down(
    ledger: Setup, own_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    """It has promised to stop; what it could not store PostgreSQL sends again."""
    monkeypatch.setattr("archiver.capture.DRAIN_SECONDS", 1.0)
    monkeypatch.setattr("archiver.daemon.STOP_SECONDS", 2.0)
    monkeypatch.setenv("OWN_KEY", own_s3_server.access_key)
    monkeypatch.setenv("OWN_SECRET", own_s3_server.secret_key)
    second: dict[str, Any] = {"name": "secondary", "url": "s3://archive/a", "endpoint": own_s3_server.endpoint}
    second |= {"access_key_env": "OWN_KEY", "secret_key_env": "OWN_SECRET"}
    fields = ledger.config.model_dump()
    setup = with_fields(ledger, region=[fields["region"][0], second])
    with ledger.connect() as conn:
        conn.execute(f"SELECT pg_drop_replication_slot(slot_name) {SLOT}")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            await asyncio.to_thread(own_s3_server.kill)
            conn.execute("INSERT INTO untouched VALUES (1)")
            await asyncio.sleep(wait)
    await asyncio.to_thread(own_s3_server.start)
    async with setup.daemon():
        await setup.archived()
    async with setup.open() as archive:
        entries = [signed.entry async for signed in archive.log.scan()]
    assert [entry for entry in entries if isinstance(entry, Gap)] == []
    assert sum(entry.commits for entry in entries if isinstance(entry, Changes)) == 1
