"""The network between daemon and source loses everything, and closes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from archiver.embedded import PostgresServer
from tests.black_hole import BlackHole
from tests.fix_archive import MakeSetup
from tests.fix_servers import PG_SETTINGS
from tests.integration.test_capture import digest
from tests.integration.test_slot_danger import FILL, gaps, world


@pytest.fixture
def impatient() -> Iterator[PostgresServer]:
    with closing(PostgresServer(settings=PG_SETTINGS | {"wal_sender_timeout": "3s"})) as server:
        server.start()
        yield server


@pytest.mark.deep
async def test_connections_that_are_open_and_dead_are_left_for_new_ones(
    impatient: PostgresServer, make_setup: MakeSetup, tmp_path: Path
) -> None:
    """No end of TCP tells: the server says, over a new connection, that nobody reads the slot."""
    with BlackHole(impatient.port) as hole:
        dsn = urlsplit(impatient.dsn())._replace(netloc=f"postgres@127.0.0.1:{hole.port}").geturl()
        setup = world(make_setup, dsn, tmp_path)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for number in range(2):
                hole.swallow()
                with setup.connect() as conn:
                    conn.execute(FILL, (number * 1000, number * 1000 + 999))
                await setup.archived()
        assert await gaps(setup) == []
        restored, _ = await setup.restore()
        assert digest(restored) == digest(impatient.dsn())
