"""Functions that name things without a schema, as most do: what calls them comes back, whatever our sessions' path is."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.names import TableName
from archiver.policy.target import ToLatest
from archiver.postgres import proof
from archiver.postgres.snapshot import copy_range, snapshot_connection
from archiver.recovery_plan import make_plan
from archiver.restore import Summary, run_restore
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.whole_chain import take_another_snapshot

FUNCTIONS = """
CREATE FUNCTION norm(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN lower(t); END$$;
CREATE FUNCTION norm2(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN norm(t); END$$;
CREATE FUNCTION norm3(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT norm(t)';
CREATE FUNCTION ok(t text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN norm(t) = t; END$$;
CREATE DOMAIN lowered AS text CHECK (ok(VALUE));
"""
VARIANTS = {
    "a CHECK constraint": "CREATE TABLE u (id int PRIMARY KEY, name text CHECK (ok(name)))",
    "a generated column": """
        CREATE TABLE u (id int PRIMARY KEY, name text, made text GENERATED ALWAYS AS (norm2(name)) STORED)""",
    "a domain": "CREATE TABLE u (id int PRIMARY KEY, name lowered)",
    "all without a key": """
        CREATE TABLE u (id int, name lowered CHECK (ok(name)), made text GENERATED ALWAYS AS (norm2(name)) STORED)""",
    "a partition": """
        CREATE TABLE u (id int PRIMARY KEY, name lowered CHECK (ok(name))) PARTITION BY RANGE (id);
        CREATE TABLE u_1 PARTITION OF u FOR VALUES FROM (0) TO (1000000)""",
    "a foreign key": """
        CREATE TABLE v (id int PRIMARY KEY, name text CHECK (ok(name))); INSERT INTO v SELECT generate_series(1, 2000);
        CREATE TABLE u (id int PRIMARY KEY REFERENCES v, name text CHECK (ok(name)))""",
}
INDEXES = {
    "an index, plpgsql": "CREATE TABLE u (id int PRIMARY KEY, name text); CREATE INDEX i ON u (norm2(name))",
    "an index, sql": "CREATE TABLE u (id int PRIMARY KEY, name text); CREATE INDEX i ON u (norm3(name))",
    "a partial unique index": """
        CREATE TABLE u (id int PRIMARY KEY, name text); CREATE UNIQUE INDEX i ON u (norm3(name), id) WHERE ok(name)""",
    "an index without a key": "CREATE TABLE u (id int, name text); CREATE INDEX i ON u (norm3(name))",
    "an index of partitions": """
        CREATE TABLE u (id int PRIMARY KEY, name text) PARTITION BY RANGE (id);
        CREATE TABLE u_1 PARTITION OF u FOR VALUES FROM (0) TO (1000000); CREATE INDEX i ON u (norm3(name));
        COMMENT ON INDEX i IS 'by name'""",
    "an index of what a foreign key refers to": """
        CREATE TABLE v (id int PRIMARY KEY, name text); CREATE INDEX i ON v (norm3(name));
        INSERT INTO v SELECT n, 'n' || n FROM generate_series(1, 2000) n;
        CREATE TABLE u (id int PRIMARY KEY REFERENCES v, name text)""",
    "an exclusion": """
        CREATE TABLE u (id int PRIMARY KEY, name text,
            EXCLUDE USING btree ((norm3(name) || id) WITH =) DEFERRABLE INITIALLY DEFERRED)""",
}
TRAPS = """
CREATE FUNCTION app.trap(a tid, b tid) RETURNS bool LANGUAGE plpgsql AS $$BEGIN RAISE 'trapped'; END$$;
CREATE OPERATOR app.= (FUNCTION = app.trap, LEFTARG = tid, RIGHTARG = tid);
CREATE FUNCTION app.set_config(a text, b text, c bool) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'trapped'; END$$;
"""
ROWS = [
    "INSERT INTO u (id, name) VALUES (1, 'one'), (2, 'two')",
    "UPDATE u SET name = 'uno' WHERE id = 1; DELETE FROM u WHERE id = 2",
    "INSERT INTO u (id, name) SELECT n, 'many' || n FROM generate_series(3, 1000) n",
    "UPDATE u SET name = name || 'x' WHERE id > 500; DELETE FROM u WHERE id BETWEEN 100 AND 400",
    "ALTER TABLE u ADD more text DEFAULT clock_timestamp()::text",  # a rewrite brings its rows
    "BEGIN; TRUNCATE u; INSERT INTO u (id, name) VALUES (7, 'seven'); COMMIT",
]
UNACCENT = """
CREATE EXTENSION unaccent;
CREATE FUNCTION f_un(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT unaccent($1)';
CREATE TABLE u (id int PRIMARY KEY, name text, what regclass DEFAULT 'u', plain text GENERATED ALWAYS AS (f_un(name)) STORED);
"""


async def archived(setup: Setup, before: str, changes: Sequence[str]) -> None:
    with setup.connect() as conn:
        conn.execute(before.encode())
    await setup.init()
    async with setup.daemon():
        await setup.archived()
        for statement in changes:
            with setup.connect() as conn:  # in the path that the database's settings give
                conn.execute(statement.encode())
        await setup.archived()


async def restore(setup: Setup, dsn: str) -> Summary:
    async with setup.open() as archive:
        return await run_restore(archive, await make_plan(archive, ToLatest()), dsn)


async def restore_both_ways(
    setup: Setup, server: PostgresServer, make_database: MakeDatabase, warnings: Sequence[str] = ()
) -> None:
    """Into databases on this server: by replay, and from a newer base snapshot; both equal the source."""
    for way in ("replayed", "loaded"):
        dsn = make_database(server, stem="restored")
        summary = await restore(setup, dsn)
        assert summary.warnings == list(warnings)
        assert (summary.transactions_replayed > 0) == (way == "replayed")
        assert rows(dsn) == rows(setup.dsn)
        assert not (differs := difference(schema(dsn), schema(setup.dsn))), f"{way}: {differs[:3000]}"
        await same_digests(setup.dsn, dsn)
        await take_another_snapshot(setup)


def schema(dsn: str) -> list[str]:
    return pg_dump(dsn, "--schema-only")  # with rows it plans queries, without a search_path


def rows(dsn: str) -> list[tuple[str]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute("SELECT u::text FROM u ORDER BY 1").fetchall()


async def same_digests(source: str, restored: str) -> None:
    """As a drill reads them."""
    tables = await proof.tables_of(source)
    there = [await proof.read_tables(dsn, tables, jobs=1, progress=lambda *_: None) for dsn in (source, restored)]
    assert there[0] == there[1]


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rows_meet_functions_that_name_others_without_a_schema(
    make_setup: MakeSetup, make_database: MakeDatabase, pg: PostgresServer, variant: str
) -> None:
    setup = make_setup()
    await archived(setup, FUNCTIONS + VARIANTS[variant], ROWS)
    await restore_both_ways(setup, pg, make_database)


@pytest.mark.parametrize("variant", VARIANTS | INDEXES)
async def test_indexes_and_planning_before_17(
    make_setup: MakeSetup, make_database: MakeDatabase, pg15: PostgresServer, variant: str
) -> None:
    setup = make_setup(make_database(pg15))
    await archived(setup, FUNCTIONS + (VARIANTS | INDEXES)[variant], ROWS)
    await restore_both_ways(setup, pg15, make_database)


@pytest.mark.parametrize("indexed", [True, False])
async def test_the_usual_recipe_for_unaccent(
    make_setup: MakeSetup,
    make_database: MakeDatabase,
    request: pytest.FixtureRequest,
    indexed: bool,
) -> None:
    """From 17 on its index cannot be made. Names that rows hold are archived in full all the same."""
    server = request.getfixturevalue("pg15" if indexed else "pg")
    setup = make_setup(make_database(server))
    await archived(setup, UNACCENT + ("CREATE INDEX i ON u (f_un(name))" if indexed else ""), ROWS)
    await restore_both_ways(setup, server, make_database)
    table = (await proof.tables_of(setup.dsn))[TableName("public", "u")]
    async with snapshot_connection(setup.dsn, None) as conn:
        batches = [batch async for batch in copy_range(conn, table)]
    assert batches == [[b"7\tseven\tpublic.u\t%s\n" % batches[0][0].rpartition(b"\t")[2].strip()]]


@pytest.mark.parametrize("version", ["pg15", "pg"])
async def test_the_path_is_that_of_the_database(
    make_setup: MakeSetup, make_database: MakeDatabase, request: pytest.FixtureRequest, version: str
) -> None:
    """Even one that names pg_catalog behind a schema that has functions and operators of the same names."""
    server = request.getfixturevalue(version)
    setup = make_setup(dsn := make_database(server))
    with setup.connect() as conn:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET search_path = app, public, pg_catalog".encode())
    before = "CREATE SCHEMA app;" + TRAPS + FUNCTIONS + VARIANTS["all without a key"]
    await archived(setup, before, ROWS)
    assert psycopg.connect(dsn).execute("SELECT 'u'::regclass::text").fetchone() == ("u",)
    await restore_both_ways(setup, server, make_database)


async def test_views_are_filled_before_17(
    make_setup: MakeSetup, make_database: MakeDatabase, pg15: PostgresServer
) -> None:
    setup = make_setup(make_database(pg15))
    view = "CREATE MATERIALIZED VIEW w AS SELECT id, norm2(name) AS a, norm3(name) AS b FROM u"
    await archived(setup, FUNCTIONS + VARIANTS["a domain"] + ";" + view, [ROWS[0], "REFRESH MATERIALIZED VIEW w"])
    await restore_both_ways(setup, pg15, make_database)


@pytest.mark.parametrize("partitions", [False, True])
async def test_an_index_that_17_cannot_make_over_rows_is_left_out_and_named(
    make_setup: MakeSetup, make_database: MakeDatabase, pg: PostgresServer, partitions: bool
) -> None:
    """The source could not make it again either. What is made before the rows comes back, without statistics."""
    setup = make_setup()
    table = VARIANTS["a partition" if partitions else "a domain"]
    index = "; CREATE INDEX i ON u (norm2(name)); COMMENT ON INDEX i IS 'by name'"
    await archived(setup, FUNCTIONS + table + index, ROWS[:2])
    found = "left out: function norm(text) does not exist"
    replayed = make_database(pg, stem="restored")
    assert (await restore(setup, replayed)).warnings == [f"ANALYZE {found}"]
    assert not difference(schema(replayed), schema(setup.dsn))
    await take_another_snapshot(setup)
    loaded = make_database(pg, stem="restored")
    warnings = (await restore(setup, loaded)).warnings
    left_out = "u_1_norm2_idx" if partitions else "i"
    about_it = f"INDEX ATTACH public.{left_out}" if partitions else 'COMMENT public.INDEX "i"'
    assert warnings == [
        f"INDEX public.{left_out} {found}",
        f'{about_it} left out: relation "public.{left_out}" does not exist',
    ]
    assert rows(replayed) == rows(loaded) == rows(setup.dsn)
