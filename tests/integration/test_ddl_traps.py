"""The traps of DDL replay, one test each: statements that mean something else, or nothing, when they are just repeated."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.errors import TargetUnreachable
from archiver.lsn import Lsn
from archiver.policy.target import ToLatest, ToLsn
from archiver.postgres.ddl_replay import DdlReplay
from archiver.postgres.triggers import ROWS_LIMIT
from archiver.recovery_plan import make_plan, read_history
from archiver.restore import run_restore
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.test_ddl import BEFORE, POINT, check

SETTINGS = {
    "search_path": [
        "CREATE SCHEMA a; CREATE SCHEMA b; SET search_path = b, a, public",
        "CREATE TABLE t (id int PRIMARY KEY)",
        "SET LOCAL search_path = a; CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 2)",
        "CREATE VIEW v AS SELECT * FROM t",
        "RESET search_path",
    ],
    "dates": [
        "SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Tokyo'; SET IntervalStyle = 'sql_standard'",
        "CREATE TABLE t (id int PRIMARY KEY, d date DEFAULT '01/02/2026', z timestamptz DEFAULT '2026-01-01 00:00',"
        " both_below_zero interval DEFAULT '-1 2:03')",
        "INSERT INTO t VALUES (1)",
        "ALTER TABLE t ADD e text DEFAULT date '03/04/2026', ADD i interval DEFAULT '-1 2:03'",
        "ALTER TABLE t ALTER e TYPE date USING e::date, ALTER z TYPE timestamp",
    ],
    "strings": [
        "SET standard_conforming_strings = off; SET escape_string_warning = off",
        r"CREATE TABLE t (id int PRIMARY KEY, v text DEFAULT 'a\'b;\\'); COMMENT ON TABLE t IS 'c\\d'",
        r"ALTER TABLE t ADD w text DEFAULT '\\x', ADD z text DEFAULT E'\\z'; INSERT INTO t VALUES (1)",
    ],
    "bodies": [
        "SET check_function_bodies = off",
        "CREATE FUNCTION broken() RETURNS int LANGUAGE sql AS 'SELECT nothing FROM nowhere'",
    ],
    "access method": [
        "CREATE ACCESS METHOD heap_2 TYPE TABLE HANDLER heap_tableam_handler",
        "SET default_table_access_method = heap_2",
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u AS SELECT 1 AS a",
        "CREATE TABLE v USING heap AS SELECT 2 AS a",
    ],
}


@pytest.mark.parametrize("settings", SETTINGS)
async def test_a_statement_means_what_its_session_made_of_it(make_setup: MakeSetup, settings: str) -> None:
    assert await check(make_setup(), SETTINGS[settings]) == []


async def test_tablespaces_are_left_behind(make_setup: MakeSetup, pg: PostgresServer) -> None:
    with psycopg.connect(pg.dsn(), autocommit=True) as conn:
        conn.execute("SET allow_in_place_tablespaces = on")
        conn.execute("CREATE TABLESPACE elsewhere LOCATION ''")
    statements = [
        "CREATE TABLE t (id int PRIMARY KEY USING INDEX TABLESPACE elsewhere, v int) TABLESPACE elsewhere",
        "CREATE INDEX i ON t (v) TABLESPACE elsewhere; ALTER TABLE t SET TABLESPACE pg_default",
        "SET default_tablespace = elsewhere; CREATE TABLE u AS SELECT 1 AS a; CREATE TABLE w (a int PRIMARY KEY)",
    ]
    setup = make_setup()
    assert await check(setup, statements) == []
    restored, _ = await setup.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT relname FROM pg_class WHERE reltablespace <> 0 AND oid > 16384").fetchall() == []


async def test_objects_belong_to_the_role_that_made_them(make_setup: MakeSetup, pg: PostgresServer) -> None:
    pg.execute("CREATE ROLE maker; CREATE ROLE looker")
    statements = [
        'GRANT CREATE, USAGE ON SCHEMA public TO maker; SET ROLE maker; SET search_path = "$user", public',
        "CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1)",
        "CREATE TABLE filled AS SELECT 1 AS a",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO looker; CREATE TABLE granted (id int PRIMARY KEY)",
        "ALTER TABLE made ADD t timestamptz DEFAULT now(), ADD who text DEFAULT current_user",
        "INSERT INTO made VALUES (2)",
        "RESET ROLE; CREATE SCHEMA maker AUTHORIZATION maker; SET ROLE maker",
        "CREATE TABLE own (id int PRIMARY KEY)",
        "RESET ROLE; RESET search_path; ALTER TABLE granted OWNER TO looker; GRANT INSERT ON made TO looker",
        POINT,
        "DROP OWNED BY maker",
    ]
    assert await check(make_setup(), statements) == []


async def test_a_default_that_was_computed_once_keeps_its_value(make_setup: MakeSetup) -> None:
    statements = [
        "ALTER TABLE item ADD COLUMN at timestamptz NOT NULL DEFAULT now(), ADD n int DEFAULT 5",
        "INSERT INTO item (id) VALUES (100)",
        "ALTER TABLE item ADD COLUMN who text DEFAULT current_user || '''s', ADD s text DEFAULT 'now'",
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1)",
        "ALTER TABLE p ADD at timestamptz DEFAULT now(), ADD arr text[] DEFAULT ARRAY['a', session_user]",
        "INSERT INTO p VALUES (2)",
    ]
    assert await check(make_setup(), statements) == []


async def test_rewrites_that_cannot_be_repeated_bring_their_rows(make_setup: MakeSetup) -> None:
    statements = [
        "ALTER TABLE item ADD r float DEFAULT random()",
        POINT,
        "ALTER TABLE item ADD u uuid DEFAULT gen_random_uuid() UNIQUE, ADD serial serial",
        "INSERT INTO item (id) VALUES (100)",
        "ALTER TABLE note ADD id int GENERATED ALWAYS AS IDENTITY, ADD twice text GENERATED ALWAYS AS (line || line) STORED",
        "ALTER TABLE item ALTER name TYPE text USING name || random()",
        "UPDATE item SET price = 2 WHERE id < 10; DELETE FROM note WHERE id = 1",
        "CREATE FUNCTION opinion(text) RETURNS text LANGUAGE sql STABLE AS 'SELECT $1 || now()'",
        "ALTER TABLE item ALTER name TYPE text USING opinion(name)",
        "CREATE UNLOGGED TABLE quick (id int PRIMARY KEY, v text); INSERT INTO quick VALUES (1, 'x'), (2, NULL)",
        "ALTER TABLE quick SET LOGGED; INSERT INTO quick VALUES (3, 'y')",
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1), (2)",
        "ALTER TABLE p ADD r float DEFAULT random()",
        "INSERT INTO p VALUES (3)",
    ]
    assert await check(make_setup(), statements) == []


async def test_what_runs_concurrently_is_replayed_in_its_transaction(make_setup: MakeSetup) -> None:
    statements = [
        "CREATE INDEX CONCURRENTLY by_name ON item (name) WHERE price > 0",
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS by_id ON item (id, name)",
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (1), (11)",
        "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY",
        "INSERT INTO p1 VALUES (2)",
        POINT,
        "REINDEX TABLE CONCURRENTLY item",
        "DROP INDEX CONCURRENTLY by_name",
        "CREATE MATERIALIZED VIEW m AS SELECT id FROM item; CREATE UNIQUE INDEX ON m (id)",
        "DELETE FROM item WHERE id < 10",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
    ]
    assert await check(make_setup(), statements) == []


async def test_a_new_enum_value_can_be_used_at_once(make_setup: MakeSetup) -> None:
    statements = [
        "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE felt (id int PRIMARY KEY, mood mood)",
        "INSERT INTO felt VALUES (1, 'sad')",
        "ALTER TYPE mood ADD VALUE 'ok' BEFORE 'sad'",
        "INSERT INTO felt VALUES (2, 'ok')",
        "BEGIN; ALTER TYPE mood ADD VALUE 'happy'; INSERT INTO felt VALUES (3, 'ok'); COMMIT",
        "UPDATE felt SET mood = 'happy'; ALTER TYPE mood RENAME VALUE 'sad' TO 'down'",
        "INSERT INTO felt VALUES (4, 'down')",
    ]
    assert await check(make_setup(), statements) == []


async def test_ddl_of_a_session_that_silences_triggers_is_captured(make_setup: MakeSetup) -> None:
    statements = [
        "SET session_replication_role = replica",
        "CREATE TABLE quiet (id int); INSERT INTO quiet VALUES (1)",
        "ALTER TABLE quiet ADD v int DEFAULT 3; UPDATE quiet SET id = 2",
    ]
    assert await check(make_setup(), statements) == []


async def test_a_materialized_view_shows_the_moment_of_its_refresh(make_setup: MakeSetup) -> None:
    statements = [
        "CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n, sum(price) AS price FROM item",
        "DELETE FROM item WHERE id = 1",
        POINT,
        "REFRESH MATERIALIZED VIEW total",
        "DELETE FROM item WHERE id = 2",
        "CREATE MATERIALIZED VIEW later AS SELECT 1 AS a WITH NO DATA",
    ]
    setup = make_setup()
    await check(setup, statements)
    restored, _ = await setup.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT n FROM total").fetchone() == (49,)


async def test_a_trigger_that_fails_costs_a_base_snapshot_and_not_the_statement(make_setup: MakeSetup) -> None:
    setup = make_setup()
    notices: list[str] = []
    with setup.connect() as conn:
        conn.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        conn.execute(BEFORE)
        await setup.init()
        conn.execute(
            "CREATE OR REPLACE FUNCTION archiver.record_end(tag text, origin text) RETURNS void LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE 'broken'; END $$"
        )
        async with setup.daemon():
            await setup.archived()
            conn.execute("CREATE TABLE made (id int PRIMARY KEY)")
            lost = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            conn.execute("INSERT INTO made VALUES (1)")
            await new_snapshot(setup)
    assert notices[-1] == "archiver: CREATE TABLE was not captured, a base snapshot follows: broken"
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""
    assert lost is not None
    async with setup.open() as archive:
        with pytest.raises(TargetUnreachable, match="not captured: it could not be written down"):
            await make_plan(archive, ToLsn(Lsn.parse(lost[0])))


async def new_snapshot(setup: Setup) -> None:
    """Wait for the second base snapshot, and for all up to now."""
    async with setup.open() as archive, asyncio.timeout(30):
        while len((await read_history(archive)).snapshots) < 2:
            await asyncio.sleep(0.2)
    await setup.archived()


async def test_a_large_rewrite_costs_a_base_snapshot(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(BEFORE)
        await setup.init()
        [(body,)] = conn.execute("SELECT pg_get_functiondef('archiver.record_rows'::regproc)").fetchall()
        conn.execute(body.replace(str(ROWS_LIMIT), "10"))
        async with setup.daemon():
            await setup.archived()
            conn.execute("ALTER TABLE item ADD r float DEFAULT random()")
            await new_snapshot(setup)
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""
    async with setup.open() as archive:
        [lost] = [each for segment in (await read_history(archive)).changes for each in segment.lost]
    assert lost.reason == "rows"


async def test_triggers_and_rules_that_always_fire_do_not_fire_twice(make_setup: MakeSetup) -> None:
    before = """
        CREATE TABLE item (id int PRIMARY KEY, name text); CREATE TABLE log (line text);
        CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO public.log VALUES (TG_NAME); RETURN NEW; END $$;
        CREATE TRIGGER always AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION log();
        ALTER TABLE item ENABLE ALWAYS TRIGGER always;
        CREATE TRIGGER mirrored AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION log();
        ALTER TABLE item ENABLE REPLICA TRIGGER mirrored;
        CREATE RULE ruled AS ON DELETE TO item DO ALSO INSERT INTO log VALUES ('rule');
        ALTER TABLE item ENABLE ALWAYS RULE ruled"""
    statements = [
        "INSERT INTO item VALUES (1), (2); UPDATE item SET name = 'x'; DELETE FROM item WHERE id = 1",
        POINT,
        "ALTER TABLE item DISABLE TRIGGER always",
        "ALTER TABLE item RENAME TO thing; INSERT INTO thing VALUES (3)",
        "ALTER TRIGGER mirrored ON thing RENAME TO echoed; UPDATE thing SET name = 'y'",
    ]
    assert await check(make_setup(), statements, before) == []


LISTED = [
    "CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1)",
    "BEGIN; CREATE TABLE filled AS SELECT id FROM item; INSERT INTO filled VALUES (1000); COMMIT",
    "DELETE FROM filled WHERE id = 3; UPDATE made SET id = 2",
    "CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10); INSERT INTO parted VALUES (1)",
    "ALTER TABLE made DROP CONSTRAINT made_pkey; UPDATE made SET id = 3",
]


async def test_with_listed_tables_new_ones_are_archived_from_their_first_row(
    make_setup: MakeSetup, make_database: MakeDatabase
) -> None:
    before = BEFORE + 'CREATE TABLE "left" (id int PRIMARY KEY); CREATE TABLE "odd\'""\\name" ();'
    dsn = make_database()
    setup = make_setup(dsn, source={"dsn": dsn, "exclude": ["public.left", "public.odd'\"\\name"]})
    statements = [*LISTED, "SET ROLE pg_database_owner; CREATE TABLE by_another (id int PRIMARY KEY); RESET ROLE"]
    await check(setup, [*statements, "INSERT INTO by_another VALUES (1)"], before)
    with setup.connect() as conn:
        found = conn.execute(
            "SELECT count(*) FROM pg_publication_tables WHERE tablename IN ('left', 'made')"
        ).fetchone()
    assert found == (1,)


async def test_with_keyless_tables_excluded_the_triggers_keep_to_that(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(BEFORE)
        await setup.init("exclude")
        async with setup.daemon():
            await setup.archived()
            conn.execute("CREATE TABLE loose (a int); INSERT INTO loose VALUES (1); UPDATE loose SET a = 2")
            conn.execute("CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1)")
            conn.execute("ALTER TABLE note ADD id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY")
            conn.execute("INSERT INTO note VALUES ('c')")
            conn.execute("ALTER TABLE made DROP CONSTRAINT made_pkey; UPDATE made SET id = 2")
            await new_snapshot(setup)
    restored, _ = await setup.restore()
    with psycopg.connect(restored) as conn, setup.connect() as source:
        for table in ("item", "note"):
            query = f"SELECT t::text FROM {table} t ORDER BY 1"
            assert conn.execute(query).fetchall() == source.execute(query).fetchall()
        # As old as the base snapshot, which a restore tells.
        assert conn.execute("SELECT (SELECT count(*) FROM loose), (SELECT count(*) FROM made)").fetchone() == (1, 1)


async def test_ddl_in_large_streamed_transactions_with_parts_rolled_back(make_setup: MakeSetup) -> None:
    setup = make_setup(segment={"max_age": "300ms", "max_bytes": "256KiB"})
    fill = "INSERT INTO big SELECT i, 'row ' || i FROM generate_series({}, {}) i;"
    statements = [
        f"BEGIN; CREATE TABLE big (id int PRIMARY KEY, v text); {fill.format(1, 9000)}"
        f" SAVEPOINT a; ALTER TABLE big RENAME v TO w; {fill.format(9001, 20000)} DROP TABLE note; ROLLBACK TO a;"
        f" SAVEPOINT b; ALTER TABLE big ADD at timestamptz DEFAULT now(); {fill.format(30001, 33000)} RELEASE b;"
        " CREATE TABLE copied AS SELECT *, random() AS r FROM big; UPDATE copied SET v = 'x' WHERE id < 50;"
        " ALTER TABLE big ADD r float DEFAULT random(); DELETE FROM big WHERE id % 3 = 0; COMMIT",
        f"BEGIN; ALTER TABLE big ADD gone int; {fill.format(40001, 60000)} ROLLBACK",
        "INSERT INTO big (id) VALUES (0)",
    ]
    with setup.connect() as conn:
        conn.execute("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'")
        conn.execute("SELECT pg_reload_conf()")
        try:
            assert await check(setup, statements) == []
        finally:
            conn.execute("ALTER SYSTEM RESET logical_decoding_work_mem")
            conn.execute("SELECT pg_reload_conf()")


async def test_an_interrupted_restore_gives_silenced_triggers_back(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (
        BEFORE
        + """
        CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO public.note VALUES (TG_NAME); RETURN NEW; END $$;
        CREATE TRIGGER always AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION log();
        ALTER TABLE item ENABLE ALWAYS TRIGGER always;"""
    )
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(before)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for number in range(6):
                conn.execute(f"ALTER TABLE item ADD c{number} int; INSERT INTO item (id) VALUES (10{number})")
            await setup.archived()
    monkeypatch.setattr("archiver.postgres.ddl_replay.MAX_STATEMENTS", 2)
    target = setup.make_database(stem="restored")
    async with setup.open() as archive:
        plan = await make_plan(archive, ToLatest())
        with monkeypatch.context() as broken:
            broken.setattr(DdlReplay, "_replay_statement", failing_after(4, DdlReplay._replay_statement))
            with pytest.raises(RuntimeError, match="killed"):
                await run_restore(archive, plan, target)
        summary = await run_restore(archive, plan, target)
    assert summary.resumed
    assert difference(pg_dump(target), pg_dump(setup.dsn)) == ""


def failing_after(calls: int, method: Any) -> Any:
    count = 0

    async def fail(*args: Any) -> None:
        nonlocal count
        count += 1
        if count > calls:
            raise RuntimeError("killed")
        await method(*args)

    return fail
