"""The daemon's clock is wrong, or is set while it runs. Its own code is told another time; the source's clock is right.

Setting the machine's clock is not for tests: what archiver and the S3 client read is replaced.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import botocore.auth
import psycopg
import pytest

from archiver.format.manifest import Snapshot
from archiver.recovery_plan import read_history
from archiver.verify import verify
from tests.fix_archive import MakeSetup, Setup

TICK = "INSERT INTO item DEFAULT VALUES"


class Clock:
    """Off by `shift` for the modules of archiver, and while `stores_see_it` for what signs requests to S3."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.shift = timedelta(0)
        self.stores_see_it = True
        clock = self

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return datetime.now(tz) + clock.shift

        for name, module in list(sys.modules.items()):
            if name.startswith("archiver.") and not name.startswith("archiver.format.") and "datetime" in vars(module):
                patch.setattr(module, "datetime", Shifted)
        patch.setattr(botocore.auth, "get_current_datetime", self._signing_time)

    def _signing_time(self, remove_tzinfo: bool = True) -> datetime:
        now = datetime.now(UTC) + (self.shift if self.stores_see_it else timedelta(0))
        return now.replace(tzinfo=None) if remove_tzinfo else now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
async def item(make_setup: MakeSetup) -> Setup:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)")
    await setup.init()
    return setup


async def newest(setup: Setup) -> Snapshot:
    async with setup.open() as archive:
        return (await read_history(archive)).snapshots[-1]


async def ids(setup: Setup) -> list[int]:
    dsn, _ = await setup.restore()
    with psycopg.connect(dsn) as conn:
        return [number for (number,) in conn.execute("SELECT id FROM item ORDER BY id").fetchall()]


async def test_a_clock_that_is_set_while_the_daemon_runs_costs_time_and_no_change(item: Setup, clock: Clock) -> None:
    """S3 refuses a request that is more than 15 minutes off: the region is waited for until the clock is right."""
    with item.connect() as conn:
        async with item.daemon() as daemon:
            await item.archived()
            up = daemon.metrics.region_up.labels("primary")._value.get
            for shift in (timedelta(days=2), timedelta(days=-2)):
                clock.shift = shift
                conn.execute(TICK.encode())
                async with asyncio.timeout(60):
                    while up() == 1:
                        await asyncio.sleep(0.1)
                clock.shift = timedelta(0)
                conn.execute(TICK.encode())
                await item.archived()
    assert await ids(item) == [1, 2, 3, 4]
    async with item.open() as archive:
        assert (await verify(archive, read_data=True)).findings == []


async def test_a_base_snapshot_of_a_clock_that_was_ahead_does_not_put_off_the_next_one(
    item: Setup, clock: Clock
) -> None:
    """Where the stores do not mind, everything works, and then the clock is set."""
    clock.stores_see_it = False
    with item.connect() as conn:
        for shift in (timedelta(days=3), timedelta(days=-2), timedelta(0)):
            clock.shift = shift
            async with item.daemon():
                conn.execute(TICK.encode())
                await item.archived()
                async with asyncio.timeout(30):
                    while abs((await newest(item)).finished_at - datetime.now(UTC) - shift) > timedelta(days=1):
                        await asyncio.sleep(0.2)
    assert await ids(item) == [1, 2, 3]
    async with item.open() as archive:
        assert (await verify(archive, read_data=True)).findings == []
