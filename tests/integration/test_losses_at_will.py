"""What costs everybody a base snapshot, or hides a change from all: nothing that an outsider may do."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
import pytest

from archiver.recovery_plan import read_history
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup
from tests.integration.test_attacks_source import as_role, give_schema, roles

__all__ = ["roles"]

DEEP = """
CREATE FUNCTION pg_temp.r(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
  RETURN pg_temp.r(n + 1) - 1;
EXCEPTION WHEN statement_too_complex THEN EXECUTE 'CREATE TEMP TABLE x' || n || ' (i int)'; RETURN 0; END $$
"""
IN_SCHEMA = (
    "CREATE TEMP TABLE a (i int); DO $$ BEGIN EXECUTE format('{}', pg_my_temp_schema()::regnamespace::text); END $$"
)
LONG = "DO $$ BEGIN EXECUTE '{} /*' || repeat('x', {}::int) || '*/'; END $$"
F = "CREATE FUNCTION pg_temp.f({}) RETURNS void LANGUAGE sql AS $${}$$; "
SIBLINGS = {
    "extension": "CREATE EXTENSION IF NOT EXISTS plpgsql; SELECT 'now', 'atomic'",
    "drop owned": "DROP OWNED BY CURRENT_USER; SELECT 'now', 'atomic'",
    "temporary like": "CREATE TEMP TABLE a (id int); CREATE TEMP TABLE b (LIKE a); SELECT 'now', 'atomic'",
    "temporary as": "CREATE TEMP TABLE a AS SELECT 'now'::text AS b, 'atomic' AS c; SELECT 'now'::text AS b INTO TEMP c",
    "temporary function": "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END; SELECT 'now'",
    "temporary view": "CREATE TEMP VIEW a AS SELECT 'now'::timestamp, 'atomic'",
    "temporary domain": "CREATE DOMAIN pg_temp.d AS timestamp DEFAULT 'now'",
    "temporary aggregate": "CREATE AGGREGATE pg_temp.a (int) (SFUNC = int4pl, STYPE = int); SELECT 'now'",
    "temporary operator": "CREATE OPERATOR pg_temp.+ (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl); SELECT 'now'",
    "temporary collation": "CREATE COLLATION pg_temp.c (locale = 'C'); SELECT 'now'",
    "temporary type": "CREATE TYPE pg_temp.e AS ENUM ('now'); CREATE TYPE pg_temp.r AS RANGE (SUBTYPE = int)",
    "temporary trigger": "CREATE TEMP TABLE a (id int); CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN RETURN NEW; END'; CREATE TRIGGER x BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION pg_temp.f(); SELECT 'now'",
    "temporary statistics": "CREATE TEMP TABLE a (id int, v int); CREATE STATISTICS pg_temp.s ON id, v FROM a; SELECT 'now'",
    "temporary policy": "CREATE TEMP TABLE a (id int); CREATE POLICY p ON a USING ('now'::timestamp < 'today');"
    " ALTER POLICY p ON a RENAME TO q; CREATE RULE r AS ON INSERT TO a DO ALSO SELECT 'now'::timestamp; SELECT 'atomic'",
    "default privileges": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC; SELECT 'now'",
    "large object": "SELECT lo_create(77777); ALTER LARGE OBJECT 77777 OWNER TO CURRENT_USER; SELECT 'now', lo_unlink(77777)",
    "grant": "CREATE TEMP TABLE a (id int); GRANT SELECT ON a TO PUBLIC; REVOKE SELECT ON a FROM PUBLIC; SELECT 'now'",
    "grant function": "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1';"
    " GRANT EXECUTE ON FUNCTION pg_temp.f() TO PUBLIC; REVOKE ALL ON ROUTINE pg_temp.f FROM PUBLIC; SELECT 'now'",
    "grant type": "CREATE TYPE pg_temp.e AS ENUM ('x'); REVOKE USAGE ON TYPE pg_temp.e FROM PUBLIC; GRANT USAGE ON TYPE e TO"
    " PUBLIC; CREATE DOMAIN pg_temp.d AS int; GRANT USAGE ON DOMAIN d TO PUBLIC",
    "grant in schema": IN_SCHEMA.format("GRANT SELECT ON ALL TABLES IN SCHEMA %I TO PUBLIC"),
    "grant functions in schema": IN_SCHEMA.format("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA %I TO PUBLIC"),
    "default privileges in schema": IN_SCHEMA.format(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT ON TABLES TO PUBLIC"
    ),
    "temporary cast": "CREATE TYPE pg_temp.c AS (a int); CREATE CAST (pg_temp.c AS text) WITH INOUT; COMMENT ON CAST"
    " (pg_temp.c AS text) IS 'now'; DROP CAST (pg_temp.c AS text); CREATE CAST (text AS pg_temp.c) WITH INOUT",
    "text search": "CREATE TEXT SEARCH CONFIGURATION pg_temp.c (COPY = simple); SELECT 'now'",
    "prepared text": "PREPARE p AS SELECT 'now'::text AS x; CREATE TEMP TABLE a AS EXECUTE p",
    "deep": DEEP + "; SELECT pg_temp.r(0)",
    "drop owned, long": LONG.format("DROP OWNED BY CURRENT_USER", "17e6"),
    "default privileges, long": LONG.format("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", "17e6"),
    "default privileges in any place": "DO $$ BEGIN EXECUTE 'ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM PUBLIC;"
    " ALTER DEFAULT PRIVILEGES GRANT USAGE ON TYPES TO PUBLIC;' || repeat(E'SELECT 1 \"\\nPL/x\";', 70); END $$",
    "overloaded": F.format("", "DROP OWNED BY CURRENT_USER") + F.format("int", "SELECT 1") + "SELECT pg_temp.f()",
    "overloaded, default privileges": F.format("", "ALTER DEFAULT PRIVILEGES GRANT SELECT ON SEQUENCES TO PUBLIC")
    + F.format("int", "SELECT 1")
    + "SELECT pg_temp.f()",
    "extension, long": LONG.format("CREATE EXTENSION IF NOT EXISTS plpgsql", "17e6"),
    "grant, long": "CREATE TEMP TABLE a (i text); " + LONG.format("GRANT SELECT, INSERT (i) ON a TO PUBLIC", "17e6"),
    "grant of nothing, long": LONG.format("GRANT INSERT ON shown TO PUBLIC", "17e6"),
    "revoke, overloaded": "CREATE TEMP TABLE a (i int); GRANT SELECT ON a TO PUBLIC;"
    + F.format("", "REVOKE ALL ON a FROM PUBLIC")
    + F.format("int", "SELECT 1")
    + "SELECT pg_temp.f()",
    "large object, long": "SELECT lo_create(77778); "
    + LONG.format("GRANT SELECT ON LARGE OBJECT 77778 TO PUBLIC", "17e6")
    + "; "
    + LONG.format("COMMENT ON LARGE OBJECT 77778 IS ''now''", "17e6")
    + "; SELECT lo_unlink(77778)",
    "temporary as that sets": "CREATE TEMP TABLE a AS SELECT set_config('DateStyle', 'German', false)",
}


@pytest.mark.deep
async def test_nothing_that_an_outsider_may_do_is_a_loss(make_setup: MakeSetup, roles: tuple[str, str]) -> None:
    _, outsider = roles
    source = make_setup()
    with source.connect() as dba:
        dba.execute(f"CREATE TABLE shown (id int PRIMARY KEY); GRANT SELECT ON shown TO {outsider}".encode())
    await source.init()
    said: list[tuple[str, str | None]] = []
    async with source.daemon():
        await source.archived()
        for what, text in SIBLINGS.items():
            with as_role(source.dsn, outsider) as conn:
                conn.add_notice_handler(lambda notice, what=what: said.append((what, notice.message_primary)))
                conn.execute(text.encode())
        await source.archived()
    async with source.open() as archive:
        history = await read_history(archive)
    assert [each.reason for segment in history.changes for each in segment.lost] == [], said
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


HUGE = {
    "table": LONG.format("CREATE TEMP TABLE a (i int DEFAULT 1)", "270e6"),
    "path": "SELECT set_config('search_path', repeat('a', 270000000), false);"
    " CREATE TEMP TABLE b (i int DEFAULT 1); CREATE TEMP TABLE c AS SELECT 1; RESET search_path",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", HUGE)
async def test_of_what_leaves_nothing_behind_no_text_is_looked_at(
    make_setup: MakeSetup, roles: tuple[str, str], what: str
) -> None:
    """No pattern can be looked for in it, and no JSON can hold it."""
    _, outsider = roles
    source = make_setup()
    await source.init()
    said: list[str | None] = []
    with as_role(source.dsn, outsider) as conn:
        conn.add_notice_handler(lambda notice: said.append(notice.message_primary))
        conn.execute(HUGE[what].encode())
    assert said == []


async def test_default_privileges_and_what_drop_owned_revokes_are_told_by_the_catalog(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, outsider = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    with source.connect() as dba:
        dba.execute("CREATE TABLE bank (id int PRIMARY KEY)")
        dba.execute(f"GRANT SELECT ON bank TO {owner}, {outsider}".encode())
    await source.init()
    rights = f"""
        ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT ON TABLES TO PUBLIC, {outsider};
        ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT USAGE ON SEQUENCES TO {outsider} WITH GRANT OPTION;
        ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO {outsider};
        ALTER DEFAULT PRIVILEGES REVOKE ALL ON TYPES FROM {owner};
        ALTER DEFAULT PRIVILEGES GRANT CREATE ON SCHEMAS TO {outsider} WITH GRANT OPTION;
        ALTER DEFAULT PRIVILEGES REVOKE GRANT OPTION FOR CREATE ON SCHEMAS FROM {outsider};
        ALTER DEFAULT PRIVILEGES REVOKE INSERT ON TABLES FROM PUBLIC
    """
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn, as_role(source.dsn, outsider) as other, source.connect() as dba:
            conn.execute(rights.encode())
            other.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
            other.execute("SET standard_conforming_strings = off; DROP OWNED BY CURRENT_USER")
            dba.execute(f"GRANT INSERT, UPDATE (id) ON bank TO {outsider} WITH GRANT OPTION".encode())
            other.execute("CREATE TEMP TABLE mine (id int); GRANT INSERT, UPDATE (id) ON bank, mine TO PUBLIC")
        await source.archived()
    async with source.open() as archive:
        history = await read_history(archive)
    assert [each.reason for segment in history.changes for each in segment.lost] == []
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def test_a_grant_on_what_a_temporary_table_does_not_hide_is_told(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, outsider = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn:
            conn.execute(f"GRANT SELECT, INSERT ON app.t TO {outsider}".encode())
            conn.execute("SET search_path = app, pg_temp; CREATE TEMP TABLE t (i int)")
            conn.execute(f"REVOKE INSERT ON t FROM {outsider}".encode())
            conn.execute(f"SET search_path = app; GRANT UPDATE ON t TO {outsider}".encode())  # the temporary one
        await source.archived()
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


# In a nested comment; each tag looks like the beginning of a string.
MANY_TAGS = "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC /* /* */ \\ {} */"


async def test_a_text_of_an_outsiders_does_not_stop_the_daemon(make_setup: MakeSetup, roles: tuple[str, str]) -> None:
    _, outsider = roles
    source = make_setup()
    await source.init()
    with source.connect() as dba:
        dba.execute(f"ALTER DATABASE {dba.info.dbname} SET wal_sender_timeout = '4s'".encode())
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, outsider) as conn:
            conn.execute(MANY_TAGS.format(" ".join(f"$a{i:x}$" for i in range(20_000))).encode())
        await source.archived()  # else the server ends the stream before the text is read, again and again


def fill_the_lock_table(conn: psycopg.Connection[Any]) -> None:
    for step in (100, 1):
        number = 0
        with suppress(psycopg.errors.OutOfMemory):
            while True:
                conn.execute(
                    f"SELECT pg_advisory_lock({step}, i) FROM generate_series({number}, {number + step - 1}) i".encode()
                )
                number += step


async def test_nothing_is_hidden_by_a_full_table_of_locks(make_setup: MakeSetup, roles: tuple[str, str]) -> None:
    owner, outsider = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn, as_role(source.dsn, outsider) as other:
            catalogs = conn.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'"
                " AND has_table_privilege(oid, 'SELECT') ORDER BY oid LIMIT 55"
            ).fetchall()
            with conn.transaction():
                conn.execute("COMMENT ON TABLE app.t IS 'shown'")  # takes all locks that the next one needs
                conn.execute("LOCK TABLE app.t IN ACCESS EXCLUSIVE MODE")
                all_of_them = ", ".join(
                    f"(SELECT 1 FROM pg_catalog.{name} LIMIT 0) c{i}" for i, (name,) in enumerate(catalogs)
                )
                conn.execute(f"SELECT 1 FROM {all_of_them}".encode())  # fills the slots for weak locks
                fill_the_lock_table(other)
                with suppress(psycopg.errors.OutOfMemory):  # to fail would be right, too
                    conn.execute("COMMENT ON TABLE app.t IS 'hidden'")
                other.execute("SELECT pg_advisory_unlock_all()")
        await source.archived()
    async with source.open() as archive:
        history = await read_history(archive)
    if lost := [each.reason for segment in history.changes for each in segment.lost]:
        pytest.skip(f"a loss: {lost}")
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def test_a_temporary_function_of_an_outsider_does_nothing_to_the_dbas_of_its_name(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    _, outsider = roles
    source = make_setup()
    with source.connect() as dba:
        dba.execute("CREATE TABLE t (id int PRIMARY KEY)")
        dba.execute("CREATE FUNCTION migrate() RETURNS void LANGUAGE sql AS 'ALTER TABLE t ADD x int'")
        await source.init()
        async with source.daemon():
            await source.archived()
            with as_role(source.dsn, outsider) as conn:
                conn.execute("SET check_function_bodies = off")
                conn.execute("CREATE FUNCTION pg_temp.migrate() RETURNS void LANGUAGE sql AS 'no SQL at all'")
                dba.execute("SELECT migrate()")
            await source.archived()
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""
