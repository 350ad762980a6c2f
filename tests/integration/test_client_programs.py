"""pg_dump against real servers: too old, and refusing."""

from __future__ import annotations

import pytest

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
from archiver.postgres.client_programs import dump_schema, find_pg_dump
from tests.fix_servers import MakeDatabase


async def test_pg_dump_older_than_the_server_is_refused(pg15: PostgresServer) -> None:
    with pytest.raises(PostgresError, match="pg_dump 15 is older than the server, PostgreSQL 18") as refused:
        await find_pg_dump(18, pg15.bin("pg_dump"))
    assert refused.value.hint is not None


async def test_pg_dumps_own_reason_is_reported_without_the_password(make_database: MakeDatabase) -> None:
    with pytest.raises(PostgresError, match="invalid snapshot identifier") as failed:
        await dump_schema(
            make_database().replace("postgres@", "postgres:geheim@"), await find_pg_dump(18), snapshot="nonsense"
        )
    assert "geheim" not in str(failed.value)
