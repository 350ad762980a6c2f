"""Connections to a real server: one session for all, refusals with a reason."""

from __future__ import annotations

import pytest

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError, PostgresUnavailable
from archiver.postgres.session import connect
from archiver.postgres.session_settings import SESSION
from tests.fix_servers import MakeDatabase


@pytest.mark.parametrize("replication", [False, True])
async def test_every_session_has_the_canonical_settings(
    pg: PostgresServer, make_database: MakeDatabase, replication: bool
) -> None:
    dsn = make_database()
    pg.execute(f"ALTER DATABASE {dsn.rpartition('/')[2]} SET DateStyle TO 'SQL, DMY'")
    conn = await connect(dsn, purpose="test", replication=replication)
    async with conn:
        for name, value in SESSION.items():
            row = await (await conn.execute(f"SHOW {name}".encode())).fetchone()
            assert row is not None
            at_rest = "pg_catalog,pg_temp" if name == "search_path" and not replication else value
            assert row[0].replace(", ", ",").replace('""', "") == at_rest


async def test_a_missing_database_is_permanent_and_a_stopped_server_is_not(pg: PostgresServer) -> None:
    with pytest.raises(PostgresError, match='database "nowhere" does not exist') as missing:
        await connect(pg.dsn("nowhere"), purpose="test")
    assert not missing.value.transient
    with pytest.raises(PostgresUnavailable, match="refused"):
        await connect("postgresql://postgres:geheim@127.0.0.1:1/postgres", purpose="test")
