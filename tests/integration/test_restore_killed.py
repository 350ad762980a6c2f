"""`archiver restore` dies at any moment, or its server does: the same command goes on to the same end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.postgres import load
from archiver.postgres.session import connect
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_cli import Site
from tests.fix_servers import PG_SETTINGS, MakeDatabase
from tests.fix_shop import SCHEMA as SHOP
from tests.fix_shop import assert_equal, change, fill
from tests.integration.test_crash import file_regions

Progress = dict[str, Any]
MORE = """
CREATE TABLE bulk (id serial PRIMARY KEY, line text);
CREATE INDEX ON purchase (amount); CREATE INDEX ON customer (name); CREATE INDEX ON note (line);
CREATE MATERIALIZED VIEW spent AS SELECT customer, sum(amount) FROM purchase GROUP BY 1;
CREATE UNIQUE INDEX ON spent (customer);
"""
STEPS = ("restore", "part", "built", "keys", "late", "views", "replay", "replay", "replay")
"""Keys of the progress table, in their order: it dies soon after the first of each has come."""


@pytest.fixture
async def busy(make_setup: MakeSetup, tmp_path: Path) -> Setup:
    """The archive of a shop in which every phase of a restore takes a moment."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms", "max_bytes": "256KiB"})
    with setup.connect() as conn:
        conn.execute(SHOP + MORE)
        fill(conn, 20_000)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for number in range(12):
                change(conn, 3000)
                conn.execute(f"CREATE TABLE made_{number} AS SELECT * FROM customer WHERE id % 100 = {number}")
                if number % 4 == 0:  # enough that a replay commits several times
                    conn.execute("INSERT INTO bulk (line) SELECT 'line ' || i FROM generate_series(1, 120000) i")
            conn.execute("REFRESH MATERIALIZED VIEW spent")
            await setup.archived()
    return setup


class Restore:
    """The command, on a host that only restores, into one database."""

    def __init__(self, setup: Setup, folder: Path, into: str) -> None:
        regions = "".join(
            f'[[region]]\nname = "{region.name}"\nurl = "{region.url}"\n' for region in setup.config.region
        )
        keys = f'[encryption]\nkeys = ["{setup.config.encryption.keys[0]}"]\n'
        settings = f'[archive]\nname = "{setup.config.archive.name}"\n{keys}{regions}'
        self.into = into
        self._site = Site(folder, setup.dsn, "", (), {}, settings)
        self._arguments = ("restore", "--into", into, "--latest", "--yes", "--json")

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        with self._site.started(*self._arguments) as process:
            yield process

    def finish(self) -> dict[str, Any]:
        result = self._site.run(*self._arguments)
        assert result.returncode == 0, result.stderr
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    def progress(self) -> Progress:
        try:
            with psycopg.connect(self.into) as conn:
                return dict(conn.execute("SELECT key, value FROM archiver.restore_progress").fetchall())
        except (psycopg.errors.UndefinedTable, psycopg.OperationalError):
            return {}

    def strike(self, step: str, chance: random.Random, blow: Callable[[subprocess.Popen[str]], object]) -> bool:
        """Run until it has come on, and to a step; then strike. Whether it still ran."""
        before = self.progress()
        with self.started() as process:
            while process.poll() is None:
                now = self.progress()
                if now != before and any(key.startswith(step) for key in now):
                    break
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            running = process.poll() is None
            blow(process)
            process.wait(30)
            return running


def assert_restored(restore: Restore, setup: Setup) -> None:
    assert_equal(restore.into, setup.dsn)
    assert difference(pg_dump(restore.into), pg_dump(setup.dsn)) == ""


def test_a_restore_that_is_killed_in_every_phase_goes_on_to_the_same_end(
    busy: Setup, make_database: MakeDatabase, tmp_path: Path
) -> None:
    chance, restore = random.Random(1), Restore(busy, tmp_path, make_database(stem="killed"))
    struck = 0
    for step in STEPS:
        struck += restore.strike(step, chance, subprocess.Popen.kill)
        if not restore.progress():
            break  # the last blow came after its last transaction
    else:
        assert restore.finish()["resumes"]
    assert struck > 3
    assert_restored(restore, busy)


@pytest.mark.deep
def test_a_restore_whose_server_dies_goes_on_when_it_is_back(busy: Setup, tmp_path: Path) -> None:
    chance = random.Random(3)
    with closing(PostgresServer(settings=PG_SETTINGS)) as server:
        server.start()
        server.execute("CREATE DATABASE died TEMPLATE template0")
        restore = Restore(busy, tmp_path, server.dsn("died"))

        def restart(_process: subprocess.Popen[str]) -> None:
            server.kill()
            server.start()

        struck = [restore.strike(step, chance, restart) for step in ("part", "built", "replay")]
        assert any(struck)
        restore.finish()
        assert_restored(restore, busy)


@pytest.mark.deep
def test_a_restore_whose_connections_are_cut_says_so_and_goes_on(
    busy: Setup, make_database: MakeDatabase, tmp_path: Path
) -> None:
    restore = Restore(busy, tmp_path, make_database(stem="cut"))

    def cut(process: subprocess.Popen[str]) -> None:
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"
        )
        with psycopg.connect(restore.into) as conn:
            conn.execute(query, (conn.info.backend_pid,))
        _, stderr = process.communicate(timeout=30)
        codes.append((process.returncode, "terminating connection" in stderr or "closed" in stderr))

    codes: list[tuple[int, bool]] = []
    for step in ("part", "replay"):
        restore.strike(step, random.Random(4), cut)
    assert (3, True) in codes
    restore.finish()
    assert_restored(restore, busy)


async def test_no_restore_begins_while_a_connection_of_another_is_left(make_database: MakeDatabase) -> None:
    dsn = make_database()
    async with await connect(dsn, purpose="restore") as second:
        async with load.worker(dsn, purpose="restore"):
            claim = asyncio.create_task(load.claim(second))
            await asyncio.sleep(0.5)
            assert not claim.done()
        await claim


async def test_the_statement_of_a_restore_that_was_killed_holds_the_next_one_up_for_a_moment_only(
    make_database: MakeDatabase,
) -> None:
    dsn = make_database()
    async with await connect(dsn, purpose="restore") as first, await connect(dsn, purpose="restore") as second:
        await load.claim(first)
        sleep = asyncio.create_task(first.execute("SELECT pg_sleep(600)"))
        await asyncio.sleep(0.5)
        with socket.socket(fileno=os.dup(first.fileno())) as link:
            link.shutdown(socket.SHUT_RDWR)  # as when its process is gone
        with pytest.raises(psycopg.OperationalError):
            await sleep
        await load.claim(second)
