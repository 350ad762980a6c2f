"""While a restore runs an owner's code, he has no right that he lacks at the source; and names are never run."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from archiver.embedded import PostgresServer
from tests.fix_archive import MakeSetup, Setup
from tests.integration.test_crash import file_regions


@dataclass
class World:
    """A source with an administrator and an owner, and whether that one became a superuser of the servers' cluster."""

    setup: Setup
    evil: str
    server: PostgresServer

    def prepare(self, administrator: str, owner: list[str]) -> None:
        with self.setup.connect() as conn:
            conn.execute(administrator.replace("{evil}", self.evil).encode())
            conn.execute(f"CREATE SCHEMA app AUTHORIZATION {self.evil}".encode())
            grant = "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {evil}', current_database()); END $$"
            conn.execute(grant.replace("{evil}", self.evil).encode())
            conn.execute(f"SET ROLE {self.evil}".encode())
            for statement in owner:
                conn.execute(statement.replace("{evil}", self.evil).encode())

    async def restored(self) -> str:
        await self.setup.init()
        async with self.setup.daemon():
            await self.setup.archived()
        assert not self.is_superuser()
        dsn, _ = await self.setup.restore()
        return dsn

    def is_superuser(self) -> bool:
        return self.server.execute(f"SELECT rolsuper FROM pg_roles WHERE rolname = '{self.evil}'") == [(True,)]


@pytest.fixture
def world(make_setup: MakeSetup, tmp_path: Path, pg: PostgresServer) -> Iterator[World]:
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    evil = f"evil_{secrets.token_hex(4)}"
    pg.execute(f"CREATE ROLE {evil} LOGIN")
    yield World(make_setup(region=file_regions(tmp_path)), evil, pg)
    pg.execute(f"ALTER ROLE {evil} NOSUPERUSER")


# --- Names that look like settings of pg_dump's ---------------------------------------------------------

SETTING = "SET default_tablespace = '';SELECT app.f();--"
CALLED = [
    "CREATE FUNCTION app.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
    " BEGIN ALTER ROLE {evil} SUPERUSER; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1; END $$",
    "CREATE TABLE app.t (a int, b int)",
    "GRANT USAGE ON SCHEMA app TO PUBLIC",
]
NAMED = {
    "statistics": f'CREATE STATISTICS app."{SETTING}" ON a, b FROM app.t',
    "a publication": f'CREATE PUBLICATION "{SETTING}" FOR TABLE app.t',
    "a table": 'CREATE TABLE app."SET default_tablespace = x" (a int)',
    "an access method": 'CREATE TABLE app."SET default_table_access_method = x" (a int)',
}


@pytest.mark.parametrize("way", NAMED)
async def test_a_name_is_not_run_as_a_statement_and_stops_no_restore(world: World, way: str) -> None:
    world.prepare("CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)", [*CALLED, NAMED[way]])
    dsn = await world.restored()
    assert not world.is_superuser()
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM other").fetchone() == (1,)


# --- Functions that he may not call ---------------------------------------------------------------------

PROMOTE = """
CREATE SCHEMA secret;
CREATE FUNCTION {where}.promote(who text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  EXECUTE format('ALTER ROLE %I SUPERUSER', who); END $$;
"""
PURE = """
CREATE FUNCTION app.pure(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
  BEGIN PERFORM {where}.promote('{evil}'); EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1; END $$
"""
REVOKED = {
    "a function": ("public", "REVOKE EXECUTE ON FUNCTION public.promote FROM PUBLIC"),
    "a schema": ("public", "REVOKE USAGE ON SCHEMA public FROM PUBLIC"),
    "a schema that nobody was ever given": ("secret", ""),
}
RUN = {
    "a check": "CREATE TABLE app.t (a int CHECK (app.pure(a) = 1)); INSERT INTO app.t VALUES (1)",
    "a generated column": "CREATE TABLE app.t (a int, b int GENERATED ALWAYS AS (app.pure(a)) STORED);"
    "INSERT INTO app.t VALUES (1)",
    "an index": "CREATE TABLE app.t (a int); CREATE INDEX ON app.t (app.pure(a)); INSERT INTO app.t VALUES (1)",
    "columns called like schemas": 'CREATE TABLE app.t (a int, "secret" int, "archiver" int)'
    " PARTITION BY RANGE ((app.pure(1) + a))",
}


@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize("revoked", REVOKED)
async def test_an_owners_code_calls_nothing_that_he_may_not_call_at_the_source(
    world: World, revoked: str, run: str
) -> None:
    where, revoke = REVOKED[revoked]
    administrator = (PROMOTE + revoke).replace("{where}", where)
    world.prepare(administrator, [PURE.replace("{where}", where), RUN[run]])
    await world.restored()
    assert not world.is_superuser()


# --- Rows that he may not see ---------------------------------------------------------------------------

HIDDEN = """
CREATE TABLE docs (whose text, body text); INSERT INTO docs VALUES ('another', 'secret');
ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON docs USING (whose = current_user);
GRANT SELECT ON docs TO PUBLIC;
"""
STEAL = [
    "CREATE TABLE app.loot (body text)",
    "CREATE FUNCTION app.steal() RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
    " BEGIN INSERT INTO app.loot SELECT body FROM public.docs; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1; END $$",
    "CREATE FUNCTION app.pure(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
    " $$ BEGIN PERFORM app.steal(); RETURN 1; END $$",
    "CREATE TABLE app.parent (id int PRIMARY KEY); CREATE TABLE app.child (a int REFERENCES app.parent)",
    "CREATE INDEX ON app.child (a) WHERE app.pure(1) = a",
    "INSERT INTO app.parent VALUES (1); INSERT INTO app.child VALUES (1)",
]


async def test_policies_hide_from_an_owners_code_what_they_hide_at_the_source(world: World) -> None:
    world.prepare(HIDDEN, STEAL)
    dsn = await world.restored()
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT * FROM app.loot").fetchall() == []
        assert conn.execute("SELECT * FROM docs").fetchall() == [("another", "secret")]
