"""Roles: archived with each base snapshot, and made at a target that lacks them by `restore --globals`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError, UsageError
from archiver.policy.target import ToLatest
from archiver.postgres.roles import read_globals
from archiver.postgres.session import connect
from archiver.recovery_plan import make_plan, missing_roles
from archiver.restore import Summary, run_restore
from archiver.snapshots import Index, read_index
from tests.dumps import difference, pg_dump
from tests.fix_archive import Setup
from tests.fix_cli import Site
from tests.fix_servers import PG_SETTINGS

MakeSetup = Callable[..., Setup]
ROLES = ('"Owner ""it"', "staff", "clerk", "reader", "boss")
MADE = """
CREATE ROLE "Owner ""it" NOINHERIT CREATEDB CREATEROLE CONNECTION LIMIT 7;
CREATE ROLE staff; CREATE ROLE reader NOLOGIN BYPASSRLS REPLICATION;
CREATE ROLE clerk LOGIN PASSWORD 'secret' VALID UNTIL '2031-01-02 03:04:05+00';
CREATE ROLE boss SUPERUSER LOGIN VALID UNTIL 'infinity';
COMMENT ON ROLE clerk IS 'it''s a clerk';
ALTER ROLE clerk SET search_path = "$user", "Odd ""Schema", public; ALTER ROLE clerk SET work_mem = '7MB';
ALTER ROLE clerk SET my.own = 'a=b'; ALTER ROLE staff SET default_transaction_read_only = on;
GRANT staff TO clerk WITH ADMIN OPTION; GRANT reader TO staff; GRANT pg_monitor TO reader;
GRANT "Owner ""it" TO boss WITH INHERIT FALSE, SET TRUE; GRANT staff TO boss WITH INHERIT TRUE, SET FALSE;
"""
OBJECTS = """
CREATE TABLE item (id int PRIMARY KEY, v text); ALTER TABLE item OWNER TO "Owner ""it";
CREATE SCHEMA owned AUTHORIZATION staff; CREATE TABLE owned.note (id int PRIMARY KEY); ALTER TABLE owned.note OWNER TO clerk;
GRANT SELECT ON item TO reader, clerk WITH GRANT OPTION;
ALTER TABLE item ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON item TO clerk USING (true);
ALTER DEFAULT PRIVILEGES FOR ROLE clerk GRANT SELECT ON TABLES TO reader;
"""


@pytest.fixture
def roles(pg: PostgresServer) -> Iterator[None]:
    with psycopg.connect(pg.dsn(), autocommit=True) as conn:
        conn.execute(MADE)
        yield
        conn.execute("DROP ROLE " + ", ".join(ROLES))


@pytest.fixture
async def shop(roles: None, make_setup: MakeSetup) -> Setup:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(OBJECTS)
        conn.execute(f"ALTER ROLE clerk IN DATABASE {conn.info.dbname} SET my.here = 'x'")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute("INSERT INTO item VALUES (1, 'x'); GRANT UPDATE ON item TO staff")
            await setup.archived()
    return setup


@pytest.fixture
def elsewhere() -> Iterator[PostgresServer]:
    """Another server, without these roles."""
    with closing(PostgresServer(settings=PG_SETTINGS)) as server:
        server.start()
        server.execute("CREATE DATABASE restored TEMPLATE template0")
        yield server


async def restore(shop: Setup, dsn: str, *, with_globals: bool = True) -> Summary:
    async with shop.open() as archive:
        return await run_restore(archive, await make_plan(archive, ToLatest()), dsn, with_globals=with_globals)


async def globals_of(dsn: str) -> dict[str, object]:
    async with await connect(dsn, purpose="test") as conn:
        found = await read_globals(conn)
    names = {role.strip('"').replace('""', '"') for role in ROLES}
    roles = [role for role in found.roles if role.name in names]
    return replace(found, roles=tuple(roles), memberships=found.memberships).to_json() | {
        "memberships": [m for m in found.to_json()["memberships"] if m["member"] in names]
    }


async def test_roles_come_back_with_memberships_settings_comments_and_passwords(
    shop: Setup, elsewhere: PostgresServer
) -> None:
    summary = await restore(shop, elsewhere.dsn("restored"))
    assert summary.warnings == []
    assert {"clerk", "boss", 'Owner "it'} <= set(summary.roles_created)
    assert summary.roles_kept == ["postgres"]
    assert await globals_of(elsewhere.dsn("restored")) == await globals_of(shop.dsn)
    assert difference(pg_dump(elsewhere.dsn("restored")), pg_dump(shop.dsn)) == ""


async def test_roles_that_are_there_are_left_alone(shop: Setup, elsewhere: PostgresServer) -> None:
    elsewhere.execute("CREATE ROLE clerk NOLOGIN CONNECTION LIMIT 3")
    elsewhere.execute("CREATE ROLE staff CREATEDB")
    summary = await restore(shop, elsewhere.dsn("restored"))
    assert summary.roles_kept == ["clerk", "postgres", "staff"]
    there = (
        "SELECT rolcanlogin, rolconnlimit, rolcreatedb, rolpassword FROM pg_authid WHERE rolname IN ('clerk', 'staff')"
    )
    assert elsewhere.execute(there + " ORDER BY rolname") == [(False, 3, False, None), (False, -1, True, None)]
    between = "SELECT 1 FROM pg_auth_members WHERE roleid = 'staff'::regrole AND member = 'clerk'::regrole"
    assert elsewhere.execute(between) == []


async def test_without_globals_nothing_is_created(shop: Setup, elsewhere: PostgresServer) -> None:
    summary = await restore(shop, elsewhere.dsn("restored"), with_globals=False)
    assert any("no role" in warning for warning in summary.warnings)
    assert elsewhere.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'") == [("postgres",)]


async def test_a_role_that_may_not_create_roles_is_told_so_before_anything_is_made(
    shop: Setup, elsewhere: PostgresServer
) -> None:
    elsewhere.execute("CREATE ROLE plain LOGIN")
    elsewhere.execute("ALTER DATABASE restored OWNER TO plain")
    dsn = elsewhere.dsn("restored", user="plain")
    with pytest.raises(PostgresError, match="permission denied to create role") as refused:
        await restore(shop, dsn)
    assert "--globals" in str(refused.value.hint)
    summary = await restore(shop, dsn, with_globals=False)
    assert not summary.resumed


async def test_one_who_may_create_roles_but_is_no_superuser_makes_what_it_may(
    shop: Setup, elsewhere: PostgresServer
) -> None:
    """As on a managed service: what only a superuser may give is left out and named."""
    elsewhere.execute("CREATE ROLE admin LOGIN CREATEROLE")
    elsewhere.execute("ALTER DATABASE restored OWNER TO admin")
    summary = await restore(shop, elsewhere.dsn("restored", user="admin"))
    refused = {warning.partition(" left out")[0] for warning in summary.warnings if "left out" in warning}
    assert {"SUPERUSER of ROLE boss", "BYPASSRLS of ROLE reader", "REPLICATION of ROLE reader"} <= refused
    owner = elsewhere.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'note'", dbname="restored")
    assert owner == [("clerk",)]
    assert elsewhere.execute("SELECT rolpassword LIKE 'SCRAM%' FROM pg_authid WHERE rolname = 'clerk'") == [(True,)]


async def test_a_role_that_may_not_read_passwords_archives_the_rest(pg: PostgresServer, roles: None) -> None:
    async with await connect(pg.dsn(user="clerk"), purpose="test") as conn:
        found = await read_globals(conn)
    assert not found.passwords
    assert {role.password for role in found.roles} == {None}
    assert "boss" in {role.name for role in found.roles}


async def test_a_base_snapshot_without_roles_is_restored_but_not_with_globals(shop: Setup) -> None:
    async with shop.open() as archive:
        index = await read_index(archive, (await make_plan(archive, ToLatest())).snapshot)
    old = replace(index, roles=None)
    assert "globals" not in json.loads(old.encode())
    assert Index.decode(old.encode()) == old
    assert Index.decode(index.encode()) == index
    with pytest.raises(UsageError, match="holds no roles"):
        missing_roles(old, ["postgres"])


def test_the_plan_names_the_roles_and_the_hint(roles: None, site: Site, elsewhere: PostgresServer) -> None:
    assert site.run("init").returncode == 0
    assert site.run("snapshot").returncode == 0
    arguments = ("restore", "--into", elsewhere.dsn("restored"), "--latest")
    without = site.run(*arguments, "--dry-run")
    assert "roles missing" in without.stdout
    assert "--globals" in without.stdout
    shown = site.run(*arguments, "--dry-run", "--globals", "--json")
    assert {"clerk", "staff"} <= set(json.loads(shown.stdout)["plan"]["roles"]["create"])
    assert elsewhere.execute("SELECT 1 FROM pg_roles WHERE rolname = 'clerk'") == []
    done = site.run(*arguments, "--globals", "--yes")
    assert "roles left alone postgres" in done.stdout
    assert elsewhere.execute("SELECT 1 FROM pg_roles WHERE rolname = 'clerk'") == [(1,)]
