"""Settings of roles and databases that are restored: what they say holds for their sessions, and for none of ours."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archiver.embedded import PostgresServer
from archiver.format.roles import Globals, Role
from archiver.policy.target import ToLatest
from archiver.postgres import load
from archiver.postgres.roles import create_roles
from archiver.postgres.session import connect
from archiver.recovery_plan import make_plan
from archiver.restore import run_restore
from tests.fix_servers import MakeDatabase
from tests.integration.test_containment import World, world  # noqa: F401


@asynccontextmanager
async def far_away(dsn: str, folder: Path) -> AsyncIterator[str]:
    """The same server, 3 ms away, as over a network."""
    params = conninfo_to_dict(dsn)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(0.003)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if str(params["host"]).startswith("/"):
            there = await asyncio.open_unix_connection(f"{params['host']}/.s.PGSQL.{params.get('port', 5432)}")
        else:
            there = await asyncio.open_connection(str(params["host"]), int(str(params["port"])))
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    server = await asyncio.start_unix_server(accept, folder / ".s.PGSQL.5432")
    try:
        yield make_conninfo(dsn, host=str(folder), port=5432)
    finally:
        server.close()


ENDING: Final = {
    "idle_in_transaction_session_timeout": "1", "transaction_timeout": "1", "statement_timeout": "1", "lock_timeout": "1",
    "idle_session_timeout": "1", "default_transaction_read_only": "on", "session_replication_role": "origin", "role": "pg_monitor",
    "log_statement": "all", "exit_on_error": "on", "client_min_messages": "error",
}  # fmt: skip
LISTS: Final = (
    """search_path TO '$user', 'Odd', 'a"b', 'c,d', 'lower', ''""",
    "search_path TO ''",
    "temp_tablespaces TO ''",
    """session_preload_libraries TO 'plpgsql', '$libdir/plpgsql'""",
    "DateStyle TO 'SQL, DMY'",
    "TimeZone TO 'Europe/Vienna'",
    """my."own" TO 'it''s a\\b, "c"'""",
)


@pytest.mark.parametrize("limit", ["idle_in_transaction_session_timeout", "transaction_timeout"])
async def test_a_roles_own_limits_end_no_restore(world: World, limit: str, tmp_path: Path) -> None:  # noqa: F811
    name = conninfo_to_dict(world.setup.dsn)["dbname"]
    # with CONNECT and nothing else
    await world.archive([f"ALTER ROLE {{evil}} IN DATABASE {name} SET {limit} = 1"], [])
    dsn = world.setup.make_database(stem="restored")
    async with world.setup.open() as archive, far_away(dsn, tmp_path) as far:
        await run_restore(archive, await make_plan(archive, ToLatest()), far)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT v FROM public.victim").fetchall() == [("untouched",)]


async def test_no_setting_of_a_role_or_database_holds_in_a_session_of_ours(
    make_database: MakeDatabase, pg: PostgresServer, tmp_path: Path
) -> None:
    name = f"limited_{secrets.token_hex(4)}"
    wanted = Globals(True, (Role(name, (), -1, None, None, None, tuple(map("=".join, ENDING.items()))),), ())
    dsn = make_database()
    try:
        async with far_away(dsn, tmp_path) as far, await connect(far, purpose="test") as conn:
            before = await settings_of(conn)
            assert await create_roles(conn, wanted) == []
            assert await load.apply_settings(conn, [("", "=".join(item)) for item in ENDING.items()], []) == []
            assert await settings_of(conn) == before
            assert len(await (await conn.execute(STORED)).fetchall()) == len(ENDING)
        async with far_away(dsn, tmp_path) as far, await connect(far, purpose="test") as conn:
            await asyncio.sleep(0.1)
            assert await (await conn.execute("SELECT 1")).fetchall() == [(1,)]
    finally:
        pg.execute(f"DROP ROLE {name}")


async def settings_of(conn: psycopg.AsyncConnection[Any]) -> list[Any]:
    return await (await conn.execute("SELECT name, setting FROM pg_settings ORDER BY name")).fetchall()


@pytest.mark.parametrize("fixture", ["pg", "pg15"])
async def test_a_stored_setting_is_stored_again_as_it_was(
    request: pytest.FixtureRequest, make_database: MakeDatabase, fixture: str
) -> None:
    first, second = (make_database(request.getfixturevalue(fixture)) for _ in range(2))
    for setting in LISTS:
        with psycopg.connect(first, autocommit=True) as conn:
            conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {setting}".encode())
            stored = conn.execute(STORED).fetchall()
        async with await connect(second, purpose="test") as conn:
            assert await load.apply_settings(conn, [("", each) for (each,) in stored], []) == []
            assert await (await conn.execute(STORED)).fetchall() == stored


STORED: Final = """
SELECT unnest(setconfig) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database()
"""
