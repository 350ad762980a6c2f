"""What a role lacks at the target, it is given for a statement only as far as it had it at the source."""

from __future__ import annotations

import secrets

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
from tests.fix_archive import MakeSetup, Setup

# It notices that it is run at a restore, and has its statement fail for want of rights, so that some are lent: a
# sequence tells it the next time that it did.
READS = """
CREATE FUNCTION app.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
  IF session_user <> current_user THEN UPDATE theirs.t SET v = 'by ' || current_user; END IF; RETURN 1; END $$
"""
RAISES = """
CREATE FUNCTION app.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
  IF session_user = current_user THEN RETURN 1; END IF;
  BEGIN UPDATE theirs.t SET v = 'by ' || current_user; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
  BEGIN CREATE FUNCTION theirs.trap() RETURNS int LANGUAGE sql AS 'SELECT 1';
  EXCEPTION WHEN insufficient_privilege THEN NULL; END;
  IF nextval('app.tries') = 1 THEN RAISE insufficient_privilege; END IF; RETURN 1; END $$;
CREATE SEQUENCE app.tries
"""
MINE = "CREATE TABLE theirs.mine (id int PRIMARY KEY); INSERT INTO theirs.mine VALUES (1)"
WAYS = {
    "a schema in the path": ["SET search_path = app, theirs", "ALTER TABLE app.t ADD COLUMN c int DEFAULT app.f()"],
    "a table of his own in it": [
        MINE,
        "dba: REVOKE CREATE ON SCHEMA theirs FROM PUBLIC",
        "ALTER TABLE theirs.mine ADD COLUMN c int DEFAULT app.f()",
    ],
    "a table that he made there while he could": [MINE, "ALTER TABLE theirs.mine ADD COLUMN c int DEFAULT app.f()"],
}
BEFORE = """
CREATE SCHEMA app AUTHORIZATION {evil}; CREATE SCHEMA theirs AUTHORIZATION {victim};
SET ROLE {victim}; CREATE TABLE theirs.t (id int PRIMARY KEY, v text); INSERT INTO theirs.t VALUES (1, 'untouched');
GRANT USAGE, CREATE ON SCHEMA theirs TO PUBLIC; RESET ROLE
"""


async def restored(setup: Setup) -> tuple[str, str]:
    """The database, or why there is none: a restore that stops for want of rights is none that gives them."""
    try:
        return (await setup.restore())[0], ""
    except PostgresError as exc:
        return "", exc.message


@pytest.mark.parametrize("function", [READS, RAISES])
@pytest.mark.parametrize("way", WAYS)
async def test_code_that_asks_for_rights_gets_none_that_its_role_had_not(
    make_setup: MakeSetup, pg: PostgresServer, way: str, function: str
) -> None:
    setup, token = make_setup(), secrets.token_hex(4)
    evil, victim = f"evil_{token}", f"victim_{token}"
    pg.execute(f"CREATE ROLE {evil} LOGIN; CREATE ROLE {victim} LOGIN")
    with setup.connect() as dba, psycopg.connect(setup.dsn, user=evil, autocommit=True) as owner:
        dba.execute(BEFORE.format(evil=evil, victim=victim).encode())
        owner.execute(f"CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1); {function}".encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in WAYS[way]:
                (dba if statement.startswith("dba: ") else owner).execute(statement.removeprefix("dba: ").encode())
            await setup.archived()
    dsn, error = await restored(setup)
    assert bool(dsn) is not bool("permission denied" in error)
    if dsn:
        with psycopg.connect(dsn) as conn:
            assert conn.execute("SELECT v FROM theirs.t").fetchall() == [("untouched",)]
            trap = conn.execute("SELECT to_regprocedure('theirs.trap()') IS NOT NULL").fetchone()
            assert trap == (way != "a table of his own in it",)


async def test_a_membership_that_was_granted_and_taken_since_counts_as_long_as_it_lasted(
    make_setup: MakeSetup, pg: PostgresServer
) -> None:
    setup, token = make_setup(), secrets.token_hex(4)
    member, group = f"member_{token}", f"group_{token}"
    pg.execute(f"CREATE ROLE {member} LOGIN; CREATE ROLE {group}")
    with setup.connect() as dba, psycopg.connect(setup.dsn, user=member, autocommit=True) as conn:
        dba.execute(f"CREATE TABLE shared (id int PRIMARY KEY); ALTER TABLE shared OWNER TO {group}".encode())
        dba.execute(f"CREATE SCHEMA app AUTHORIZATION {group}".encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            dba.execute(f"GRANT {group} TO {member}".encode())
            conn.execute("ALTER TABLE shared ADD COLUMN v int; CREATE TABLE app.made (id int PRIMARY KEY)")
            dba.execute(f"REVOKE {group} FROM {member}".encode())
            await setup.archived()
    restored, summary = await setup.restore()
    assert summary.warnings == []
    with psycopg.connect(restored) as conn:
        found = conn.execute("SELECT tableowner FROM pg_tables WHERE tablename IN ('shared', 'made') ORDER BY 1")
        assert found.fetchall() == [(group,), (member,)]
        assert conn.execute("SELECT pg_has_role(%s, %s, 'MEMBER')", (member, group)).fetchone() == (False,)


async def test_a_role_that_is_gone_gets_what_it_lacks_for_its_first_statement(make_setup: MakeSetup) -> None:
    setup, gone = make_setup(), f"gone_{secrets.token_hex(4)}"
    with setup.connect() as dba:
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            dba.execute(f"CREATE ROLE {gone}; GRANT CREATE ON DATABASE {dba.info.dbname} TO {gone}".encode())
            dba.execute(f"SET ROLE {gone}; CREATE SCHEMA made; CREATE TABLE made.t (id int PRIMARY KEY)".encode())
            dba.execute(
                f"RESET ROLE; ALTER TABLE made.t OWNER TO CURRENT_USER; ALTER SCHEMA made OWNER TO CURRENT_USER; DROP OWNED BY {gone}".encode()
            )
            dba.execute(f"DROP ROLE {gone}".encode())
            await setup.archived()
    restored, _ = await setup.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT to_regclass('made.t')::text").fetchone() == ("made.t",)
        assert conn.execute("SELECT FROM pg_roles WHERE rolname = %s", [gone]).fetchall() == []
