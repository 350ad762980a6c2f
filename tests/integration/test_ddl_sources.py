"""DDL of sources that are not the usual ones: other encodings, other owners, texts and triggers of many kinds."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from archiver.embedded import PostgresServer
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase, drop_database
from tests.integration.test_ddl import check


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
