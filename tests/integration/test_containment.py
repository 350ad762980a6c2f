"""Whose code runs during a restore, and with whose rights: an owner's with his own, whatever it tries.

`attack` is what a table's owner may write into a function of his. It runs at the source, where it can do nothing, and
at the target, where the restoring role is a superuser: he must be able to do no more there.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.restore import Summary, run_restore
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import PG_SETTINGS
from tests.integration.whole_chain import take_another_snapshot

VICTIM = """
CREATE TABLE public.victim (v text); INSERT INTO public.victim VALUES ('untouched');
CREATE SCHEMA app AUTHORIZATION {evil}; GRANT USAGE ON SCHEMA public TO PUBLIC;
"""
# What it makes for later has names of our own statements and types: these come after it in the same session.
ATTACK = """
CREATE FUNCTION app.escalate() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
  BEGIN EXECUTE 'ALTER ROLE {evil} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN UPDATE public.victim SET v = 'owned by ' || current_user; EXCEPTION WHEN OTHERS THEN NULL; END;
  RETURN 1; END $$;
CREATE FUNCTION app.attack() RETURNS int LANGUAGE plpgsql AS $$ DECLARE way text; BEGIN
  FOREACH way IN ARRAY ARRAY[
    'SELECT 1', 'RESET ROLE', 'SET ROLE NONE', 'SELECT set_config(''role'', ''none'', false)',
    'SET SESSION AUTHORIZATION DEFAULT', 'RESET SESSION AUTHORIZATION', 'RESET ALL',
    'DECLARE held CURSOR WITH HOLD FOR SELECT app.escalate()',
    'DEALLOCATE "_pg3_0"', 'DEALLOCATE "_pg3_1"',
    'PREPARE "_pg3_0" AS SELECT app.escalate()', 'PREPARE "_pg3_1" AS SELECT app.escalate()',
    'CREATE DOMAIN pg_temp.regclass AS text CHECK (app.escalate() > 0)',
    'CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (app.escalate() > 0)',
    'CREATE DOMAIN pg_temp.oid AS pg_catalog.oid CHECK (app.escalate() > 0)',
    'SET archiver.search_path = app', 'SET search_path = app, pg_catalog',
    'INSERT INTO app.deferred VALUES (1)'
  ] LOOP
    CONTINUE WHEN way ~ '^(SET|RESET|SELECT set)' AND current_database() = '{source}';  -- it would be a loss
    BEGIN EXECUTE way; EXCEPTION WHEN OTHERS THEN NULL; END;
    PERFORM app.escalate();
  END LOOP; RETURN 1; END $$;
CREATE FUNCTION app.pure(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM app.attack(); RETURN 1; END $$;
CREATE FUNCTION app.late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  BEGIN EXECUTE 'DECLARE later CURSOR WITH HOLD FOR SELECT app.escalate()'; EXCEPTION WHEN OTHERS THEN NULL; END;
  PERFORM app.escalate(); RETURN NEW; END $$;
CREATE TABLE app.deferred (id int); ALTER TABLE app.deferred REPLICA IDENTITY FULL;
CREATE FUNCTION app.plant() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO app.deferred VALUES (1); RETURN 1; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON app.deferred DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION app.late();
"""
ROLES = "SELECT to_jsonb(r) - 'oid' FROM pg_roles r WHERE rolname <> 'pg_none' ORDER BY rolname"
TABLES = """
SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384 AND relname <> 'deferred'
   AND relnamespace::regnamespace::text IN ('app', 'more')
"""
MEMBERS = "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members ORDER BY 1, 2"


@dataclass
class World:
    """A source whose user `evil` owns schema app, and sessions of his and of the superuser's."""

    setup: Setup
    evil: str
    owner: psycopg.Connection[Any]
    dba: psycopg.Connection[Any]

    def run(self, statements: Sequence[str]) -> None:
        """Those that begin with `dba: ` are the superuser's."""
        for statement in statements:
            who = self.dba if statement.startswith("dba: ") else self.owner
            text = statement.removeprefix("dba: ").replace("{evil}", self.evil)
            who.execute(text.replace("{source}", self.dba.info.dbname).encode())

    async def archive(self, before: Sequence[str], changes: Sequence[str]) -> None:
        self.dba.execute(VICTIM.format(evil=self.evil).encode())
        self.run([ATTACK, *before])
        await self.setup.init()
        async with self.setup.daemon():
            await self.setup.archived()
            self.run(changes)
            await self.setup.archived()

    async def archive_again(self) -> None:
        """A base snapshot of what there is by now, which runs nothing of his either."""
        await take_another_snapshot(self.setup)
        found = self.dba.execute("SELECT rolsuper, v FROM pg_roles, public.victim WHERE rolname = %s", [self.evil])
        assert found.fetchall() == [(False, "untouched")], "at the source"


@pytest.fixture
def world(make_setup: MakeSetup, pg: PostgresServer) -> Iterator[World]:
    setup, evil = make_setup(), f"evil_{secrets.token_hex(4)}"
    pg.execute(f"CREATE ROLE {evil} LOGIN")
    with psycopg.connect(setup.dsn, user=evil, autocommit=True) as owner, setup.connect() as dba:
        yield World(setup, evil, owner, dba)
    pg.execute(f"ALTER ROLE {evil} NOSUPERUSER")


def rights(dsn: str) -> list[Any]:
    with psycopg.connect(dsn) as conn:
        return [*conn.execute(ROLES).fetchall(), *conn.execute(MEMBERS).fetchall()]


def rows(dsn: str) -> dict[str, list[bytes]]:
    """By COPY, which has no planner: a query would run his code as us."""
    with psycopg.connect(dsn) as conn, conn.cursor() as cur:
        cur.execute(TABLES)
        return {name: sorted(copied(cur, name)) for (name,) in cur.fetchall()}


def copied(cur: psycopg.Cursor[Any], name: str) -> list[bytes]:
    with cur.copy(f"COPY {name} TO STDOUT".encode()) as copy:
        return [bytes(row) for row in copy]


def assert_contained(dsn: str, before: list[Any], *, staying: Sequence[str] = ()) -> None:
    """`staying`: roles that may have been made, if they can do nothing."""
    made = [each for each in rights(dsn) if isinstance(each[0], dict) and each[0]["rolname"] in staying]
    assert [each for each in rights(dsn) if each not in made] == before
    assert not any(
        role[right] for (role,) in made for right in role if isinstance(role[right], bool) and right != "rolinherit"
    )
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT v FROM public.victim").fetchall() == [("untouched",)]
        assert conn.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'archiver'").fetchall() == []


SCENARIOS: dict[str, tuple[list[str], list[str]]] = {
    "a default": (
        ["CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1)"],
        ["ALTER TABLE app.t ADD COLUMN c int DEFAULT app.attack()"],
    ),
    "a default beside a deferred trigger that always fires": (
        [
            "CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1);"
            "ALTER TABLE app.deferred ENABLE ALWAYS TRIGGER late"
        ],
        ["ALTER TABLE app.t ADD COLUMN c int DEFAULT app.plant()"],
    ),
    "a check, while rows are replayed": (
        ["CREATE TABLE app.t (id int PRIMARY KEY, v int CONSTRAINT c CHECK (v > 0 AND app.attack() > 0))",
         "CREATE TABLE app.keyless (v int CHECK (app.attack() > 0)); ALTER TABLE app.keyless REPLICA IDENTITY FULL"],
        ["INSERT INTO app.t SELECT i, 1 FROM generate_series(1, 40) i", "COMMENT ON TABLE app.t IS 'x'",
         "UPDATE app.t SET v = 2 WHERE id < 30; DELETE FROM app.t WHERE id > 35", "INSERT INTO app.keyless VALUES (1), (1), (NULL)",
         "COMMENT ON TABLE app.t IS 'y'; DELETE FROM app.keyless WHERE v = 1; UPDATE app.t SET id = -id WHERE id = 1"],
    ),
    "a check, while a base snapshot is loaded": (
        [r"CREATE TABLE app.t (id int PRIMARY KEY, v text CHECK (app.attack() > 0)); INSERT INTO app.t VALUES (1, NULL), (2, E'\ta\\''\n')",
         "CREATE TABLE app.none (CHECK (app.attack() > 0)); INSERT INTO app.none DEFAULT VALUES; ALTER TABLE app.none REPLICA IDENTITY FULL"],
        ["COMMENT ON TABLE app.t IS 'x'; INSERT INTO app.none DEFAULT VALUES"],
    ),
    "a domain": (
        ["CREATE DOMAIN app.d AS int CHECK (app.attack() > 0); CREATE TYPE app.pair AS (a app.d[], b text)",
         "CREATE TABLE app.t (id int PRIMARY KEY, d app.d, p app.pair, j json)",
         "INSERT INTO app.t VALUES (1, 1, ROW('{1,2}', 'a b'), ' {\"a\": 1} ')"],
        ["INSERT INTO app.t VALUES (2, 1, ROW('{3}', NULL), NULL), (3, NULL, NULL, '[]'); COMMENT ON TABLE app.t IS 'x'",
         "UPDATE app.t SET d = 7"],
    ),
    "an index that the planner looks into": (
        ["CREATE TABLE app.t (id int PRIMARY KEY, v int); CREATE INDEX ON app.t (v) WHERE app.pure(1) = 1;"
         "CREATE INDEX ON app.t (app.pure(v)); INSERT INTO app.t VALUES (1, 1)",
         "CREATE TABLE app.serial (id serial PRIMARY KEY); CREATE INDEX ON app.serial (id) WHERE app.pure(1) = 1"],
        ["INSERT INTO app.t SELECT i, 1 FROM generate_series(2, 40) i; INSERT INTO app.serial DEFAULT VALUES",
         "COMMENT ON TABLE app.t IS 'x'", "UPDATE app.t SET v = 2; DELETE FROM app.t WHERE id > 35"],
    ),
    "what a base snapshot makes": (
        ["CREATE TABLE app.t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id + app.pure(1)) STORED);"
         "INSERT INTO app.t VALUES (1); CREATE TABLE app.parted (id int, v int) PARTITION BY LIST ((app.pure(v)));"
         "CREATE TABLE app.part PARTITION OF app.parted FOR VALUES IN (1); INSERT INTO app.parted VALUES (NULL, 1)",
         "CREATE DOMAIN app.d AS int CHECK (app.attack() > 0); CREATE FUNCTION app.sf(app.d, int) RETURNS app.d LANGUAGE sql AS 'SELECT $1'; CREATE AGGREGATE app.agg (int) (SFUNC = app.sf, STYPE = app.d, INITCOND = '1')",
         "CREATE TABLE app.parent (id int PRIMARY KEY); INSERT INTO app.parent VALUES (1); CREATE INDEX ON app.parent (id) WHERE app.pure(1) = 1;"
         "CREATE TABLE app.child (id int REFERENCES app.parent); INSERT INTO app.child VALUES (1);"
         "ALTER TABLE app.child REPLICA IDENTITY FULL, ADD CHECK (app.attack() > 0); CREATE MATERIALIZED VIEW app.m AS SELECT app.attack()",
         "dba: ALTER TABLE app.parted REPLICA IDENTITY FULL; ALTER TABLE app.part REPLICA IDENTITY FULL"],
        ["COMMENT ON TABLE app.t IS 'x'", "REFRESH MATERIALIZED VIEW app.m"],
    ),
    "a schema whose name looks like a header": (
        ['dba: CREATE SCHEMA "x; Owner: y; Type: TABLE; Schema: archiver" AUTHORIZATION {evil}',
         'CREATE TABLE "x; Owner: y; Type: TABLE; Schema: archiver".t (id int PRIMARY KEY)'],
        ['INSERT INTO "x; Owner: y; Type: TABLE; Schema: archiver".t VALUES (1)'],
    ),
    "casts, while computed rows are written": (
        ["CREATE TABLE app.t (id int PRIMARY KEY, v text); INSERT INTO app.t VALUES (1, E'a,\"b\\\\) '), (2, ''), (3, NULL)",
         "CREATE FUNCTION app.cast_in(text) RETURNS app.t LANGUAGE plpgsql AS $$ BEGIN PERFORM app.attack(); RETURN NULL; END $$",
         "CREATE CAST (text AS app.t) WITH FUNCTION app.cast_in(text)"],
        ["ALTER TABLE app.t ADD r float DEFAULT random()"],
    ),
    "computed rows of a table with a check": (
        ["CREATE TABLE app.t (id int PRIMARY KEY, v text CHECK (app.attack() > 0), g int GENERATED ALWAYS AS (id + 1) STORED);"
         "INSERT INTO app.t VALUES (1, 'x'), (2, NULL)"],
        ["ALTER TABLE app.t ADD r float DEFAULT random()"],
    ),
    "rights that are lent": (
        ["dba: CREATE SCHEMA more; CREATE TABLE more.t (id int PRIMARY KEY); INSERT INTO more.t VALUES (1)",
         "dba: CREATE ROLE other_{evil}; ALTER SCHEMA more OWNER TO other_{evil}; ALTER TABLE more.t OWNER TO other_{evil}"],
        ["dba: GRANT other_{evil} TO {evil}", "ALTER TABLE more.t ADD COLUMN c int DEFAULT app.attack()",
         "CREATE TABLE more.u (id int DEFAULT app.attack())",
         "dba: REVOKE other_{evil} FROM {evil}"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_an_owners_code_gets_no_more_rights_at_the_target(world: World, scenario: str) -> None:
    await world.archive(*SCENARIOS[scenario])
    before = rights(world.setup.dsn)
    for way in ("replayed", "loaded"):
        restored, _ = await world.setup.restore()
        assert_contained(restored, before)
        assert rows(restored) == rows(world.setup.dsn), way
        await world.archive_again()


async def test_a_schema_archiver_that_another_role_made_in_the_target_is_refused(world: World) -> None:
    await world.archive([], [])
    dsn = world.setup.make_database(stem="restored")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA archiver AUTHORIZATION {world.evil}".encode())
        with pytest.raises(PostgresError, match="schema archiver of another role"):
            await restore_into(world.setup, dsn)


# --- Restoring elsewhere -------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[PostgresServer]:
    """Another server, without the roles of the source."""
    with closing(PostgresServer(settings=PG_SETTINGS)) as server:
        server.start()
        server.execute("CREATE DATABASE restored TEMPLATE template0")
        yield server


async def restore_into(setup: Setup, dsn: str) -> Summary:
    async with setup.open() as archive:
        return await run_restore(archive, await make_plan(archive, ToLatest()), dsn)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_nor_does_the_code_of_a_role_that_the_target_lacks(
    world: World, elsewhere: PostgresServer, scenario: str
) -> None:
    await world.archive(*SCENARIOS[scenario])
    dsn = elsewhere.dsn("restored")
    before = rights(dsn)
    await restore_into(world.setup, dsn)
    assert_contained(dsn, before, staying=(world.evil, f"other_{world.evil}"))


OWNED = {
    "a function": "CREATE FUNCTION app.f() RETURNS name LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user'",
    "a view": "CREATE VIEW app.f AS SELECT * FROM public.victim",
    "a rule": "CREATE TABLE app.f (v text); CREATE RULE r AS ON INSERT TO app.f DO ALSO UPDATE public.victim SET v = 'his'",
    "an index": "CREATE TABLE app.f (v int); CREATE INDEX ON app.f (app.pure(v)); ALTER TABLE app.f REPLICA IDENTITY FULL",
    "a materialized view": "CREATE MATERIALIZED VIEW app.f AS SELECT app.attack() WITH NO DATA",
}


@pytest.mark.parametrize("what", OWNED)
async def test_what_runs_with_its_owners_rights_does_not_get_the_restoring_roles(
    world: World, elsewhere: PostgresServer, what: str
) -> None:
    """Without --globals: its owner stays, as a role that can do nothing and cannot log in."""
    world.dba.execute(
        "CREATE ROLE plain; CREATE TABLE nothing_of_code (id int); ALTER TABLE nothing_of_code OWNER TO plain"
    )
    try:
        await world.archive([OWNED[what]], [])
    finally:
        world.dba.execute("DROP OWNED BY plain; DROP ROLE plain")
    dsn = elsewhere.dsn("restored")
    summary = await restore_into(world.setup, dsn)
    catalog = "pg_proc WHERE proname" if what == "a function" else "pg_class WHERE relname"
    owner = "proowner" if what == "a function" else "relowner"
    found = elsewhere.execute(f"SELECT {owner}::regrole::text FROM {catalog} = 'f'", dbname="restored")
    assert found == [(world.evil,)]
    asked = "SELECT rolname, rolcanlogin, rolsuper FROM pg_roles WHERE rolname IN (%s, 'plain')"
    with psycopg.connect(dsn) as conn:
        assert conn.execute(asked, [world.evil]).fetchall() == [(world.evil, False, False)]
    assert any(f"DROP ROLE {world.evil}" in warning for warning in summary.warnings)
    again = elsewhere.dsn("again")
    elsewhere.execute("CREATE DATABASE again TEMPLATE template0")
    async with world.setup.open() as archive:
        plan = await make_plan(archive, ToLatest())
        made = await run_restore(archive, plan, again, with_globals=True)
    assert world.evil in made.roles_created
    assert elsewhere.execute(f"SELECT rolcanlogin FROM pg_roles WHERE rolname = '{world.evil}'") == [(True,)]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_nor_gets_it_the_rights_of_a_restoring_role_that_is_no_superuser(
    world: World, pg: PostgresServer, scenario: str
) -> None:
    """As on a managed service: it owns the target, and may grant the roles that own what is in it."""
    await world.archive(*SCENARIOS[scenario])
    manager = f"manager_{secrets.token_hex(4)}"
    pg.execute(f"CREATE ROLE {manager} LOGIN")
    name = str(conninfo_to_dict(world.setup.make_database(stem="owned"))["dbname"])
    pg.execute(f"ALTER DATABASE {name} OWNER TO {manager}")
    for (role,) in pg.execute(f"SELECT rolname FROM pg_roles WHERE rolname IN ('{world.evil}', 'other_{world.evil}')"):
        pg.execute(f"GRANT {role} TO {manager} WITH ADMIN OPTION")
    before = rights(world.setup.dsn)
    await restore_into(world.setup, pg.dsn(name, user=manager))
    assert_contained(pg.dsn(name), before)
