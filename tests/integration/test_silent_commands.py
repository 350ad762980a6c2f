"""What fires no event trigger: roles and settings come back as of the base snapshot, and what needs a later role is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.restore import Summary, run_restore
from tests.dumps import difference, pg_dump
from tests.fix_archive import Setup
from tests.fix_servers import PG_SETTINGS
from tests.integration.whole_chain import take_another_snapshot

MakeSetup = Callable[..., Setup]
SETTINGS = """
SELECT coalesce(r.rolname, ''), coalesce(d.datname, ''), s.setconfig FROM pg_db_role_setting s
  LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
 WHERE r.rolname LIKE 'silent%' OR d.datname = current_database() ORDER BY 1, 2
"""


@pytest.fixture
def elsewhere() -> Iterator[PostgresServer]:
    """Another server, without the roles of the source."""
    with closing(PostgresServer(settings=PG_SETTINGS)) as server:
        server.start()
        yield server


@pytest.fixture
def role(pg: PostgresServer) -> Iterator[None]:
    pg.execute("CREATE ROLE silent_early")
    yield
    with psycopg.connect(pg.dsn(), autocommit=True) as conn:
        for (name,) in conn.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'silent%'").fetchall():
            conn.execute(f"DROP ROLE {name}".encode())


async def restore(setup: Setup, server: PostgresServer, name: str) -> tuple[str, Summary]:
    server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    async with setup.open() as archive:
        plan = await make_plan(archive, ToLatest())
        return server.dsn(name), await run_restore(archive, plan, server.dsn(name), with_globals=True)


def settings(dsn: str) -> list[tuple[str, bool, list[str]]]:
    with psycopg.connect(dsn) as conn:
        name = conn.info.dbname
        found = conn.execute(SETTINGS).fetchall()
    return [(role, bool(database), sorted(values)) for role, database, values in found if database in {"", name}]


async def test_settings_of_database_and_roles_come_back_as_of_the_base_snapshot(
    role: None, make_setup: MakeSetup, elsewhere: PostgresServer
) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        name = conn.info.dbname
        conn.execute(
            f"ALTER DATABASE {name} SET work_mem = '7MB'; ALTER DATABASE {name} SET search_path = \"$user\", 'Odd, One'"
        )
        conn.execute(
            f"ALTER ROLE silent_early SET work_mem = '8MB'; ALTER ROLE silent_early IN DATABASE {name} SET DateStyle = 'SQL, DMY'"
        )
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            before = settings(setup.dsn)
            conn.execute("CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1)")
            conn.execute(f"ALTER DATABASE {name} SET work_mem = '9MB'; ALTER DATABASE {name} RESET search_path")
            conn.execute(
                f"ALTER ROLE silent_early IN DATABASE {name} SET work_mem = '5MB'; ALTER ROLE silent_early RESET work_mem"
            )
            await setup.archived()
            dsn, summary = await restore(setup, elsewhere, "early")
            assert (settings(dsn), summary.warnings) == (before, [])
            await take_another_snapshot(setup)
            elsewhere.execute("DROP DATABASE early")
            elsewhere.execute("DROP ROLE silent_early")
    dsn, _ = await restore(setup, elsewhere, "late")
    assert settings(dsn) == settings(setup.dsn) != before


LATER = [
    "CREATE ROLE silent_late; GRANT SELECT ON item TO silent_late, silent_early; GRANT USAGE, CREATE ON SCHEMA public TO silent_late",
    "CREATE POLICY theirs ON item TO silent_late USING (true); CREATE POLICY ours ON item TO silent_early, silent_late USING (id > 0)",
    "ALTER TABLE note OWNER TO silent_late; ALTER FUNCTION f() OWNER TO silent_late; ALTER SCHEMA s OWNER TO silent_late",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO silent_late; ALTER DEFAULT PRIVILEGES FOR ROLE silent_late GRANT SELECT ON TABLES TO PUBLIC",
    "SET ROLE silent_late; CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1); CREATE TABLE filled AS SELECT 2 AS a;"
    " ALTER TABLE made ADD v text DEFAULT current_user; RESET ROLE",
    "CREATE SCHEMA AUTHORIZATION silent_late CREATE TABLE inner_one (id int PRIMARY KEY)",
    "INSERT INTO silent_late.inner_one VALUES (3); INSERT INTO made VALUES (4)",
    "ALTER POLICY ours ON item TO silent_late; REVOKE SELECT ON item FROM silent_late; ALTER POLICY theirs ON item USING (false)",
    "COMMENT ON POLICY theirs ON item IS 'x'; DROP POLICY theirs ON item; REASSIGN OWNED BY silent_late TO CURRENT_USER",
    "GRANT SELECT ON made TO PUBLIC; INSERT INTO item VALUES (2)",
]


async def test_what_needs_a_role_made_after_the_base_snapshot_is_left_out_and_named(
    role: None, make_setup: MakeSetup, elsewhere: PostgresServer
) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(
            "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1); CREATE TABLE note (v text); CREATE SCHEMA s"
        )
        conn.execute(
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER TABLE item ENABLE ROW LEVEL SECURITY"
        )
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in LATER:
                conn.execute(statement.encode())
            await setup.archived()
    dsn, summary = await restore(setup, elsewhere, "restored")
    assert {warning.partition(" left out")[0] for warning in summary.warnings[:-1]} == {
        "GRANT", "REVOKE", "CREATE POLICY", "ALTER POLICY", "CREATE SCHEMA", "ALTER SCHEMA", "ALTER TABLE",
        "ALTER FUNCTION", "ALTER DEFAULT PRIVILEGES", "ownership of what it made",
    }  # fmt: skip
    assert "roles made after the base snapshot are not in it: silent_late;" in summary.warnings[-1]
    with psycopg.connect(dsn) as restored, setup.connect() as source:
        for table in ("item", "note", "made", "filled", "silent_late.inner_one"):
            rows = f"SELECT t::text FROM {table} t ORDER BY 1".encode()
            assert restored.execute(rows).fetchall() == source.execute(rows).fetchall()
        granted = restored.execute("SELECT relacl::text FROM pg_class WHERE relname = 'item'").fetchone()
        assert granted == ("{postgres=arwdDxtm/postgres,silent_early=r/postgres}",)
        # "ours" was for silent_early too, until it was for silent_late alone: nobody may have it now.
        assert restored.execute("SELECT polname FROM pg_policy").fetchall() == []
    elsewhere.execute("CREATE ROLE silent_late")
    whole, summary = await restore(setup, elsewhere, "whole")
    assert summary.warnings == []
    assert difference(without_owners(whole), without_owners(setup.dsn)) == ""


def without_owners(dsn: str) -> list[str]:
    """REASSIGN OWNED fires nothing either: what it gave away stays with its owner of before."""
    return pg_dump(dsn, "--no-owner", "--no-privileges")
