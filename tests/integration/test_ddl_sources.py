"""DDL of sources that are not the usual ones: other encodings, other owners, texts and triggers of many kinds."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.restore import run_restore
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase, drop_database
from tests.integration.test_ddl import check
from tests.integration.test_excluded import findings


@pytest.fixture(params=["pg", "pg15"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def setup(make_setup: MakeSetup, make_database: MakeDatabase, server: PostgresServer) -> Setup:
    return on(server, make_setup, make_database)


def on(server: PostgresServer, make_setup: MakeSetup, make_database: MakeDatabase) -> Setup:
    """Source and targets on the same server."""
    return replace(make_setup(make_database(server)), make_database=partial(make_database, server))


@pytest.fixture
def latin1(
    make_setup: MakeSetup, make_database: MakeDatabase, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setup]:
    monkeypatch.setenv("PGCLIENTENCODING", "UTF8")
    name = f"latin1_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name} ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    yield replace(make_setup(server.dsn(name)), make_database=partial(make_database, server))
    drop_database(server, name)


async def test_an_extensions_script_is_not_counted_among_the_statements_of_its_text(
    make_setup: MakeSetup, make_database: MakeDatabase, pg15: PostgresServer
) -> None:
    """The embedded server has no contrib modules; before 18 it is harder anyway."""
    setup = on(pg15, make_setup, make_database)
    statements = [
        "CREATE EXTENSION IF NOT EXISTS pgcrypto; CREATE EXTENSION IF NOT EXISTS citext; CREATE TABLE u (id int PRIMARY KEY)",
        "CREATE EXTENSION cube; CREATE EXTENSION earthdistance; COMMENT ON TABLE u IS 'after extensions'",
        "CREATE EXTENSION hstore VERSION '1.6'; ALTER EXTENSION hstore UPDATE; CREATE SCHEMA s; ALTER TABLE u ADD h hstore;"
        " ALTER EXTENSION hstore SET SCHEMA s; CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DO $$ BEGIN EXECUTE 'CREATE EXTENSION ltree; CREATE TABLE v (id int PRIMARY KEY, l ltree)'; END $$",
        "BEGIN; SAVEPOINT a; CREATE EXTENSION pg_trgm; ROLLBACK TO a; CREATE TABLE w (id int); COMMENT ON TABLE w IS 'x'; COMMIT",
        "INSERT INTO u VALUES (1, 'a=>1'); INSERT INTO v VALUES (1, 'a.b')",
    ]
    assert await check(setup, statements, "SELECT 1") == []


async def test_a_source_that_is_not_in_utf_8(latin1: Setup) -> None:
    statements = [
        "COMMENT ON COLUMN t.v IS 'Größe'; ALTER TABLE t ADD \"größe\" int DEFAULT 1",
        "INSERT INTO t VALUES (2, 'é'); ALTER TABLE t ADD c int; INSERT INTO t VALUES (3, 'ü')",
        "ALTER TABLE t ADD r float DEFAULT random()",
        'CREATE TABLE "Straße" AS SELECT \'ß\' AS "ä"; DROP TABLE IF EXISTS "öd"',
    ]
    before = 'CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, \'é\'); CREATE TABLE "öd" ("é" int)'
    assert await check(latin1, statements, before) == []


async def test_an_enum_is_made_extended_and_used_in_one_transaction(make_setup: MakeSetup) -> None:
    statements = [
        "BEGIN; CREATE TYPE m AS ENUM ('p'); ALTER TYPE m ADD VALUE 'q'; CREATE TABLE t (x m PRIMARY KEY DEFAULT 'q');"
        " INSERT INTO t DEFAULT VALUES; COMMIT",
    ]
    assert await check(make_setup(), statements, "SELECT 1") == []


async def test_a_publication_that_loses_tables(setup: Setup) -> None:
    before = "CREATE TABLE t1 (id int PRIMARY KEY); CREATE TABLE t2 (id int PRIMARY KEY); CREATE TABLE t3 (id int PRIMARY KEY)"
    statements = [
        "CREATE PUBLICATION p FOR TABLE t1, t2, t3; ALTER PUBLICATION p DROP TABLE t1",
        "ALTER PUBLICATION p SET TABLE t2",
    ]
    assert await check(setup, statements, before) == []


async def test_strict_plpgsql_settings_of_the_source_are_no_obstacle(setup: Setup) -> None:
    with setup.connect() as conn:
        conn.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET plpgsql.extra_errors = ''all''', current_database()); END $$"
        )
    statements = [
        "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)",
        "ALTER TABLE u ADD r float DEFAULT random()",
    ]
    assert await check(setup, statements, "SELECT 1") == []


@pytest.fixture
def owner(server: PostgresServer) -> Iterator[str]:
    name = f"owner_{secrets.token_hex(4)}"
    server.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    server.execute(f"DROP ROLE {name}")


OWNERS = [
    "CREATE TABLE t (id int PRIMARY KEY, m text); INSERT INTO t VALUES (1, 'a'); CREATE TYPE mood AS ENUM ('sad')",
    "CREATE SCHEMA app; CREATE TABLE app.t (m mood); ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "CREATE TABLE app.u (id int PRIMARY KEY); ALTER TABLE t RENAME TO u; GRANT USAGE ON SCHEMA public TO PUBLIC",
    "CREATE VIEW app.v AS SELECT id FROM public.u; DROP TABLE app.t; CREATE POLICY p ON u TO CURRENT_USER USING (true)",
]


@pytest.mark.parametrize("plain_target", [True, False])
async def test_the_databases_owner_makes_things(
    owner: str, make_setup: MakeSetup, make_database: MakeDatabase, server: PostgresServer, plain_target: bool
) -> None:
    """The target is a database of the restoring role, a superuser or, as on a managed service, its owner."""
    setup = on(server, make_setup, make_database)
    with setup.connect() as conn:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} OWNER TO {owner}; SET ROLE {owner}".encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in OWNERS:
                conn.execute(statement.encode())
            await setup.archived()
        expected = pg_dump(setup.dsn)
        if plain_target:
            restored, summary = await setup.restore()
            assert difference(pg_dump(restored), expected) == ""
            assert summary.warnings == []
        else:
            await restore_as_a_manager(setup, server, owner, pg_dump(setup.dsn, "--no-owner", "--no-acl"))
        conn.execute("RESET ROLE")


async def restore_as_a_manager(setup: Setup, server: PostgresServer, owner: str, expected: list[str]) -> None:
    """What the owner may not do in the manager's database, he may for as long as his statement takes."""
    manager = f"manager_{secrets.token_hex(4)}"
    server.execute(f"CREATE ROLE {manager} LOGIN")
    server.execute(f"GRANT {owner} TO {manager}")
    target = psycopg.conninfo.conninfo_to_dict(setup.make_database(stem="restored"))["dbname"]
    server.execute(f"ALTER DATABASE {target} OWNER TO {manager}")
    async with setup.open() as archive:
        summary = await run_restore(
            archive, await make_plan(archive, ToLatest()), server.dsn(str(target), user=manager)
        )
    assert difference(pg_dump(server.dsn(str(target)), "--no-owner", "--no-acl"), expected) == ""
    assert summary.warnings == []
    server.execute(f"DROP DATABASE {target}")
    server.execute(f"DROP ROLE {manager}")


async def test_check_warns_of_a_database_that_takes_any_bytes(make_setup: MakeSetup, server: PostgresServer) -> None:
    name = f"ascii_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name} ENCODING SQL_ASCII LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    assert (await findings(make_setup(server.dsn(name))))["encoding"][0] == "warn"
    drop_database(server, name)


async def test_check_names_event_triggers_that_fire_before_archivers(setup: Setup) -> None:
    with setup.connect() as conn:
        conn.execute("CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'")
        conn.execute('CREATE EVENT TRIGGER "Audit" ON ddl_command_end EXECUTE FUNCTION f()')
        conn.execute("CREATE EVENT TRIGGER audit ON ddl_command_end EXECUTE FUNCTION f()")
        await setup.init()
    assert (await findings(setup))["event triggers"] == ("warn", 'they fire before archiver\'s: "Audit"')
