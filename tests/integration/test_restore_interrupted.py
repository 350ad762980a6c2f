"""Restores that are interrupted go on, with the same command, to the same end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.archive import OpenArchive
from archiver.errors import PostgresError
from archiver.policy.batch import Batch
from archiver.policy.target import ToLatest, ToLsn
from archiver.recovery_plan import make_plan, read_history
from archiver.restore import run_restore
from tests.fix_archive import MakeSetup, Setup
from tests.fix_shop import (
    assert_equal,
)


def commit_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many transactions at the target, so that an interruption falls between two of them."""
    monkeypatch.setattr("archiver.replay.COMMIT_ROWS", 100)
    monkeypatch.setattr("archiver.postgres.apply.Batch", partial(Batch, max_rows=50))


@asynccontextmanager
async def interruptions(dsn: str, chance: random.Random) -> AsyncIterator[None]:
    """Somewhere in between, every connection to the target is ended."""

    async def interrupt() -> None:
        await asyncio.sleep(chance.uniform(0.02, 0.12))
        name = conninfo_to_dict(dsn)["dbname"]
        async with await psycopg.AsyncConnection.connect(dsn.replace(str(name), "postgres"), autocommit=True) as conn:
            await conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    task = asyncio.create_task(interrupt(), name="interrupt")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_restore_whose_connections_break_goes_on_to_the_same_end(
    shop: Setup, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_often(monkeypatch)
    chance, dsn, broken = random.Random(seed), shop.make_database(), 0
    async with shop.open() as archive:
        plan = await make_plan(archive, ToLatest())
        for _ in range(8):
            try:
                async with interruptions(dsn, chance):
                    await run_restore(archive, plan, dsn)
                break
            except PostgresError:
                broken += 1
        else:
            await run_restore(archive, plan, dsn)
    assert broken
    assert_equal(dsn, shop.dsn)


async def test_a_restore_that_is_cancelled_goes_on_to_the_same_end(
    shop: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_often(monkeypatch)
    chance, dsn = random.Random(3), shop.make_database()
    async with shop.open() as archive:
        plan = await make_plan(archive, ToLatest())
        for _ in range(8):
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.02, 0.6)):
                    await run_restore(archive, plan, dsn)
                    break
        else:
            await run_restore(archive, plan, dsn)
    assert_equal(dsn, shop.dsn)


async def interrupted(archive: OpenArchive, dsn: str, target: ToLatest | ToLsn, within: str = "rows") -> None:
    """A restore that ends within a phase, while it loads rows if nothing else is said."""

    def stop(phase: str, _done: int, _total: int) -> None:
        if phase == within:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await run_restore(archive, await make_plan(archive, target), dsn, progress=stop)


async def test_the_same_command_goes_on_though_the_archive_has_grown(shop: Setup) -> None:
    """`restore --latest` beside a running daemon: at night nobody works out an LSN."""
    dsn = shop.make_database()
    async with shop.open() as archive:
        await interrupted(archive, dsn, ToLatest())
    async with shop.daemon():
        with shop.connect() as conn:
            conn.execute("INSERT INTO note VALUES ('later')")
        await shop.archived()
    async with shop.open() as archive:
        summary = await run_restore(archive, await make_plan(archive, ToLatest()), dsn)
    assert summary.resumed


async def test_the_interrupted_restore_of_another_plan_is_refused(shop: Setup) -> None:
    dsn = shop.make_database()
    async with shop.open() as archive:
        await interrupted(archive, dsn, ToLatest())
        history = await read_history(archive)
        other = ToLsn(history.snapshots[-1].lsn)
        with pytest.raises(PostgresError, match="another restore"):
            await run_restore(archive, await make_plan(archive, other), dsn)


async def test_two_restores_into_one_database_never_double_a_row(shop: Setup) -> None:
    """Someone repeats the command while the first still runs."""
    dsn = shop.make_database()
    async with shop.open() as archive:
        plan = await make_plan(archive, ToLatest())
        await interrupted(archive, dsn, ToLatest())
        work = [run_restore(archive, plan, dsn) for _ in range(2)]
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        if all(isinstance(outcome, Exception) for outcome in outcomes):
            await run_restore(archive, plan, dsn)
    assert not any(isinstance(outcome, Exception) and not isinstance(outcome, PostgresError) for outcome in outcomes)
    assert_equal(dsn, shop.dsn)


async def test_a_restore_that_goes_on_warns_of_what_was_left_out_before(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)")
        conn.execute("CREATE MATERIALIZED VIEW share AS SELECT 1 / id AS part FROM item; UPDATE item SET id = 0")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute("INSERT INTO item VALUES (2)")
            await setup.archived()
    dsn = setup.make_database()
    async with setup.open() as archive:
        await interrupted(archive, dsn, ToLatest(), within="replay")
        summary = await run_restore(archive, await make_plan(archive, ToLatest()), dsn)
    assert summary.resumed
    assert summary.warnings == ["MATERIALIZED VIEW public.share left out: division by zero (22012)"]
