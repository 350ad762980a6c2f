"""What an owner may write so that his DDL is told wrongly: a restore is as the source was, or a loss was recorded."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from archiver.recovery_plan import read_history
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup
from tests.integration.test_attacks_source import as_role, give_schema, roles

__all__ = ["roles"]

TWO = "ALTER TABLE app.t ADD x int; ALTER TABLE app.t ADD y int"
COUNT = """DO $$ DECLARE s text; BEGIN
 SELECT substring(statement FROM E'\\x27([^\\x27]*)\\x27') INTO s FROM pg_prepared_statements WHERE name = 'archiver_count';
 IF s IS NULL THEN RETURN; END IF;
 DEALLOCATE archiver_count;
 EXECUTE format('PREPARE archiver_count AS SELECT %L', regexp_replace(s, ':[0-9,]+ $', ':0 ')); END $$"""

ATTACKS: dict[str, list[str]] = {
    "deallocate all": ["ALTER TABLE app.t ADD x int; DEALLOCATE ALL; ALTER TABLE app.t ADD y int"],
    "count forged": [f"ALTER TABLE app.t ADD x int; {COUNT}; ALTER TABLE app.t ADD y int"],
    "nested count forged": [
        "DO $o$ BEGIN EXECUTE 'ALTER TABLE app.t ADD x int; SELECT set_config(''archiver.counts'', '''', true);"
        " ALTER TABLE app.t ADD y int'; END $o$"
    ],
    "move all in tablespace": [
        "ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE pg_default;" + TWO,
    ],
    "select into of a union": ["SELECT 1 AS a INTO app.s UNION SELECT 2;" + TWO],
    "nested quote and newline": ["""DO $o$ BEGIN EXECUTE E'ALTER TABLE app.t ADD x int --"\\n, ADD y int'; END $o$"""],
    "nested quote and newline, two": [
        """DO $o$ BEGIN EXECUTE E'ALTER TABLE app.t ADD x int; --"\\nALTER TABLE app.t ADD y int'; END $o$"""
    ],
    "name with quote and newline": [
        'CREATE MATERIALIZED VIEW app."m" AS SELECT 1 AS a WITH NO DATA',
        'CREATE MATERIALIZED VIEW app."m""\n" AS SELECT 2 AS a WITH NO DATA',
        """DO $o$ BEGIN EXECUTE format('REFRESH MATERIALIZED VIEW %I.%I', 'app', E'm"\\n'); END $o$""",
    ],
    "sql function, name with newline": [
        "CREATE FUNCTION app.\"a\nb\"() RETURNS void LANGUAGE sql AS 'ALTER TABLE app.t ADD x int'",
        'SELECT app."a\nb"()',
    ],
    "sql function drops itself": [
        "CREATE FUNCTION app.f() RETURNS void LANGUAGE sql AS 'DROP FUNCTION app.f(); ALTER TABLE app.t ADD x int'",
        "SELECT app.f()",
    ],
    "sql function renames itself": [
        "CREATE FUNCTION app.f() RETURNS void LANGUAGE sql AS"
        " 'ALTER FUNCTION app.f() RENAME TO g; ALTER TABLE app.t ADD x int'",
        "SELECT app.f()",
    ],
    "sql function replaces itself": [
        "CREATE FUNCTION app.f() RETURNS void LANGUAGE sql AS $a$ CREATE OR REPLACE FUNCTION app.f() RETURNS void LANGUAGE"
        " sql AS 'SELECT 1; ALTER TABLE app.t ADD y int'; ALTER TABLE app.t ADD x int $a$",
        "SELECT app.f()",
    ],
    "sql function and garbage of the same name": [
        "CREATE FUNCTION app.f() RETURNS void LANGUAGE sql AS 'ALTER TABLE app.t ADD x int'",
        "SET check_function_bodies = off",
        "CREATE FUNCTION app.f(int) RETURNS void LANGUAGE sql AS 'no SQL at all'",
        "SELECT app.f()",
    ],
    "two sql functions of a name": [
        "CREATE FUNCTION app.f() RETURNS void LANGUAGE sql AS 'ALTER TABLE app.t ADD y int'",
        "CREATE FUNCTION app.f(int) RETURNS void LANGUAGE sql AS 'ALTER TABLE app.t ADD x int'",
        "SELECT app.f(1)",
    ],
    "strings set in the text": ["SET standard_conforming_strings = off; COMMENT ON TABLE app.t IS 'a\\nb\\'"],
    "strings set in the text 2": ["SET standard_conforming_strings = off; COMMENT ON TABLE app.t IS 'a\\nb'"],
    "temporary function in a default": [
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE TABLE app.u (id int DEFAULT pg_temp.f())"
    ],
    "temporary type": ["CREATE TEMP TABLE tt (a int); CREATE TABLE app.u (id int, v tt)"],
    "temporary trigger function": [
        "CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        " CREATE TRIGGER x BEFORE INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION pg_temp.f()"
    ],
    "explain analyze": ["EXPLAIN ANALYZE CREATE TABLE app.u AS SELECT 1 AS a", "INSERT INTO app.u VALUES (2)"],
    "explain analyze, and no row": [
        "EXPLAIN ANALYZE CREATE MATERIALIZED VIEW app.m AS SELECT 1 AS a",
        "REFRESH MATERIALIZED VIEW app.m",
    ],
    "explain analyze, and an alter": [
        "EXPLAIN ANALYZE CREATE TABLE app.u AS SELECT 1 AS a WHERE false",
        "ALTER TABLE app.u ADD b int",
    ],
    "a function that runs as a role": [
        "DO $$ BEGIN EXECUTE format('CREATE FUNCTION app.f() RETURNS text LANGUAGE sql SET role = %I"
        " AS ''SELECT current_user''', current_user); END $$",
    ],
    "explain analyze, and it is gone again": [
        "EXPLAIN ANALYZE SELECT 1 AS a INTO app.u",
        "INSERT INTO app.u VALUES (2); DROP TABLE app.u",
    ],
    "many tables and rows of theirs": [
        "CREATE TABLE app.u AS SELECT 1 AS a; SELECT 2 AS a INTO app.v; INSERT INTO app.v VALUES (3)",
        "DO $$ BEGIN FOR i IN 1 .. 120 LOOP EXECUTE format('SELECT %1$s; CREATE TABLE app.x%1$s AS SELECT 1 AS a', i);"
        " END LOOP; END $$",
    ],
    "deep expression": ["CREATE VIEW app.v AS SELECT " + "+".join(["1"] * 3000) + " AS a"],
    "deep parentheses": ["CREATE VIEW app.v AS SELECT " + "(" * 1500 + "1" + ")" * 1500 + " AS a"],
    "deep calls": ["CREATE VIEW app.v AS SELECT " + "abs(" * 1500 + "1" + ")" * 1500 + " AS a"],
    "a rewrite that hides its note": [
        "CREATE FUNCTION app.r() RETURNS float LANGUAGE plpgsql VOLATILE AS $$ BEGIN"
        " PERFORM set_config('archiver.rewritten', '', true); RETURN random(); END $$",
        "ALTER TABLE app.t ADD r float DEFAULT app.r()",
    ],
    "comment of quotes": [
        """DO $o$ BEGIN EXECUTE 'COMMENT ON TABLE app.t IS ''' || repeat(E'x"\\n', 20000) || ''''; END $o$"""
    ],
    "functions of one name": [
        "CREATE FUNCTION app.f() RETURNS void LANGUAGE sql AS 'ALTER TABLE app.t ADD a int'",
        "CREATE FUNCTION pg_temp.f(int) RETURNS void LANGUAGE sql AS 'ALTER TABLE app.t ADD b int'",
        "SELECT app.f(), pg_temp.f(1)",
    ],
    "a function of two bodies in one statement": [
        "CREATE FUNCTION app.f() RETURNS void LANGUAGE sql AS 'ALTER TABLE app.t ADD a int'",
        "DO $$ BEGIN PERFORM app.f(); CREATE OR REPLACE FUNCTION app.f() RETURNS void LANGUAGE sql AS"
        " 'ALTER TABLE app.t ADD b int'; PERFORM app.f(); END $$",
    ],
    "one of two functions drops the other": [
        "CREATE FUNCTION app.f(int) RETURNS void LANGUAGE sql AS 'SELECT; ALTER TABLE app.t ADD y int'",
        "CREATE FUNCTION app.f() RETURNS void LANGUAGE sql AS 'DROP FUNCTION app.f(); ALTER TABLE app.t ADD x int'",
        "SELECT app.f()",
    ],
    "undone with a savepoint that an error led back to": [
        "BEGIN",
        "SAVEPOINT a; ALTER TABLE app.t ADD x int; SAVEPOINT b; SELECT 1/0; ROLLBACK TO a; ALTER TABLE app.t ADD z int",
        "ROLLBACK TO b; COMMIT",
    ],
    "two transactions in one text": ["ALTER TABLE app.t ADD x int; COMMIT; ALTER TABLE app.t ADD y int"],
    "a statement that calls its own text": [
        "CREATE FUNCTION app.again(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF n > 0 THEN EXECUTE format('"
        "COMMENT ON TABLE app.t IS ''%1$s a''; SELECT app.again(%1$s - 1); COMMENT ON TABLE app.t IS ''%1$s b''', n); END IF;"
        " RETURN n; END $$",
        "SELECT app.again(2)",
    ],
}

VOLATILE = "CREATE FUNCTION app.{0} RETURNS text LANGUAGE sql VOLATILE AS 'SELECT random()::text'"
COMPUTED: dict[str, list[str]] = {
    "an operator": [
        VOLATILE.format("f(text, text)"),
        "CREATE OPERATOR app.+ (LEFTARG = text, RIGHTARG = text, FUNCTION = app.f)",
        "ALTER TABLE app.t ALTER v TYPE varchar(90) USING v OPERATOR(app.+) v",
    ],
    "a name that is no word": [
        VOLATILE.format('"a-b"(text)'),
        'ALTER TABLE app.t ALTER v TYPE varchar(90) USING app."a-b"(v)',
    ],
    "a comment between": [
        VOLATILE.format("f(text)"),
        "ALTER TABLE app.t ALTER v TYPE varchar(90) USING app.f/**/(v)",
    ],
    "a cast": [
        "CREATE TYPE app.c AS (a text)",
        "CREATE FUNCTION app.f(app.c) RETURNS text LANGUAGE sql VOLATILE AS 'SELECT random()::text'",
        "CREATE CAST (app.c AS text) WITH FUNCTION app.f(app.c)",
        "ALTER TABLE app.t ALTER v TYPE varchar(90) USING row(v)::app.c::text",
    ],
    "attribute notation": [
        "CREATE FUNCTION app.f(app.t) RETURNS text LANGUAGE sql VOLATILE AS 'SELECT random()::text'",
        "SET search_path = app, public",
        "ALTER TABLE app.t ALTER v TYPE varchar(90) USING t.f",
    ],
    "unicode escapes": [
        VOLATILE.format("f(text)"),
        'ALTER TABLE app.t ALTER v TYPE varchar(90) USING app.U&"\\0066"(v)',
    ],
    "a cast that nobody writes": [
        "CREATE TYPE app.c AS (a text)",
        "CREATE FUNCTION app.f(app.c) RETURNS text LANGUAGE sql VOLATILE AS 'SELECT random()::text'",
        "CREATE CAST (app.c AS text) WITH FUNCTION app.f(app.c) AS ASSIGNMENT",
        "ALTER TABLE app.t ADD c app.c; UPDATE app.t SET c = row('x')",
        "ALTER TABLE app.t ALTER c TYPE text",
    ],
}


LOST: dict[str, str] = {
    **dict.fromkeys(("explain analyze", "explain analyze, and it is gone again", "explain analyze, and no row", "explain analyze, and an alter"), "unannounced"),
    **dict.fromkeys(
        ("sql function, name with newline", "sql function drops itself", "sql function renames itself",
         "sql function replaces itself", "sql function and garbage of the same name", "two sql functions of a name",
         "functions of one name", "one of two functions drops the other"),
        "failed",
    ),
    **dict.fromkeys(
        ("a function that runs as a role", "strings set in the text 2", "undone with a savepoint that an error led back to",
         "two transactions in one text"),
        "untold",
    ),
    **dict.fromkeys(
        ("temporary function in a default", "temporary type", "temporary trigger function"), "temporary"
    ),
}  # fmt: skip
"""What is not certain."""


@pytest.mark.parametrize("attack", [*ATTACKS, *COMPUTED])
async def test_what_an_owner_does_is_told_as_it_was_or_is_a_loss(
    make_setup: MakeSetup, roles: tuple[str, str], attack: str
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn:
            for statement in (ATTACKS | COMPUTED)[attack]:
                with suppress(psycopg.errors.DivisionByZero):
                    conn.execute(statement.encode())
        await source.archived()
    async with source.open() as archive:
        history = await read_history(archive)
    lost = {each.reason for segment in history.changes for each in segment.lost}
    assert lost == ({LOST[attack]} if attack in LOST else set())
    if not lost:
        restored, _ = await source.restore()
        assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""
