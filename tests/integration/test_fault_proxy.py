"""Between a daemon and two real S3 servers, requests and answers are refused, lost, late, cut and altered.

Whatever happens to them: nothing is lost, nothing is doubled, both regions are whole in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from archiver.embedded import S3Server
from tests.fault_proxy import FAULTS, FaultProxy
from tests.fix_archive import MakeSetup
from tests.integration.test_durability import REGIONS, World, confirms


@pytest.fixture
def proxies(s3_servers: tuple[S3Server, S3Server]) -> Iterator[tuple[FaultProxy, ...]]:
    with ExitStack() as stack:
        yield tuple(stack.enter_context(FaultProxy(server.endpoint)) for server in s3_servers)


@pytest.fixture
async def world(make_setup: MakeSetup, s3_servers: tuple[S3Server, S3Server], proxies: tuple[FaultProxy, ...]) -> World:
    setup = make_setup(segment={"max_age": "200ms", "max_bytes": "64KiB"})
    regions = [region.model_dump() for region in setup.config.region]
    for region, proxy in zip(regions, proxies, strict=True):
        region["endpoint"] = proxy.endpoint
    setup.config = setup.config.model_validate(setup.config.model_dump() | {"region": regions})
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id serial PRIMARY KEY, name text)")
    await setup.init()
    return World(setup, dict(zip(REGIONS, s3_servers, strict=True)))


@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_happens_to_requests_nothing_is_lost_or_doubled(
    world: World, proxies: tuple[FaultProxy, ...], fault: str
) -> None:
    async with world.setup.daemon():
        await world.setup.archived()
        for proxy in proxies:
            proxy.faults = {fault: 0.3}
        async with asyncio.timeout(60):
            while min(proxy.happened[fault] for proxy in proxies) < 4:
                world.write(100)
                await asyncio.sleep(0.1)
        for proxy in proxies:
            proxy.faults = {}
        await confirms(world)
    await world.is_whole()
