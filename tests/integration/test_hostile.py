"""Restores of hostile archives: fixed seeds of `make hostile`, and what they found."""

from __future__ import annotations

import secrets

import psycopg

from archiver.embedded import PostgresServer
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup


async def test_a_deferred_trigger_where_another_role_may_not_look_does_not_stop_that_roles_statements(
    make_setup: MakeSetup, pg: PostgresServer
) -> None:
    setup, token = make_setup(), secrets.token_hex(4)
    one, other = f"one_{token}", f"other_{token}"
    pg.execute(f"CREATE ROLE {one} LOGIN; CREATE ROLE {other} LOGIN")
    with setup.connect() as dba:
        dba.execute(f"CREATE SCHEMA one AUTHORIZATION {one}; CREATE SCHEMA other AUTHORIZATION {other}".encode())
    with psycopg.connect(setup.dsn, user=one, autocommit=True) as owner:
        owner.execute(
            "CREATE TABLE one.t (id int PRIMARY KEY); CREATE FUNCTION one.f() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RETURN NEW; END'; CREATE CONSTRAINT TRIGGER late AFTER INSERT ON one.t"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION one.f();"
            "ALTER TABLE one.t ENABLE ALWAYS TRIGGER late"
        )
    await setup.init()
    async with setup.daemon():
        await setup.archived()
        with psycopg.connect(setup.dsn, user=other, autocommit=True) as owner:
            owner.execute("CREATE TABLE other.t (id int PRIMARY KEY, r float)")
            owner.execute("ALTER TABLE other.t ADD v float DEFAULT random()")
        await setup.archived()
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""
