"""The stream and the event loop: what it leaves behind when it ends, in whichever way."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import psycopg
import pytest
from structlog.testing import capture_logs

from archiver.errors import PostgresError, PostgresUnavailable
from archiver.lsn import Lsn
from archiver.postgres.replication import ReplicationStream
from archiver.postgres.session import connect
from archiver.postgres.setup import published_tables
from tests.fix_archive import MakeSetup, Setup

OURS = "FROM pg_replication_slots WHERE database = current_database()"


@pytest.fixture
async def setup(make_setup: MakeSetup) -> Setup:
    made = make_setup()
    with made.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY)")
    await made.init()
    return made


def watched() -> set[int]:
    """The sockets that the event loop waits for, but for its own."""
    selector = cast(Any, asyncio.get_running_loop())._selector
    return set(selector.get_map())


async def started(setup: Setup) -> ReplicationStream:
    source = setup.config.require_source()
    return await ReplicationStream.start(setup.dsn, source.slot, source.publication, Lsn(0))


async def test_a_stream_that_is_refused_leaves_no_socket_to_the_event_loop(setup: Setup) -> None:
    stream, before = await started(setup), watched()
    with pytest.raises(PostgresError, match="is active"):
        await started(setup)
    assert watched() == before
    await stream.close()


async def test_a_stream_that_the_server_ends_leaves_no_socket_to_the_event_loop(setup: Setup) -> None:
    """libpq closes it at once; the next one to be opened has the same number."""
    before = watched()
    stream = await started(setup)
    with setup.connect() as conn:
        conn.execute(f"SELECT pg_terminate_backend(active_pid, 5000) {OURS}")
    with pytest.raises(PostgresUnavailable):
        while True:
            await stream.receive(0.1)
            await stream.send_status(Lsn(0), Lsn(0))
    await stream.close()
    assert watched() == before


async def test_a_lost_connection_is_unavailable_whatever_was_asked(setup: Setup) -> None:
    conn = await connect(setup.dsn, purpose="test")
    with setup.connect() as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
    with pytest.raises(PostgresUnavailable):
        await published_tables(conn, setup.config.require_source().publication)
    await conn.close()


async def test_a_new_slot_says_for_whom_it_waits(setup: Setup) -> None:
    async with setup.daemon():
        await setup.archived()
    with setup.connect() as conn, psycopg.connect(setup.dsn) as open_for_long:
        blocker = f"pid {open_for_long.info.backend_pid} of postgres"
        conn.execute(f"SELECT pg_drop_replication_slot(slot_name) {OURS}")
        open_for_long.execute("INSERT INTO item VALUES (1)")
        with capture_logs() as said:
            async with setup.daemon(), asyncio.timeout(30):
                while not any("waits for a transaction" in line["event"] for line in said):
                    await asyncio.sleep(0.1)
                open_for_long.commit()
                await setup.archived()
    waiting = [line["transaction"] for line in said if "waits for a transaction" in line["event"]]
    assert blocker in waiting[0]
