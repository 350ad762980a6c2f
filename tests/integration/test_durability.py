"""A region fails while the daemon works: what is confirmed, what is told, and that the region is whole again after."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from archiver.archive import open_archive
from archiver.daemon import Daemon
from archiver.embedded import S3Server
from archiver.errors import StoreUnavailable
from archiver.lsn import Lsn
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.regions import only, open_keks
from archiver.restore import run_restore
from archiver.verify import verify
from tests.fix_archive import MakeSetup, Setup
from tests.integration.test_capture import digest

REGIONS = ("primary", "secondary")
DEGRADE = {"ack": "all", "degrade_after": "1s"}
ANY = {"ack": "any"}


@dataclass
class World:
    """An archive in two S3 servers of its own."""

    setup: Setup
    servers: dict[str, S3Server]

    def write(self, rows: int = 300) -> None:
        with self.setup.connect() as conn:
            conn.execute("INSERT INTO item (name) SELECT repeat('x', 200) FROM generate_series(1, %s)", (rows,))

    def confirmed(self) -> Lsn:
        with self.setup.connect() as conn:
            row = conn.execute(
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE database = current_database()"
            ).fetchone()
        assert row is not None
        return Lsn.parse(row[0])

    async def keys(self, region: str) -> set[str]:
        mirror = only(self.setup.regions(), region)
        try:
            return {entry.key async for entry in mirror.list("")}
        finally:
            await mirror.close()

    async def equals_source(self, region: str) -> None:
        """One region alone restores to what the source holds."""
        mirror = only(self.setup.regions(), region)
        target = self.setup.make_database(stem="restored")
        try:
            archive = await open_archive(mirror, self.setup.config.archive.name, open_keks(self.setup.config))
            await run_restore(archive, await make_plan(archive, ToLatest()), target)
        finally:
            await mirror.close()
        assert digest(target, "item") == digest(self.setup.dsn, "item")

    async def is_whole(self) -> None:
        assert await self.keys("primary") == await self.keys("secondary")
        async with self.setup.open() as archive:
            report = await verify(archive, read_data=True)
        assert report.ok, report.findings
        for region in REGIONS:
            await self.equals_source(region)


MakeWorld = Callable[[dict[str, str]], Awaitable[World]]


@pytest.fixture
def servers() -> Iterator[dict[str, S3Server]]:
    with closing(S3Server(buckets=["archive"])) as one, closing(S3Server(buckets=["archive"])) as two:
        one.start()
        two.start()
        yield {"primary": one, "secondary": two}


@pytest.fixture
def make_world(make_setup: MakeSetup, servers: dict[str, S3Server], monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    async def make(durability: dict[str, str]) -> World:
        regions = []
        for name, server in servers.items():
            monkeypatch.setenv(f"{name}_KEY", server.access_key)
            monkeypatch.setenv(f"{name}_SECRET", server.secret_key)
            region = {"name": name, "url": "s3://archive/shop", "endpoint": server.endpoint}
            regions.append(region | {"access_key_env": f"{name}_KEY", "secret_key_env": f"{name}_SECRET"})
        setup = make_setup(region=regions, durability=durability, segment={"max_age": "200ms"})
        with setup.connect() as conn:
            conn.execute("CREATE TABLE item (id serial PRIMARY KEY, name text)")
        await setup.init()
        return World(setup, servers)

    return make


def value(daemon: Daemon, name: str, **labels: str) -> float:
    found = daemon.metrics.registry.get_sample_value(f"archiver_{name}", labels)
    assert found is not None
    return found


async def until(condition: Callable[[], object], seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.1)


async def confirms(world: World) -> None:
    """What is written now is confirmed, and so durable as the policy says."""
    world.write()
    with world.setup.connect() as conn:
        row = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    written = Lsn.parse(row[0]).before_page_header()
    await until(lambda: world.confirmed() >= written)


@pytest.mark.parametrize("durability", [DEGRADE, ANY], ids=["degrade_after", "any"])
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_one_region_down_capture_goes_on_and_the_region_is_repaired(
    make_world: MakeWorld, durability: dict[str, str], region: str, fault: str
) -> None:
    world = await make_world(durability)
    server = world.servers[region]
    async with world.setup.daemon() as daemon:
        await world.setup.archived()
        getattr(server, fault)()
        await confirms(world)
        await confirms(world)
        await until(lambda: value(daemon, "degraded") == 1)
        assert value(daemon, "region_unreplicated_segments", region=region) > 0
        if fault == "kill":
            server.start()
        else:
            server.thaw()
        await until(lambda: value(daemon, "degraded") == 0)
        assert value(daemon, "region_unreplicated_segments", region=region) == 0
        await confirms(world)
    await world.is_whole()


async def test_a_region_that_is_down_when_the_daemon_starts_is_repaired_when_it_is_back(make_world: MakeWorld) -> None:
    world = await make_world(DEGRADE)
    async with world.setup.daemon():
        await world.setup.archived()
    world.servers["primary"].kill()
    async with world.setup.daemon():
        await confirms(world)
    async with world.setup.daemon() as daemon:  # and again, with more that the region lacks
        await confirms(world)
        world.servers["primary"].start()
        await until(lambda: value(daemon, "degraded") == 0)
    await world.is_whole()


async def test_a_daemon_that_waits_for_every_region_repairs_one_before_it_confirms_more(make_world: MakeWorld) -> None:
    world = await make_world(DEGRADE)
    async with world.setup.daemon():
        await world.setup.archived()
        world.servers["secondary"].kill()
        await confirms(world)
    world.servers["secondary"].start()
    strict = Setup(world.setup.dsn, _with_durability(world.setup, {"ack": "all"}), world.setup.make_database)
    async with strict.daemon() as daemon:
        await confirms(world)
        assert value(daemon, "degraded") == 0
    await world.is_whole()


@pytest.mark.deep
async def test_both_regions_down_nothing_is_confirmed_and_work_resumes_by_itself(make_world: MakeWorld) -> None:
    world = await make_world(DEGRADE)
    async with world.setup.daemon() as daemon:
        await world.setup.archived()
        for server in world.servers.values():
            server.kill()
        await asyncio.sleep(1)
        before = world.confirmed()
        world.write(20_000)
        await asyncio.sleep(4)
        assert world.confirmed() == before
        assert value(daemon, "region_up", region="primary") == value(daemon, "region_up", region="secondary") == 0
        for server in world.servers.values():
            server.start()
        await confirms(world)
        await until(lambda: value(daemon, "degraded") == 0)
    await world.is_whole()


async def test_no_gap_is_recorded_while_a_region_that_may_hold_the_rest_is_not_seen(make_world: MakeWorld) -> None:
    """The secondary fell behind; then it is alone there, and the slot is ahead of it."""
    world = await make_world(DEGRADE)
    async with world.setup.daemon():
        await world.setup.archived()
        world.servers["secondary"].kill()
        await confirms(world)
    world.servers["primary"].kill()
    world.servers["secondary"].start()
    held = await world.keys("secondary")
    with pytest.raises(StoreUnavailable, match="slot is ahead") as refused:
        await Daemon(world.setup.config).run(asyncio.Event())
    assert "primary" in (refused.value.where or "")
    assert await world.keys("secondary") == held


def _with_durability(setup: Setup, durability: dict[str, Any]) -> Any:
    return type(setup.config).model_validate(setup.config.model_dump() | {"durability": durability})
