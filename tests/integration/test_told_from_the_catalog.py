"""What a statement finds when it runs, and would find otherwise at a restore: it comes from the source, or is a loss."""

from __future__ import annotations

from typing import Final

import pytest

from archiver.recovery_plan import read_history
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.test_attacks_source import as_role, give_schema, roles
from tests.integration.test_rows_transactions import server_settings

__all__ = ["roles"]

PARTITIONED: Final = "CREATE TABLE app.par (at timestamptz PRIMARY KEY) PARTITION BY RANGE (at)"
NUMBERED: Final = [
    "CREATE SEQUENCE app.sq",
    "CREATE FUNCTION app.nx() RETURNS int LANGUAGE sql VOLATILE AS $$SELECT nextval('app.sq')::int * 10$$",
    "SELECT app.nx(); CREATE TABLE app.par (id int PRIMARY KEY) PARTITION BY RANGE (id)",
]
PATH: Final = (
    "CREATE FUNCTION app.p(text) RETURNS text LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM set_config('{}', '{}', false); RETURN $1; END $$"
)
TOLD: Final[dict[str, list[str]]] = {
    "a bound of now()": [
        PARTITIONED,
        "CREATE TABLE app.par1 PARTITION OF app.par FOR VALUES FROM (now()) TO (now() + interval '1 day')",
        "INSERT INTO app.par VALUES (now() + interval '1 hour')",
    ],
    "a bound of a literal": [
        PARTITIONED,
        "CREATE TABLE app.par1 PARTITION OF app.par FOR VALUES FROM ('yesterday') TO (E'n\\x6fw')",
    ],
    "a bound of a sequence": [*NUMBERED, "CREATE TABLE app.par1 PARTITION OF app.par FOR VALUES FROM (0) TO (app.nx())"],
    "a bound that is attached": [
        *NUMBERED,
        "CREATE TABLE app.par1 (id int PRIMARY KEY)",
        "ALTER TABLE app.par ATTACH PARTITION app.par1 FOR VALUES FROM (MINVALUE) TO (app.nx())",
    ],
    "a bound in a list": [
        *NUMBERED,
        "DROP TABLE app.par; CREATE TABLE app.par (id int, v text) PARTITION BY LIST (id)",
        "CREATE TABLE app.par1 PARTITION OF app.par FOR VALUES/**/IN (1, app.nx(), NULL)",
    ],
    "a bound in a schema that is made": [
        *NUMBERED,
        "CREATE SCHEMA app2 CREATE TABLE par1 PARTITION OF app.par FOR VALUES FROM (0) TO (app.nx())",
    ],
    "a bound in a text of several": [
        *NUMBERED,
        "CREATE TABLE app.a PARTITION OF app.par FOR VALUES FROM (0) TO (app.nx());"
        "CREATE TABLE app.b PARTITION OF app.par FOR VALUES FROM (1000) TO (1000 + app.nx())",
    ],
    "FROM CURRENT": [
        "SET work_mem = '77MB'; SET search_path = app, \"Some, where\", public; SET timezone = 'Asia/Tokyo'",
        "CREATE FUNCTION app.f(a int = 1) RETURNS int LANGUAGE sql SET work_mem FROM/**/CURRENT"
        " SET search_path FROM CURRENT SET TimeZone FROM current SET lock_timeout = '3s'"
        " BEGIN ATOMIC SELECT 1 FROM (SELECT 1) AS current; END",
        "CREATE PROCEDURE app.g() LANGUAGE sql AS 'SELECT 1'; ALTER PROCEDURE app.g() SET work_mem FROM CURRENT",
    ],
    "abbreviations of time zones": [
        "SET timezone_abbreviations = 'India'",
        "CREATE TABLE app.n (id int PRIMARY KEY, d timestamptz DEFAULT '2026-01-01 10:00 IST')",
    ],
}  # fmt: skip
NAMED: Final[dict[str, list[str]]] = {
    "options of a toast table": [
        "CREATE TABLE app.u WITH (toast.autovacuum_enabled = false) AS SELECT 1 AS a, 'x'::text AS b",
        "CREATE TABLE app.w WITH (fillfactor = 70, toast.vacuum_truncate = off) AS SELECT 1 AS a, 'x'::text AS b",
    ],
    "what is called archiver": [
        "CREATE SERVER archiver FOREIGN DATA WRAPPER dummyfdw; CREATE TABLE app.archiver (id int PRIMARY KEY)",
        "COMMENT ON SERVER archiver IS 'not ours'; CREATE USER MAPPING FOR CURRENT_USER SERVER archiver",
    ],
}
COMPUTED: Final[dict[str, list[str]]] = {
    "rows that say now": [
        "UPDATE app.t SET v = 'now'; INSERT INTO app.t VALUES (5, 'now'), (6, 'today')",
        "ALTER TABLE app.t ALTER v TYPE timestamp USING v::timestamp",
    ],
    "rows of another column that say now": [
        "ALTER TABLE app.t ADD w timestamptz; UPDATE app.t SET v = 'now'",
        "ALTER TABLE app.t ALTER w TYPE timestamp USING v::timestamp",
    ],
    "names that become numbers": [
        "CREATE TABLE app.r (id int PRIMARY KEY, v regclass, w regclass, x regclass)",
        "INSERT INTO app.r VALUES (1, 'app.t', 'app.t', 'app.t')",
        "ALTER TABLE app.r ALTER v TYPE oid, ALTER w TYPE bigint",
        "ALTER TABLE app.r ALTER x TYPE bigint USING x",
    ],
    "names that become numbers, without a rewrite": [
        "CREATE DOMAIN app.d AS regclass",
        "CREATE TABLE app.r (id int, v regclass, w app.d, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE app.r1 PARTITION OF app.r FOR VALUES FROM (0) TO (10)",
        "INSERT INTO app.r VALUES (1, 'app.t', 'app.t')",
        "ALTER TABLE app.r ALTER v TYPE oid",
        "ALTER TABLE app.r ALTER w TYPE oid",
    ],
    "numbers that become names": [
        "CREATE TABLE app.r (id int PRIMARY KEY, v oid)",
        "INSERT INTO app.r VALUES (1, 'app.t'::regclass)",
        "ALTER TABLE app.r ALTER v TYPE regclass",
    ],
    "a default that each partition has another of": [
        "CREATE FUNCTION app.st() RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN clock_timestamp()::text; END $$",
        "CREATE TABLE app.par (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE app.par1 PARTITION OF app.par FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE app.par2 PARTITION OF app.par FOR VALUES FROM (10) TO (20)",
        "INSERT INTO app.par VALUES (1), (11)",
        "ALTER TABLE app.par ADD c text DEFAULT app.st()",
    ],
    "a default of a domain": [
        "CREATE DOMAIN app.d AS timestamp CHECK (VALUE > '1990-01-01')",
        "ALTER TABLE app.t ADD c app.d DEFAULT ('no'||'w')::timestamp",
        "ALTER TABLE app.t ADD d app.d DEFAULT 'now'",
    ],
    "a literal of a moment while a type changes": [
        "ALTER TABLE app.t ALTER id TYPE bigint, ADD c timestamp DEFAULT 'now'",
    ],
}  # fmt: skip
MOMENTS: Final[dict[str, list[str]]] = {
    "escaped": ["CREATE TABLE app.n (id int PRIMARY KEY, d timestamp DEFAULT E'n\\x6fw')"],
    "escaped otherwise": ["CREATE TABLE app.n (id int PRIMARY KEY, d timestamp DEFAULT U&'n!006fw' UESCAPE '!')"],
    "on two lines": ["CREATE TABLE app.n (id int PRIMARY KEY, d timestamp DEFAULT 'no'\n'w')"],
    "with more behind it": ["CREATE TABLE app.n (id int PRIMARY KEY, d timestamp DEFAULT 'now_')"],
    "in a domain": ["CREATE DOMAIN app.d AS timestamp DEFAULT E'tod\\141y'"],
    "of a parameter": ["CREATE FUNCTION app.f(a date DEFAULT 'today') RETURNS date LANGUAGE sql AS 'SELECT a'"],
}
SESSIONS: Final[dict[str, list[str]]] = {
    "read-only while it runs": [
        "CREATE FUNCTION app.ro(text) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM set_config('transaction_read_only', 'on', true); RETURN $1; END $$",
        "CREATE TEMP TABLE t (id int, v text); INSERT INTO pg_temp.t VALUES (1, 'a')",
        "SET search_path = app",
        "BEGIN; SAVEPOINT a; ALTER TABLE t ALTER v TYPE varchar(44) USING app.ro(v); RELEASE a;"
        " ALTER TABLE app.t ADD a int; ALTER TABLE app.t ADD b int; COMMIT",
    ],
    "search_path": [
        "CREATE SCHEMA app2; CREATE TABLE app2.t (id int PRIMARY KEY, v text)",
        PATH.format("search_path", "app2"),
        "SET search_path = app",
        "ALTER TABLE t ALTER v TYPE varchar(77) USING app.p(v)",
    ],
    "TimeZone": [
        PATH.format("TimeZone", "Asia/Tokyo"),
        "SET TimeZone = 'UTC'",
        "ALTER TABLE app.t ALTER v TYPE varchar(40) USING app.p(v), ADD d timestamptz DEFAULT '2026-01-01 10:00'",
    ],
    "while a literal is read": [
        PATH.format("search_path", "app2"),
        "CREATE DOMAIN app.d AS text CHECK (app.p(VALUE) <> ''); CREATE TYPE app.c AS (d app.d)",
        "CREATE SCHEMA app2; CREATE TABLE app.w AS SELECT 1 AS a; CREATE TABLE app2.w AS SELECT 2 AS a",
        "SET search_path = app",
        "CREATE VIEW app.v AS SELECT '(x)'::app.c AS c, a FROM w",
    ],
    "in a function": [
        "CREATE SCHEMA app2; CREATE TABLE app2.t (id int PRIMARY KEY, v text)",
        PATH.format("search_path", "app2"),
        "SET search_path = app",
        "DO $$ BEGIN ALTER TABLE t ALTER v TYPE varchar(77) USING app.p(v); END $$",
    ],
}
LOST: Final = {**dict.fromkeys(MOMENTS, "moment"), **dict.fromkeys(SESSIONS, "session")}


async def losses(source: Setup) -> set[str]:
    async with source.open() as archive:
        history = await read_history(archive)
    return {each.reason for segment in history.changes for each in segment.lost}


@pytest.mark.parametrize("what", [*TOLD, *NAMED, *COMPUTED, *MOMENTS, *SESSIONS])
async def test_a_restore_finds_what_the_source_found_or_a_loss_is_recorded(
    make_setup: MakeSetup, roles: tuple[str, str], what: str
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    with source.connect() as dba:
        dba.execute(f"GRANT CREATE ON DATABASE {dba.info.dbname} TO {owner}".encode())
        dba.execute(
            f"CREATE FOREIGN DATA WRAPPER dummyfdw; GRANT USAGE ON FOREIGN DATA WRAPPER dummyfdw TO {owner}".encode()
        )
    await source.init()
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn:
            for statement in (TOLD | NAMED | COMPUTED | MOMENTS | SESSIONS)[what]:
                conn.execute(statement.encode())
        await source.archived()
    lost = await losses(source)
    assert lost == ({LOST[what]} if what in LOST else set())
    if not lost:
        restored, _ = await source.restore()
        assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


ORDINARY: Final = [
    "CREATE INDEX CONCURRENTLY ON t (v)",
    "CREATE INDEX ON t (lower(v)); CREATE VIEW w AS SELECT * FROM t; CREATE SCHEMA s CREATE TABLE x (i int DEFAULT 1)",
    "BEGIN; SAVEPOINT a; ALTER TABLE t ADD x int; ROLLBACK TO a; ALTER TABLE t ADD x int DEFAULT 1; COMMIT",
    "CREATE TABLE p (i int) PARTITION BY LIST (i); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
    "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY",
    "CREATE MATERIALIZED VIEW m AS SELECT 1 AS a; CREATE UNIQUE INDEX ON m (a); REFRESH MATERIALIZED VIEW CONCURRENTLY m",
    "DO $$ BEGIN FOR i IN 1 .. 3 LOOP EXECUTE 'CREATE TABLE d (i int DEFAULT 1)'; DROP TABLE d; COMMIT; END LOOP; END $$",
    "DO $$ BEGIN FOR i IN 1 .. 3 LOOP BEGIN ALTER TABLE t ADD y int DEFAULT 1; PERFORM 1 / (i / 3);"
    " EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$",
    "SET search_path = s, public; ALTER TABLE t ADD z int; SET ROLE pg_monitor; RESET ROLE; ALTER TABLE t DROP z",
    "CREATE TEMP TABLE e (i int DEFAULT 1 CHECK (i > 0)); ALTER TABLE e ADD j int DEFAULT 2; CREATE INDEX ON e (i)",
    "CREATE EXTENSION pg_trgm; ALTER EXTENSION pg_trgm UPDATE",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'CREATE TABLE q (i int DEFAULT 1); SELECT 1'; SELECT f()",
    "BEGIN ISOLATION LEVEL SERIALIZABLE; ALTER TABLE t ADD u int DEFAULT 1; COMMIT",
    "CREATE TABLE k AS SELECT 1 AS a; SELECT 2 AS a INTO l; CREATE DOMAIN o AS int CHECK (VALUE > 0)",
]


@pytest.mark.parametrize("fixture", ["pg", "pg15"])
async def test_an_ordinary_session_is_no_loss_and_leaves_nothing_in_the_journal(
    request: pytest.FixtureRequest, make_setup: MakeSetup, make_database: MakeDatabase, fixture: str
) -> None:
    source = make_setup(make_database(request.getfixturevalue(fixture)))
    with source.connect() as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    await source.init()
    async with source.daemon():
        await source.archived()
        with source.connect() as conn:
            for statement in ORDINARY:
                conn.execute(statement.encode())
            left = conn.execute("SELECT count(*) FROM archiver.journal WHERE content ~ '^[0-9a-f]{32}$'").fetchone()
        await source.archived()
    assert left == (0,)
    assert await losses(source) == set()


async def test_a_transaction_that_is_streamed_is_no_loss(make_setup: MakeSetup) -> None:
    source = make_setup()
    with source.connect() as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    await source.init()
    async with source.daemon():
        await source.archived()
        with (
            server_settings(source.dsn, logical_decoding_work_mem="64kB"),
            source.connect() as conn,
            conn.transaction(),
        ):
            for name in ("a", "b", "c"):
                conn.execute("SAVEPOINT s")
                conn.execute(f"ALTER TABLE t ADD {name} int DEFAULT 1".encode())
                conn.execute("INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 9000) AS i")
                conn.execute(b"ROLLBACK TO s" if name == "b" else b"RELEASE s; DELETE FROM t")
            conn.execute("CREATE TABLE more (i int DEFAULT 1)")
        await source.archived()
    assert await losses(source) == set()
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


PURE: Final = [
    "ALTER TABLE t ALTER id TYPE bigint",
    "ALTER TABLE t ALTER v TYPE varchar(90)",
    "ALTER TABLE t ALTER v TYPE varchar(9) USING v",
    "ALTER TABLE t ALTER v TYPE integer USING v::integer",
    "ALTER TABLE t ALTER at TYPE timestamp, ALTER n TYPE numeric(20, 2), ALTER f TYPE text",
    "ALTER TABLE t ADD c int DEFAULT 1, ALTER n TYPE float",
]


async def test_what_is_known_to_be_pure_brings_no_rows(make_setup: MakeSetup) -> None:
    source = make_setup()
    with source.connect() as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz, n int, f float)")
        conn.execute("INSERT INTO t VALUES (1, '7', now(), 3, 1.5)")
        await source.init()
        conn.execute("SELECT pg_create_logical_replication_slot('look', 'test_decoding')")
        for statement in PURE:
            conn.execute(statement.encode())
        rows = "SELECT data FROM pg_logical_slot_get_changes('look', NULL, NULL) WHERE data ~ 'kind.text.:.rows'"
        found = conn.execute(rows.encode()).fetchall()
        conn.execute("SELECT pg_drop_replication_slot('look')")
    assert found == []
