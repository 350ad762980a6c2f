"""What a target refuses, to a role that is no superuser: left out and named, from a base snapshot and from the stream."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.embedded import PostgresServer
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.restore import Summary, run_restore
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.whole_chain import take_another_snapshot

BEFORE = """
CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1);
CREATE EXTENSION postgres_fdw; CREATE SERVER away FOREIGN DATA WRAPPER postgres_fdw;
CREATE FOREIGN TABLE far (id int) SERVER away;
CREATE PUBLICATION listed FOR TABLE item;
"""
# What each of them needs: to be a superuser, or what was left out for that.
REFUSED = [
    "CREATE PUBLICATION everything FOR ALL TABLES",
    "ALTER PUBLICATION everything SET (publish = 'insert')",
    "COMMENT ON PUBLICATION everything IS 'all of it'",
    "ALTER PUBLICATION everything OWNER TO postgres",
    "ALTER PUBLICATION everything RENAME TO all_of_it",
    "ALTER PUBLICATION listed ADD TABLES IN SCHEMA public",
    "CREATE USER MAPPING FOR postgres SERVER away OPTIONS (user 'me', password_required 'false')",
    "ALTER USER MAPPING FOR postgres SERVER away OPTIONS (SET user 'you')",
    "ALTER SERVER away OWNER TO postgres",
    "CREATE SUBSCRIPTION theirs CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, slot_name = NONE)",
    "ALTER SUBSCRIPTION theirs SET (binary = true)",
    "COMMENT ON SUBSCRIPTION theirs IS 'none of ours'",
    "ALTER TABLE item OWNER TO postgres",
    "ALTER FOREIGN DATA WRAPPER postgres_fdw NO VALIDATOR",
]
GONE = [
    "DROP PUBLICATION all_of_it",
    "DROP USER MAPPING FOR postgres SERVER away",
    "DROP SUBSCRIPTION theirs",
    "DROP PUBLICATION listed",
]


@pytest.fixture
def role(pg15: PostgresServer) -> Iterator[str]:
    name = f"owner_{secrets.token_hex(4)}"
    pg15.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    for database in pg15.execute(f"SELECT datname FROM pg_database WHERE datdba = '{name}'::regrole"):
        pg15.execute(f"DROP DATABASE {database[0]} WITH (FORCE)")
    pg15.execute(f"DROP ROLE {name}")


@pytest.fixture
def setup(pg15: PostgresServer, make_database: MakeDatabase, make_setup: MakeSetup) -> Iterator[Setup]:
    setup = make_setup(make_database(pg15))
    yield setup
    with setup.connect() as conn:
        conn.execute("DROP SUBSCRIPTION IF EXISTS theirs")  # which would keep its database


async def archived(setup: Setup, statements: Sequence[str]) -> None:
    with setup.connect() as conn:
        conn.execute(BEFORE.encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in statements:
                conn.execute(statement.encode())
            conn.execute("INSERT INTO item VALUES (2)")
            await setup.archived()


async def restored(setup: Setup, pg15: PostgresServer, role: str) -> tuple[str, Summary]:
    """Into a database of the role's, in which an administrator made the extension that it may not make."""
    name = str(conninfo_to_dict(setup.make_database(pg15, stem="owned"))["dbname"])
    pg15.execute(f"ALTER DATABASE {name} OWNER TO {role}")
    pg15.execute("CREATE EXTENSION postgres_fdw", dbname=name)
    pg15.execute(f"GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {role}", dbname=name)
    async with setup.open() as archive:
        summary = await run_restore(archive, await make_plan(archive, ToLatest()), pg15.dsn(name, user=role))
    with psycopg.connect(pg15.dsn(name)) as conn:
        assert conn.execute("SELECT id FROM item ORDER BY id").fetchall() == [(1,), (2,)]
    return name, summary


@pytest.mark.parametrize("how", ["stream", "base snapshot"])
async def test_what_the_target_refuses_is_left_out_and_named_wherever_it_comes_from(
    setup: Setup, pg15: PostgresServer, role: str, how: str
) -> None:
    await archived(setup, REFUSED)
    if how == "base snapshot":
        await take_another_snapshot(setup)
    _, summary = await restored(setup, pg15, role)
    for kind in ("PUBLICATION", "USER MAPPING", "SUBSCRIPTION"):
        assert any(f"{kind} " in warning for warning in summary.warnings), summary.warnings


async def test_what_was_left_out_can_be_dropped(setup: Setup, pg15: PostgresServer, role: str) -> None:
    await archived(setup, REFUSED + GONE)
    name, _ = await restored(setup, pg15, role)
    with psycopg.connect(pg15.dsn(name)) as conn:
        assert conn.execute("SELECT pubname FROM pg_publication").fetchall() == []
