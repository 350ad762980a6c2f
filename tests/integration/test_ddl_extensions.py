"""Extensions, foreign schemas, and what fires no event triggers: DDL whose effects are not in its own text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.restore import run_restore
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.test_ddl import BEFORE, DROPS, FILLED, NESTED, POINT, check


@pytest.fixture
def on_15(pg15: PostgresServer, make_database: MakeDatabase, make_setup: MakeSetup) -> Setup:
    """A source with contrib modules, which the embedded server has not; restores go to the same server."""
    setup = make_setup(make_database(pg15))

    def make(server: PostgresServer | None = None, **options: Any) -> str:
        return make_database(server or pg15, **options)

    setup.make_database = make
    return setup


async def test_an_extension_makes_its_own_objects_and_rows(on_15: Setup) -> None:
    statements = [
        "BEGIN; CREATE EXTENSION citext; CREATE TABLE c (id int PRIMARY KEY, v citext);"
        " INSERT INTO c VALUES (1, 'A'), (2, NULL); COMMIT",
        "UPDATE c SET v = 'b' WHERE v = 'a'",
        "CREATE EXTENSION IF NOT EXISTS citext; CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext VERSION '1.4'",
        "ALTER EXTENSION hstore UPDATE; CREATE TABLE h (id int PRIMARY KEY, v ext.hstore)",
        "INSERT INTO h VALUES (1, 'a=>1')",
        "CREATE EXTENSION earthdistance CASCADE",
        POINT,
        "DROP EXTENSION earthdistance; DROP EXTENSION hstore CASCADE",
    ]
    assert await check(on_15, statements) == []


async def test_a_script_that_alters_its_extension_itself_runs_once(on_15: Setup) -> None:
    """Its update has ALTER EXTENSION … DROP VIEW, DROP VIEW, and CREATE VIEW."""
    statements = [
        "CREATE EXTENSION pg_stat_statements VERSION '1.9'",
        "ALTER EXTENSION pg_stat_statements UPDATE TO '1.10'; CREATE VIEW seen AS SELECT calls FROM pg_stat_statements",
    ]
    assert await check(on_15, statements) == []


WRITTEN = {
    "written.control": "default_version = '1'\nrelocatable = false\nschema = public\n",
    "written--1.sql": "CREATE TABLE written (id int PRIMARY KEY, v text);"
    " INSERT INTO written VALUES (1, 'its own'), (2, 'its own');"
    " SELECT pg_extension_config_dump('written', 'WHERE id > 2');",
    "written--1--2.sql": "ALTER TABLE written ADD w int DEFAULT 7; UPDATE written SET v = 'updated' WHERE id = 2;"
    " INSERT INTO written VALUES (-1);",
    "watching.control": "default_version = '1'\nrelocatable = false\nschema = public\n",
    "watching--1.sql": """
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
  IF current_setting('application_name') IN ('archiver restore', 'archiver replay') THEN
    RAISE EXCEPTION 'an event trigger fires';
  END IF;
END $$;
CREATE EVENT TRIGGER watching ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'CREATE INDEX')
  EXECUTE FUNCTION watch();
ALTER EVENT TRIGGER watching ENABLE ALWAYS;
""",
}


@pytest.fixture
def written_extension(pg: PostgresServer) -> Iterator[None]:
    """An extension of our own on the embedded server, which looks for them in any folder (18 and later)."""
    with TemporaryDirectory() as root, psycopg.connect(pg.dsn(), autocommit=True) as conn:
        folder = Path(root) / "extension"
        folder.mkdir()
        Path(root).chmod(0o755)  # the server runs as another user
        for name, text in WRITTEN.items():
            (folder / name).write_text(text, encoding="utf-8")
        conn.execute(f"ALTER SYSTEM SET extension_control_path = '{root}:$system'".encode())
        conn.execute("SELECT pg_reload_conf()")
        yield
        conn.execute("ALTER SYSTEM RESET extension_control_path")
        conn.execute("SELECT pg_reload_conf()")


async def test_rows_that_an_extension_s_script_writes_are_written_once(
    make_setup: MakeSetup, written_extension: None
) -> None:
    setup = make_setup()
    statements = [
        "CREATE EXTENSION written; INSERT INTO written VALUES (3, 'ours')",
        "UPDATE written SET v = 'changed' WHERE id IN (1, 3)",
        POINT,
        "BEGIN; ALTER EXTENSION written UPDATE TO '2'; INSERT INTO written VALUES (4, 'ours'); COMMIT",
    ]
    assert await check(setup, statements) == []
    restored, _ = await setup.restore()
    query = "SELECT * FROM written ORDER BY id"
    with psycopg.connect(restored) as conn, setup.connect() as source:
        assert conn.execute(query).fetchall() == source.execute(query).fetchall()


@pytest.mark.parametrize("before", [True, False])
async def test_an_event_trigger_of_an_extension_does_not_fire_for_the_restore(
    make_setup: MakeSetup, written_extension: None, before: bool
) -> None:
    statements = ["CREATE EXTENSION IF NOT EXISTS watching", "CREATE TABLE later (id int PRIMARY KEY)"]
    first = statements.pop(0) if before else "SELECT 1"
    setup = make_setup()
    assert await check(setup, statements, f"{first}; CREATE TABLE seen (id int PRIMARY KEY)") == []
    restored, _ = await setup.restore()
    with psycopg.connect(restored) as conn:
        found = conn.execute("SELECT evtenabled FROM pg_event_trigger WHERE evtname = 'watching'").fetchall()
        assert found == [("A",)]


async def test_a_foreign_schema_is_not_asked_again(on_15: Setup) -> None:
    there = conninfo_to_dict(on_15.dsn)
    options = f"host '{there['host']}', port '{there['port']}', dbname '{there['dbname']}'"
    statements = [
        "CREATE EXTENSION postgres_fdw; CREATE SCHEMA remote",
        f"CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({options})",
        f"CREATE USER MAPPING FOR CURRENT_USER SERVER self OPTIONS (user '{there['user']}')",
        "IMPORT FOREIGN SCHEMA public LIMIT TO (item, note) FROM SERVER self INTO remote",
        "CREATE FOREIGN TABLE remote.other (line text OPTIONS (column_name 'line')) SERVER self OPTIONS (table_name 'note')",
        "ALTER FOREIGN TABLE remote.other ADD n int; DROP TABLE note",
    ]
    assert await check(on_15, statements) == []


async def test_ddl_of_an_older_server_comes_back(on_15: Setup) -> None:
    assert await check(on_15, [*FILLED, *NESTED, *DROPS]) == []


async def test_what_fires_no_event_trigger_travels_not_and_breaks_nothing(
    make_setup: MakeSetup, pg: PostgresServer
) -> None:
    statements = [
        "CREATE ROLE passer; ALTER ROLE passer SET work_mem = '8MB'; CREATE TABLE a (id int PRIMARY KEY);"
        " COMMENT ON ROLE passer IS 'x'; GRANT passer TO postgres; CREATE TABLE b (id int PRIMARY KEY)",
        "GRANT SELECT ON a TO passer; REINDEX TABLE a; ANALYZE a; CREATE TABLE c (id int PRIMARY KEY)",
        "EXPLAIN ANALYZE SELECT 1; LOCK TABLE a; TRUNCATE a; CREATE TABLE d (id int PRIMARY KEY)",
    ]
    assert await check(make_setup(), ["BEGIN; " + each + "; COMMIT" for each in statements]) == []


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_role_that_the_target_lacks_is_reported(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Also by a restore that goes on behind the replay."""
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(BEFORE)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute("CREATE ROLE gone; GRANT CREATE ON SCHEMA public TO gone; SET ROLE gone")
            conn.execute("CREATE TABLE theirs (id int PRIMARY KEY)")
            conn.execute("RESET ROLE; GRANT SELECT ON item TO gone, PUBLIC; ALTER TABLE note OWNER TO gone")
            conn.execute("CREATE POLICY shut ON item AS RESTRICTIVE TO gone USING (id > 1)")
            conn.execute("ALTER POLICY shut ON item TO PUBLIC")
            conn.execute("CREATE POLICY mine ON item TO gone USING (true); DROP OWNED BY gone; DROP ROLE gone")
            await setup.archived()
    restored = setup.make_database()
    async with setup.open() as archive:
        plan = await make_plan(archive, ToLatest())
        if interrupted:
            with monkeypatch.context() as broken:
                broken.setattr("archiver.postgres.load.apply_settings", interrupt)
                with pytest.raises(PostgresError, match="interrupted"):
                    await run_restore(archive, plan, restored)
        summary = await run_restore(archive, plan, restored)
    assert summary.warnings.pop().startswith("roles made after the base snapshot are not in it: gone;")
    assert set(summary.warnings) == {
        "GRANT left out: no role gone",
        "ownership of what it made left out: no role gone",
        "ALTER TABLE left out: no role gone",
        "CREATE POLICY left out: no role gone",
    }
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT to_regclass('theirs'), to_regclass('note')").fetchone() == (None, None)
        assert conn.execute("SELECT polname, polroles::text FROM pg_policy").fetchall() == [("shut", "{0}")]
        assert conn.execute("SELECT 1 FROM pg_roles WHERE rolname = 'gone'").fetchall() == []


async def interrupt(*_: object) -> None:
    raise PostgresError("interrupted")
