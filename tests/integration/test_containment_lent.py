"""What is lent to an owner while his code runs, or to a statement that fails: nothing that he could keep or read with."""

from __future__ import annotations

import psycopg
import pytest

from tests.integration.test_containment import VICTIM, World, world

__all__ = ["world"]


async def test_what_a_key_refers_to_cannot_be_read_by_its_tables_owner(world: World) -> None:
    await world.archive(
        [
            "dba: CREATE SCHEMA vault; CREATE TABLE vault.parent (id int PRIMARY KEY, secret text);"
            "INSERT INTO vault.parent VALUES (1, 'secret'), (2, 'another'); GRANT USAGE ON SCHEMA vault TO {evil};"
            "GRANT REFERENCES ON vault.parent TO {evil}",
            "CREATE TABLE app.loot (v text); ALTER TABLE app.loot REPLICA IDENTITY FULL;"
            "CREATE FUNCTION app.steal() RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
            "  BEGIN INSERT INTO app.loot SELECT p::text FROM vault.parent p; EXCEPTION WHEN OTHERS THEN NULL; END;"
            "  RETURN 1; END $$;"
            "CREATE FUNCTION app.peek(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
            " $$ BEGIN PERFORM app.steal(); RETURN 1; END $$;"
            "CREATE TABLE app.child (id int PRIMARY KEY REFERENCES vault.parent); INSERT INTO app.child VALUES (1);"
            "CREATE INDEX ON app.child (id) WHERE app.peek(1) = 1",
        ],
        ["COMMENT ON TABLE app.child IS 'x'"],
    )
    with psycopg.connect(world.setup.dsn) as conn:
        assert conn.execute("SELECT * FROM app.loot").fetchall() == []
    restored, _ = await world.setup.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT * FROM app.loot").fetchall() == []


async def test_an_owner_plants_nothing_in_a_schema_of_others(world: World) -> None:
    await world.archive(
        [
            "dba: CREATE SCHEMA vault; CREATE TABLE vault.gold (v text PRIMARY KEY); INSERT INTO vault.gold VALUES ('secret');"
            "GRANT SELECT ON vault.gold TO PUBLIC;"
            "CREATE SCHEMA shared; GRANT USAGE ON SCHEMA shared TO {evil};"
            "CREATE TABLE shared.child (id int PRIMARY KEY); INSERT INTO shared.child VALUES (1);"
            "ALTER TABLE shared.child OWNER TO {evil}",
            "CREATE TABLE app.loot (v text); ALTER TABLE app.loot REPLICA IDENTITY FULL;"
            "CREATE FUNCTION app.planted() RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
            "  BEGIN EXECUTE 'CREATE FUNCTION shared.audit() RETURNS int LANGUAGE sql AS ''SELECT 666'''; EXCEPTION WHEN OTHERS THEN NULL; END;"
            "  BEGIN INSERT INTO app.loot SELECT v FROM vault.gold; EXCEPTION WHEN OTHERS THEN NULL; END;"
            "  RETURN 1; END $$;"
            "CREATE FUNCTION app.peek(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
            " $$ BEGIN PERFORM app.planted(); RETURN 1; END $$;"
            "CREATE TABLE app.parent (id int PRIMARY KEY); INSERT INTO app.parent VALUES (1);"
            "CREATE INDEX ON app.parent (id) WHERE app.peek(1) = 1;"
            "ALTER TABLE shared.child ADD FOREIGN KEY (id) REFERENCES app.parent",
        ],
        ["COMMENT ON TABLE app.parent IS 'x'"],
    )
    asked = "SELECT to_regprocedure('shared.audit()')::text, (SELECT count(*) FROM app.loot)"
    with psycopg.connect(world.setup.dsn) as conn:
        assert conn.execute(asked).fetchall() == [(None, 0)]
    restored, _ = await world.setup.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute(asked).fetchall() == [(None, 0)]


GRANTS = {
    "all tables": "GRANT ALL ON ALL TABLES IN SCHEMA shared TO {evil}",
    "all functions": "GRANT ALL ON ALL FUNCTIONS IN SCHEMA shared TO {evil}",
}
HAS = (
    "SELECT has_table_privilege(%(r)s, 'shared.gold', 'SELECT, UPDATE'),"
    " has_function_privilege(%(r)s, 'shared.secret()', 'EXECUTE')"
)


@pytest.mark.parametrize("what", GRANTS)
async def test_a_grant_gives_no_more_than_at_the_source(world: World, what: str) -> None:
    evil = world.evil
    world.dba.execute(VICTIM.format(evil=evil))
    world.dba.execute(f"CREATE SCHEMA shared; GRANT USAGE, CREATE ON SCHEMA shared TO {evil}")
    world.owner.execute(
        "CREATE TABLE shared.mine (id int PRIMARY KEY); CREATE FUNCTION shared.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    )
    await world.setup.init()
    async with world.setup.daemon():
        await world.setup.archived()
        with world.owner.transaction():
            world.owner.execute(GRANTS[what].format(evil=evil))
            world.dba.execute(
                "CREATE TABLE shared.gold (v text PRIMARY KEY); INSERT INTO shared.gold VALUES ('secret');"
                "CREATE FUNCTION shared.secret() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT 1::text';"
                "REVOKE ALL ON FUNCTION shared.secret() FROM PUBLIC"
            )
        await world.setup.archived()
    restored, _ = await world.setup.restore()
    with psycopg.connect(world.setup.dsn) as source, psycopg.connect(restored) as target:
        expected, found = (conn.execute(HAS, {"r": evil}).fetchall() for conn in (source, target))
    assert expected == [(False, False)]
    assert found == expected
