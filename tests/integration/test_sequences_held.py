"""Sequences that somebody alters, drops or replaces while they are read."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.errors import PostgresUnavailable
from archiver.postgres import sequences
from archiver.postgres.sequences import read_sequences
from archiver.postgres.session import connect
from tests.fix_servers import MakeDatabase

MADE = """
CREATE SEQUENCE called; CREATE SEQUENCE untouched START 7; CREATE SEQUENCE put; CREATE SEQUENCE down INCREMENT -1;
SELECT nextval('called') FROM generate_series(1, 5); SELECT setval('put', 1000, false); SELECT nextval('down');
"""
STATES = {"called": (5, True), "untouched": (7, False), "put": (1000, False), "down": (-1, True)}


@pytest.fixture(params=["pg", "pg15"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    """With a function that tells by OID of all states, and without."""
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


async def states(dsn: str, *, skip_held: bool = False) -> dict[str, tuple[int, bool]]:
    async with await connect(dsn, purpose="test") as conn:
        found = await read_sequences(conn, skip_held=skip_held)
    return {state.name: (state.last_value, state.is_called) for state in found.states}


async def test_all_states_are_read(make_database: MakeDatabase, server: PostgresServer) -> None:
    dsn = make_database(server)
    with psycopg.connect(dsn) as conn:
        conn.execute(MADE.encode())
    assert await states(dsn) == STATES


async def test_one_that_is_held_by_an_open_alter_is_named_or_skipped(
    make_database: MakeDatabase, server: PostgresServer
) -> None:
    dsn = make_database(server)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(MADE.encode())
        with conn.transaction():
            conn.execute("ALTER SEQUENCE put RENAME TO other")
            with pytest.raises(PostgresUnavailable, match=r"altered or dropped just now: public\.put"):
                await states(dsn)
            assert await states(dsn, skip_held=True) == {name: each for name, each in STATES.items() if name != "put"}


async def test_hundreds_that_are_held_keep_no_other_from_being_read(
    make_database: MakeDatabase, server: PostgresServer
) -> None:
    dsn = make_database(server)
    many = [f"s{number}" for number in range(300)]
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(MADE.encode())
        conn.execute("; ".join(f"CREATE SEQUENCE {name}" for name in many).encode())
        with conn.transaction():
            conn.execute(f"DROP SEQUENCE {', '.join(many)}".encode())
            started = time.monotonic()
            assert await states(dsn, skip_held=True) == STATES
            assert time.monotonic() - started < 5


async def test_what_was_read_is_kept_when_the_time_ends(
    make_database: MakeDatabase, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = make_database(server)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(MADE.encode())
    monkeypatch.setattr(sequences, "_BUDGET", 0)
    async with await connect(dsn, purpose="test") as reader:
        found = await read_sequences(reader, skip_held=True)
    assert (found.states, found.complete) == ([], False)


async def test_one_that_was_dropped_meanwhile_is_left_out(
    make_database: MakeDatabase, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = make_database(server)
    genuine = sequences._batches

    def then_drop(rows: Any) -> Any:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("DROP SEQUENCE put")
        return genuine(rows)

    with psycopg.connect(dsn) as conn:
        conn.execute(MADE.encode())
    monkeypatch.setattr(sequences, "_batches", then_drop)
    assert await states(dsn, skip_held=True) == {name: each for name, each in STATES.items() if name != "put"}


async def test_what_an_owner_puts_in_the_place_of_one_is_not_queried(
    make_database: MakeDatabase, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table, with an index whose predicate the planner would run as us."""
    dsn, evil = make_database(server), f"evil_{secrets.token_hex(4)}"
    marker = Path("/tmp") / evil
    server.execute(f"CREATE ROLE {evil} LOGIN")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA app AUTHORIZATION {evil}; SET ROLE {evil}; CREATE SEQUENCE app.s".encode())
        conn.execute(
            f"""
            CREATE FUNCTION app.act() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
            EXECUTE 'COPY (SELECT current_user) TO ''{marker}'''; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
            CREATE FUNCTION app.rise(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$
            BEGIN PERFORM app.act(); RETURN true; END $$;
            CREATE TABLE app.t (last_value bigint, is_called bool); CREATE INDEX ON app.t (last_value) WHERE app.rise('x')
        """.encode()
        )
    genuine = sequences._batches

    def then_replace(rows: Any) -> Any:
        with psycopg.connect(dsn, user=evil, autocommit=True) as owner:
            owner.execute("ALTER SEQUENCE app.s RENAME TO gone; ALTER TABLE app.t RENAME TO s")
        return genuine(rows)

    monkeypatch.setattr(sequences, "_batches", then_replace)
    async with await connect(dsn, purpose="test") as reader, reader.transaction():
        await reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")  # as a base snapshot's reader is
        found = await read_sequences(reader)
    assert [(state.name, state.last_value, state.is_called) for state in found.states] == [("s", 1, False)]
    assert not marker.exists()
