"""What a target refuses, to a role that is no superuser: left out and named, from a base snapshot and from the stream."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
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


async def archived(setup: Setup, statements: Sequence[str], before: str = BEFORE) -> None:
    with setup.connect() as conn:
        conn.execute(before.encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in statements:
                conn.execute(statement.encode())
            conn.execute("INSERT INTO item VALUES (2)")
            await setup.archived()


async def restored(
    setup: Setup, pg15: PostgresServer, role: str, extensions: Sequence[str] = ("postgres_fdw",)
) -> tuple[str, Summary]:
    """Into a database of the role's, in which an administrator made the extensions that it may not make."""
    name = str(conninfo_to_dict(setup.make_database(pg15, stem="owned"))["dbname"])
    pg15.execute(f"ALTER DATABASE {name} OWNER TO {role}")
    for extension in extensions:
        pg15.execute(f"CREATE EXTENSION {extension}", dbname=name)
    if "postgres_fdw" in extensions:
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


# --- extensions that are there ---

ITEM = "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1);"
EXTENSIONS = ("hstore", "citext", "pg_trgm", "pg_stat_statements")
LATER = [
    "CREATE EXTENSION hstore VERSION '1.4'; CREATE EXTENSION pg_trgm; CREATE EXTENSION pg_stat_statements VERSION '1.9'",
    "CREATE TABLE h (id int PRIMARY KEY, v hstore); INSERT INTO h VALUES (1, 'a=>1')",
    "ALTER EXTENSION hstore UPDATE TO '1.7'; ALTER EXTENSION hstore UPDATE TO '1.8'; ALTER EXTENSION hstore UPDATE",
    "CREATE EXTENSION IF NOT EXISTS citext VERSION '1.5'",
    "CREATE TABLE c (id int PRIMARY KEY, v citext); INSERT INTO c VALUES (1, 'A')",
    "ALTER EXTENSION pg_stat_statements UPDATE",
    "DROP EXTENSION pg_trgm",
]


def about_extensions(summary: Summary) -> list[str]:
    return sorted(warning for warning in summary.warnings if warning.lower().startswith("extension"))


async def restored_by_superuser(setup: Setup, pg15: PostgresServer, before: str) -> Summary:
    dsn = setup.make_database(pg15, stem="restored")
    pg15.execute(before, dbname=str(conninfo_to_dict(dsn)["dbname"]))
    async with setup.open() as archive:
        return await run_restore(archive, await make_plan(archive, ToLatest()), dsn)


async def test_extensions_that_an_administrator_made_are_there(setup: Setup, pg15: PostgresServer, role: str) -> None:
    await archived(setup, LATER, ITEM)
    name, summary = await restored(setup, pg15, role, EXTENSIONS)
    assert about_extensions(summary) == [
        "EXTENSION citext left out: it is there, in version 1.6 instead of 1.5",
        "EXTENSION pg_stat_statements left out: it stays in version 1.10: must be owner of extension pg_stat_statements",
        "EXTENSION pg_trgm left out: it stays: must be owner of extension pg_trgm",
    ]
    with psycopg.connect(pg15.dsn(name)) as conn:
        assert conn.execute("SELECT v -> 'a' FROM h").fetchall() == [("1",)]
        assert conn.execute("SELECT v = 'a' FROM c").fetchall() == [(True,)]


async def test_an_extension_of_the_targets_template_is_there(setup: Setup, pg15: PostgresServer) -> None:
    await archived(setup, ["CREATE EXTENSION citext", "ALTER EXTENSION citext UPDATE TO '1.6'"], ITEM)
    assert (await restored_by_superuser(setup, pg15, "CREATE EXTENSION citext")).warnings == []


async def test_a_base_snapshot_tells_of_extensions_of_another_version(setup: Setup, pg15: PostgresServer) -> None:
    await archived(setup, [], f"{ITEM} CREATE EXTENSION citext VERSION '1.5'")
    summary = await restored_by_superuser(setup, pg15, "SELECT 1")
    assert about_extensions(summary) == ["extension citext is at the target in version 1.6 instead of 1.5"]


async def test_an_extension_that_cannot_be_dropped_with_what_uses_it_stops_the_restore(
    setup: Setup, pg15: PostgresServer, role: str
) -> None:
    """The column that went with it would stay, and rows would be none of its table's."""
    uses = "CREATE TABLE c (id int PRIMARY KEY, v citext)"
    await archived(setup, ["CREATE EXTENSION citext", uses, "DROP EXTENSION citext CASCADE"], ITEM)
    with pytest.raises(PostgresError, match="must be owner of extension citext"):
        await restored(setup, pg15, role, ["citext"])
