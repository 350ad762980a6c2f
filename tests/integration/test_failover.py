"""Failover: a standby takes over, and the archive goes on, or says what it lacks. Real servers, physical replication."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from archiver.embedded import PostgresServer
from archiver.policy.target import ToName
from archiver.recovery_plan import read_history
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import PG_SETTINGS
from tests.integration.test_capture import digest
from tests.integration.test_new_history import name_point
from tests.integration.test_slot_danger import ends_equal, gaps, world

SLOT = "archiver_failover"
ROWS = "INSERT INTO item SELECT i, 'row ' || i FROM generate_series({}, {}) i"


class Standby(PostgresServer):
    """A physical copy of another server, which follows it until it is promoted, and keeps its failover slots."""

    def __init__(self, primary: PostgresServer) -> None:
        follow = {"primary_slot_name": "standby", "sync_replication_slots": True, "hot_standby_feedback": True}
        follow["primary_conninfo"] = primary.dsn()
        super().__init__(settings=PG_SETTINGS | follow)
        self._primary = primary

    def _create(self) -> None:
        super()._create()
        data = self.folder / "data"
        command = (
            f'rm -rf "{data}" && "{self.bin("pg_basebackup")}" -d "{self._primary.dsn()}" -D "{data}" -X stream -c fast'
        )
        subprocess.run(
            ["/bin/sh", "-c", f'{command} && touch "{data}/standby.signal"'],
            cwd=self.folder, check=True, capture_output=True, **self._user(),
        )  # fmt: skip

    def promote(self) -> None:
        self.execute("SELECT pg_promote(true, 60)")

    async def has_slot(self) -> None:
        """Wait until the archive's slot could be gone on with."""
        query = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND synced AND NOT temporary"
        async with asyncio.timeout(60):
            while not self.execute(query):
                await asyncio.sleep(0.2)


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    with closing(PostgresServer(settings=PG_SETTINGS)) as server:
        server.start()
        server.execute("SELECT pg_create_physical_replication_slot('standby', true)")
        yield server


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[Standby]:
    with closing(Standby(primary)) as server:
        server.start()
        yield server


@pytest.fixture
def setup(make_setup: MakeSetup, primary: PostgresServer, standby: Standby, tmp_path: Path) -> Setup:
    """An archive of whichever of the two may be written."""
    hosts = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres"
    return world(make_setup, f"{hosts}?target_session_attrs=read-write", tmp_path, slot=SLOT)


async def test_the_archive_goes_on_without_a_gap_when_a_standby_takes_over(
    setup: Setup, primary: PostgresServer, standby: Standby
) -> None:
    await setup.init()
    primary.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'")  # none is ahead of the standby
    primary.execute("SELECT pg_reload_conf()")
    async with setup.daemon():
        await setup.archived()
        primary.execute(ROWS.format(1, 500))
        await setup.archived()
        await standby.has_slot()
        primary.execute(ROWS.format(501, 1000))
        await setup.archived()
        primary.kill()
        standby.promote()
        standby.execute(ROWS.format(1001, 1500))
        await setup.archived()
    assert await gaps(setup) == []
    async with setup.open() as archive:
        assert {segment.timeline for segment in (await read_history(archive)).changes} == {1, 2}
    restored, _ = await setup.restore()
    assert digest(restored, "item") == digest(setup.dsn, "item")


async def test_a_source_that_is_a_standby_is_waited_for_until_it_is_promoted(
    setup: Setup, primary: PostgresServer, standby: Standby
) -> None:
    await setup.init()
    async with setup.daemon():
        primary.execute(ROWS.format(1, 500))
        await setup.archived()
        await standby.has_slot()
    config = setup.config.model_dump()
    config["source"]["dsn"] = standby.dsn()
    alone = Setup(standby.dsn(), setup.config.model_validate(config), setup.make_database)
    primary.kill()
    async with alone.daemon() as daemon:
        await asyncio.sleep(3)
        assert daemon.not_ready() == "not streaming from the source"
        standby.promote()
        standby.execute(ROWS.format(501, 1000))
        await alone.archived()
    assert await gaps(alone) == []
    restored, _ = await alone.restore()
    assert digest(restored) == digest(standby.dsn())


async def test_a_standby_that_takes_over_behind_the_archive_is_a_gap_and_what_it_lost_can_be_restored(
    setup: Setup, primary: PostgresServer, standby: Standby
) -> None:
    await setup.init()
    async with setup.daemon():
        await setup.archived()
        primary.execute(ROWS.format(1, 500))
        await setup.archived()
        await standby.has_slot()
    standby.stop()
    async with setup.daemon():
        primary.execute(ROWS.format(501, 1000))
        await name_point(setup.dsn, "lost")
        await setup.archived()
    lost = digest(setup.dsn, "item")
    primary.kill()
    standby.start()
    standby.promote()
    async with setup.daemon():
        standby.execute(ROWS.format(2001, 2010))
        await ends_equal(setup)
    assert "timeline 2" in (await gaps(setup))[0].reason
    restored, _ = await setup.restore(ToName("lost"))
    assert digest(restored, "item") == lost
