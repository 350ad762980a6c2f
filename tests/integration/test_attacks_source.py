"""What roles of the source may try against archiver there, each as a running attack that must fail.

An outsider may log in and nothing else; an owner owns a schema with a table, and is nothing else.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError, TargetUnreachable
from archiver.lsn import Lsn
from archiver.policy.target import ToLsn, ToName, ToTime
from archiver.postgres import preflight, setup
from archiver.postgres.session import connect
from archiver.recovery_plan import make_plan, read_history
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.integration.test_ddl import BEFORE


@pytest.fixture
def roles(pg: PostgresServer) -> Iterator[tuple[str, str]]:
    """An owner and an outsider."""
    names = [f"{kind}_{secrets.token_hex(4)}" for kind in ("owner", "outsider")]
    for name in names:
        pg.execute(f"CREATE ROLE {name} LOGIN")
    yield names[0], names[1]
    for (database,) in pg.execute("SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'template1'"):
        for name in names:
            pg.execute(f"DROP OWNED BY {name} CASCADE", dbname=str(database))
    for name in names:
        pg.execute(f"DROP ROLE {name}")


@contextmanager
def as_role(dsn: str, role: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(make_conninfo(dsn, user=role), autocommit=True) as conn:
        yield conn


def give_schema(dsn: str, owner: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA app AUTHORIZATION {owner}")
    with as_role(dsn, owner) as conn:
        conn.execute("CREATE TABLE app.t (id int PRIMARY KEY, v text); INSERT INTO app.t VALUES (1, 'a')")


def is_superuser(dsn: str, role: str) -> bool:
    with psycopg.connect(dsn) as conn:
        [(found,)] = conn.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [role]).fetchall()
    return bool(found)


EVIL = """
CREATE FUNCTION app.evil(app.t) RETURNS text LANGUAGE plpgsql AS $$
BEGIN EXECUTE 'ALTER ROLE {owner} SUPERUSER'; RETURN 'x';
EXCEPTION WHEN insufficient_privilege THEN RETURN 'x'; END $$
"""
RISE = """
CREATE FUNCTION app.act() RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE 'ALTER ROLE {owner} SUPERUSER'; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;;
CREATE FUNCTION app.rise(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN PERFORM app.act(); RETURN true; END $$
"""
# Each is run by the owner before; then the owner, or the DBA, changes the table so that its rows must be read.
TRAPS: dict[str, str] = {
    "a cast of the row": EVIL + ";; CREATE CAST (app.t AS text) WITH FUNCTION app.evil(app.t)",
    "an index whose predicate the planner evaluates": RISE + ";; CREATE INDEX ON app.t (id) WHERE app.rise('x')",
    "an index on a function": RISE + ";; CREATE INDEX ON app.t (app.rise(v))",
    "a constraint that the planner looks at": RISE
    + ";; ALTER TABLE app.t ADD CHECK (app.rise('x'));; ALTER ROLE {owner} SET constraint_exclusion = 'on'",
    "an operator in the owner's path": """CREATE FUNCTION app.same(oid, oid) RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN EXECUTE 'ALTER ROLE {owner} SUPERUSER'; RETURN true;
        EXCEPTION WHEN insufficient_privilege THEN RETURN true; END $$;;
        CREATE OPERATOR app.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = app.same)""",
    "an operator class of statistics": RISE + ";; CREATE STATISTICS app.st ON app.rise(v), id FROM app.t",
}
READ = ["ALTER TABLE app.t SET LOGGED", "ALTER TABLE app.t ADD COLUMN r float DEFAULT random()"]


@pytest.mark.parametrize("listed", [False, True], ids=["for all tables", "listed"])
@pytest.mark.parametrize("trap", TRAPS)
async def test_code_of_a_tables_owner_never_runs_with_the_rights_of_archivers_functions(
    make_setup: MakeSetup, roles: tuple[str, str], trap: str, listed: bool
) -> None:
    owner, _ = roles
    source = make_setup()
    if listed:
        with source.connect() as conn:
            conn.execute("CREATE TABLE out (id int PRIMARY KEY)")
        source = make_setup(source.dsn, source={"dsn": source.dsn, "exclude": ["public.out"]})
    give_schema(source.dsn, owner)
    with source.connect() as conn:
        conn.execute("ALTER TABLE app.t SET UNLOGGED")
    await source.init()
    with as_role(source.dsn, owner) as conn:
        for statement in TRAPS[trap].format(owner=owner).split(";;"):
            try:
                conn.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege:
                pytest.skip("the owner may not even set the trap")
        conn.execute("SET search_path = app, pg_catalog")
        for statement in READ:
            conn.execute(statement.encode())
    assert not is_superuser(source.dsn, owner)


@pytest.mark.parametrize("name", ["x pg_temp.y", "(pg_temp_3.y", "pg_temp.y"])
async def test_a_cast_of_a_type_that_is_called_like_a_temporary_one_is_gone_when_it_was_dropped(
    make_setup: MakeSetup, roles: tuple[str, str], name: str
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    with as_role(source.dsn, owner) as conn:
        conn.execute(f'CREATE TYPE app."{name}" AS (a int); CREATE CAST (app."{name}" AS text) WITH INOUT'.encode())
        conn.execute(f'CREATE CAST (text AS app."{name}") WITH INOUT'.encode())
        await source.init()
        async with source.daemon():
            await source.archived()
            conn.execute(f'DROP CAST (app."{name}" AS text); DROP CAST (text AS app."{name}")'.encode())
            await source.archived()
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def test_a_schema_that_somebody_made_before_is_refused_and_nothing_of_it_is_used(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    with source.connect() as conn:
        conn.execute(f"CREATE SCHEMA archiver AUTHORIZATION {owner}")
    with as_role(source.dsn, owner) as conn:
        conn.execute("CREATE FUNCTION archiver.capture_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'")
        conn.execute("CREATE TABLE archiver.mine (id int PRIMARY KEY)")
    with pytest.raises(PostgresError, match=f"function archiver.capture_ddl belongs to {owner}"):
        await source.init()
    async with await connect(source.dsn, purpose="test") as conn:
        with pytest.raises(PostgresError, match=f"belongs to {owner}"):
            await setup.remove_all(conn, "nothing")
    with source.connect() as conn:
        assert conn.execute("SELECT count(*) FROM archiver.mine").fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM pg_event_trigger WHERE evtname ~ '^archiver_'").fetchone() == (0,)


async def test_uninstall_drops_nothing_that_somebody_else_has_there(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    await source.init()
    publication = source.config.require_source().publication
    with source.connect() as conn:
        conn.execute(f"GRANT USAGE, CREATE ON SCHEMA archiver TO {owner}")
        conn.execute(
            f"CREATE TABLE archiver.by_hand (id int PRIMARY KEY); ALTER TABLE archiver.by_hand OWNER TO {owner}"
        )
    async with await connect(source.dsn, purpose="test") as conn:
        with pytest.raises(PostgresError, match=r"relation archiver\.by_hand"):
            await setup.remove_all(conn, publication)
        await conn.execute("ALTER TABLE archiver.by_hand OWNER TO CURRENT_USER")
        assert await setup.remove_all(conn, publication) == ["table archiver.by_hand"]
        await conn.execute("DROP SCHEMA archiver CASCADE")


async def test_nobody_may_call_or_write_what_is_archivers_own(make_setup: MakeSetup, roles: tuple[str, str]) -> None:
    """Not even where default privileges gave it to everybody."""
    owner, outsider = roles
    source = make_setup()
    with source.connect() as conn:
        conn.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON"
                     f" FUNCTIONS TO {outsider}; ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC")  # fmt: skip
    give_schema(source.dsn, owner)
    await source.init()
    with source.connect() as conn:
        functions = conn.execute(
            "SELECT oid::regprocedure::text, prorettype::regtype::text FROM pg_proc"
            " WHERE pronamespace = 'archiver'::regnamespace"
        ).fetchall()
        conn.execute("GRANT USAGE ON SCHEMA archiver TO PUBLIC")  # what an older version did
    assert len(functions) > 20
    for role in roles:
        with as_role(source.dsn, role) as conn:
            for function, result in functions:
                arguments = ", ".join(f"NULL::{each}" for each in function.partition("(")[2][:-1].split(",") if each)
                expected = (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported)
                with pytest.raises(expected):
                    conn.execute(f"SELECT {function.partition('(')[0]}({arguments})".encode())
                assert result
            for statement in ("INSERT INTO archiver.journal VALUES (gen_random_uuid(), 'ddl', '', '', '{}')",
                              "SELECT nextval('archiver.losses')", "DO 'BEGIN LOCK TABLE archiver.journal; END'",
                              "SELECT * FROM archiver.journal", "TRUNCATE archiver.journal",
                              "CREATE TABLE archiver.t ()"):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(statement.encode())


FORGED = [
    ("archiver.restore_point", "repeat(chr(1), 12000000)"),
    ("archiver.restore_point", "'before-release'"),
    ("archiver.rows", """'{"schema": "public", "name": "item", "first": true, "rows": ["(1,x,1)"], "lsn": "0/1"}'"""),
    ("archiver.ddl", "'x'"),
    ("archiver.ddl", """'{"event": "sql_drop", "tag": "DROP TABLE", "role": "postgres", "settings": {}, "schemas": [],
     "objects": [{"type": "table", "identity": "public.item"}]}'"""),
    ("archiver.ddl_lost", "'a password'"),
    ("rows", "'{}'"),
]  # fmt: skip


async def test_messages_that_an_outsider_writes_mean_nothing(make_setup: MakeSetup, roles: tuple[str, str]) -> None:
    _, outsider = roles
    source = make_setup()
    with source.connect() as conn:
        conn.execute(BEFORE)
        await source.init()
        async with source.daemon():
            await source.archived()
            with as_role(source.dsn, outsider) as other:
                for transactional in ("true", "false"):
                    for prefix, content in FORGED:
                        other.execute(
                            f"SELECT pg_logical_emit_message({transactional}, '{prefix}', {content})".encode()
                        )
            conn.execute("UPDATE item SET price = 2 WHERE id < 5")
            await source.archived()
    restored, summary = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""
    assert summary.warnings == []
    async with source.open() as archive:
        history = await read_history(archive)
    assert history.restore_points == []
    assert [each for segment in history.changes for each in segment.lost] == []
    assert len(history.snapshots) == 1


async def test_a_restore_point_cannot_be_named_by_just_anybody_nor_badly(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    _, outsider = roles
    source = make_setup()
    await source.init()
    with as_role(source.dsn, outsider) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("SELECT archiver.restore_point('mine')")
    with source.connect() as conn:
        for name in ("", "x" * 64, "ä" * 32, "a\nb", "\x1b[2J"):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                conn.execute("SELECT archiver.restore_point(%s)", [name])


async def test_two_restore_points_of_one_name_are_an_error_that_lists_both(make_setup: MakeSetup) -> None:
    source = make_setup()
    with source.connect() as conn:
        conn.execute(BEFORE)
        await source.init()
        async with source.daemon():
            await source.archived()
            [(first,)] = conn.execute("SELECT archiver.restore_point('release')::text").fetchall()
            conn.execute("DELETE FROM item WHERE id = 1")
            [(second,)] = conn.execute("SELECT archiver.restore_point('release')::text").fetchall()
            await source.archived()
    async with source.open() as archive:
        with pytest.raises(TargetUnreachable, match="2 restore points 'release'") as refused:
            await make_plan(archive, ToName("release"))
    assert str(Lsn.parse(first)) in str(refused.value)
    assert str(Lsn.parse(second)) in str(refused.value)


def hiding(owner: str) -> Sequence[str]:
    """Statements of an owner who would like his DDL not to be seen."""
    return [
        "SELECT set_config('archiver.script', extract(epoch FROM statement_timestamp()) || ' 9', false)",
        'SET archiver.script = \'9\'; CREATE TABLE app."x on archiver.y" (id int PRIMARY KEY)',
        'CREATE TABLE app."pg_temp.x" (id int PRIMARY KEY); CREATE TABLE app.archiver (id int PRIMARY KEY)',
        'CREATE FUNCTION app.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;'
        ' CREATE TRIGGER "t on archiver.y" BEFORE UPDATE ON app."x on archiver.y" FOR EACH ROW EXECUTE FUNCTION app.f()',
        "DEALLOCATE ALL; PREPARE archiver_count AS SELECT '9999999999.0  73:7 '; CREATE TABLE app.u1 (id int); CREATE TABLE app.u2 (id int)",
        "SET archiver.text = '(0,1)'; SET archiver.nested_text = 'nonsense'; SET archiver.counts = 'x'",
        "CREATE TABLE app.u3 (id int); CREATE TABLE app.u4 (id int)",
        "SET archiver.session = '{}'; SET archiver.rewritten = '(0,1) (0,2) 16400'; CREATE TABLE app.u5 (id int)",
        "ALTER TABLE app.t ADD r float DEFAULT random()",
        "BEGIN; SAVEPOINT a; CREATE TABLE app.u6 (id int); ROLLBACK TO a; CREATE TABLE app.u7 (id int PRIMARY KEY); COMMIT",
        f"ALTER TABLE app.t OWNER TO {owner}; COMMENT ON TABLE app.t IS 'x on archiver.y'",
        "DROP TABLE app.u5; DROP TRIGGER \"t on archiver.y\" ON app.\"x on archiver.y\"",
    ]  # fmt: skip


async def test_an_owner_cannot_hide_his_ddl(make_setup: MakeSetup, roles: tuple[str, str]) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn:
            for statement in hiding(owner):
                conn.execute(statement.encode())
                conn.execute("INSERT INTO app.t (id) SELECT max(id) + 1 FROM app.t")
        await source.archived()
    async with source.open() as archive:
        history = await read_history(archive)
    assert [each for segment in history.changes for each in segment.lost] == []
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def test_a_table_noted_as_rewritten_by_nobody_but_the_server_is_read(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    """Rows of another's table, read at a moment of one's choosing, would take back what others commit meanwhile."""
    owner, _ = roles
    source = make_setup()
    with source.connect() as conn:
        conn.execute(BEFORE)
    give_schema(source.dsn, owner)
    await source.init()
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn, source.connect() as dba:
            [(oid,)] = dba.execute("SELECT 'item'::regclass::oid").fetchall()
            with conn.transaction():
                conn.execute(f"SET archiver.rewritten = '{oid}'".encode())
                conn.execute("CREATE TABLE app.u (id int PRIMARY KEY)")
                dba.execute("INSERT INTO item VALUES (1000, 'meanwhile')")
        await source.archived()
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def test_a_journal_that_cannot_be_written_costs_a_base_snapshot_and_no_statement(make_setup: MakeSetup) -> None:
    """Somebody holds a lock of it: the statement neither fails nor waits, and the loss is counted."""
    source = make_setup()
    with source.connect() as conn:
        conn.execute(BEFORE)
        await source.init()
        async with source.daemon():
            await source.archived()
            with source.connect() as other, other.transaction():
                other.execute("LOCK TABLE archiver.journal IN ACCESS EXCLUSIVE MODE")
                conn.execute("SET statement_timeout = '5s'")
                conn.execute("CREATE TABLE made (id int PRIMARY KEY)")
            conn.execute("INSERT INTO made VALUES (1)")
            await source.archived()
            async with source.open() as archive:
                found = [each for segment in (await read_history(archive)).changes for each in segment.lost]
            assert {each.reason for each in found} == {"uncounted"}
            while True:
                async with source.open() as archive:
                    history = await read_history(archive)
                if history.snapshots[-1].lsn >= found[-1].lsn:
                    break
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def test_capturing_ddl_makes_no_serializable_transaction_fail(make_setup: MakeSetup) -> None:
    """Neither depends on the other: what archiver writes for both must not make it look so."""
    source = make_setup()
    await source.init()
    text = "CREATE TABLE {0}1 (id int); CREATE TABLE {0}2 (id int); CREATE TABLE {0}3 AS SELECT random() AS r"
    with source.connect() as one, source.connect() as two:
        for conn in (one, two):
            conn.execute("SET default_transaction_isolation = serializable")
        for number in range(5):
            with one.transaction(), two.transaction():
                one.execute(text.format(f"a{number}_").encode())
                two.execute(text.format(f"b{number}_").encode())
                one.execute(f"ALTER TABLE a{number}_1 ADD r float DEFAULT random()".encode())
                two.execute(f"ALTER TABLE b{number}_1 ADD r float DEFAULT random()".encode())


async def test_sessions_with_odd_settings_are_captured(make_setup: MakeSetup) -> None:
    source = make_setup()
    with source.connect() as conn:
        conn.execute(BEFORE)
        await source.init()
        async with source.daemon():
            await source.archived()
            for number, setting in enumerate(
                ("backslash_quote = off", "standard_conforming_strings = off", "transform_null_equals = on",
                 "array_nulls = off", "plpgsql.extra_errors = 'all'", "enable_tidscan = off", "search_path = ''",
                 "plpgsql.variable_conflict = use_column", "constraint_exclusion = on", "lc_messages = 'C'")
            ):  # fmt: skip
                conn.execute(f"SET {setting}".encode())
                conn.execute(f"CREATE TABLE public.o{number} (v text DEFAULT E'it''s \\\\ \\'q\\'')".encode()
                             if "backslash_quote" not in setting else
                             f"CREATE TABLE public.o{number} (v text DEFAULT 'it''s')".encode())  # fmt: skip
                conn.execute("RESET ALL")
            await source.archived()
    async with source.open() as archive:
        history = await read_history(archive)
    assert [each for segment in history.changes for each in segment.lost] == []
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def test_check_names_functions_that_somebody_altered_and_init_renews_them(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    await source.init()
    section = source.config.require_source()

    async def found() -> list[str]:
        async with await connect(source.dsn, purpose="test") as conn:
            return [each.detail for each in await preflight.check_ddl(conn, section) if each.name == "functions"]

    assert await found() == []
    with source.connect() as conn:
        conn.execute("CREATE OR REPLACE FUNCTION archiver.capture_ddl() RETURNS event_trigger LANGUAGE plpgsql AS"
                     " 'BEGIN END'; GRANT EXECUTE ON FUNCTION archiver.write TO PUBLIC;"
                     " CREATE FUNCTION archiver.more() RETURNS int LANGUAGE sql AS 'SELECT 1'")  # fmt: skip
    assert await found() == ["functions of archiver are not as init makes them: capture_ddl, more, write"]
    async with await connect(source.dsn, purpose="test") as conn:
        await setup.set_up_publication(conn, section.publication, [], "full")
    assert await found() == []
    with source.connect() as conn:
        conn.execute(f"GRANT CREATE ON SCHEMA archiver TO {owner}; ALTER FUNCTION archiver.write OWNER TO {owner}")
    assert await found() == ["functions of archiver are not as init makes them: write"]
    async with await connect(source.dsn, purpose="test") as conn:
        with pytest.raises(PostgresError, match=f"function archiver.write belongs to {owner}"):
            await setup.set_up_publication(conn, section.publication, [], "full")


OLDER = """
CREATE SCHEMA archiver; GRANT USAGE ON SCHEMA archiver TO PUBLIC;
CREATE TABLE archiver.journal (id int PRIMARY KEY, content text);
CREATE FUNCTION archiver.record_end(message jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION archiver.capture_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_logical_emit_message(true, ''archiver.ddl'', ''x''); END';
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA archiver TO PUBLIC;
CREATE EVENT TRIGGER archiver_capture_end ON ddl_command_end EXECUTE FUNCTION archiver.capture_ddl();
CREATE EVENT TRIGGER archiver_guard_keyless ON ddl_command_end EXECUTE FUNCTION archiver.capture_ddl();
"""


async def test_init_replaces_what_an_older_version_installed(make_setup: MakeSetup) -> None:
    source = make_setup()
    with source.connect() as conn:
        conn.execute(BEFORE)
        conn.execute(OLDER)
        await source.init()
        async with source.daemon():
            await source.archived()
            conn.execute("CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1)")
            await source.archived()
        left = conn.execute(
            "SELECT nspacl IS NULL OR nspacl::text !~ '[{,]=' FROM pg_namespace WHERE nspname = 'archiver'"
        )
        assert left.fetchone() == (True,)
    async with await connect(source.dsn, purpose="test") as session:
        checks = await preflight.check_ddl(session, source.config.require_source())
    assert [check.status for check in checks] == ["ok"]
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


def committed(conn: psycopg.Connection[Any], statement: str, ahead: str | None = None) -> None:
    """In a transaction of its own; `ahead`: with the commit time of a replication origin, so far from now."""
    with conn.transaction():
        if ahead is not None:
            conn.execute("SELECT pg_replication_origin_xact_setup('0/1', clock_timestamp() + %s::interval)", [ahead])
        conn.execute(statement.encode())


async def test_commits_that_bear_another_servers_time_do_not_move_a_target(make_setup: MakeSetup) -> None:
    """Where only they stand around the target, nobody knows; elsewhere they do not matter."""
    source = make_setup(segment={"max_age": "60s"})
    origin = f"elsewhere_{secrets.token_hex(4)}"
    times: list[datetime] = []
    with source.connect() as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY)")
        conn.execute("SELECT pg_replication_origin_create(%s)", [origin])
        try:
            conn.execute("SELECT pg_replication_origin_session_setup(%s)", [origin])
            await source.init()
            async with source.daemon():
                await first_snapshot(source)
                plan = [(1, None), (2, "2 hours"), (3, None), (4, "-2 hours"), (5, None), (6, "1 hour"), (7, None)]
                for number, ahead in plan:
                    with source.connect() as local:
                        committed(conn if ahead else local, f"INSERT INTO t VALUES ({number})", ahead)
                    await asyncio.sleep(0.1)
                    times.append(datetime.now(UTC))
                    await asyncio.sleep(0.1)
        finally:
            conn.execute("SELECT pg_replication_origin_session_reset()")
            conn.execute("SELECT pg_replication_origin_drop(%s)", [origin])
    async with source.open() as archive:
        for number in (1, 3, 5):  # the next local commit is later than the target, the foreign one may be either
            with pytest.raises(TargetUnreachable, match="is not certain") as refused:
                await make_plan(archive, ToTime(times[number - 1]))
            before, after = re.findall(r"[0-9A-F]+/[0-9A-F]+", refused.value.hint or "")
            for position, rows in ((before, number), (after, number + 1)):
                restored, _ = await source.restore(ToLsn(Lsn.parse(position)))
                assert count(restored) == rows
    restored, _ = await source.restore()
    assert count(restored) == 7


def count(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        [(rows,)] = conn.execute("SELECT count(*)::int FROM t").fetchall()
    return int(rows)


async def first_snapshot(source: Setup) -> None:
    async with asyncio.timeout(60):
        while True:
            async with source.open() as archive:
                if (await read_history(archive)).snapshots:
                    return
            await asyncio.sleep(0.2)


async def test_temporary_tables_leave_next_to_nothing_in_the_journal_whatever_text_they_stand_in(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    """Whoever may connect may make them, as often as he likes, in texts as long as he likes."""
    _, outsider = roles
    source = make_setup()
    await source.init()
    with as_role(source.dsn, outsider) as conn:
        conn.execute(
            "CREATE TEMP TABLE a (id int); CREATE TEMP TABLE b AS SELECT 1 AS x; DROP TABLE b -- " + "x" * 1000000
        )
    with source.connect() as conn:
        assert conn.execute(
            "SELECT count(*), pg_table_size('archiver.journal') < 100000 FROM archiver.journal"
        ).fetchone() == (1, True)  # how many of the last text there were


async def test_a_text_that_is_too_long_costs_a_base_snapshot_and_no_memory(make_setup: MakeSetup) -> None:
    source = make_setup()
    await source.init()
    with source.connect() as conn:
        notices: list[str] = []
        conn.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        conn.execute(f"CREATE TABLE made (id int PRIMARY KEY) -- {'x' * (17 << 20)}".encode())
        assert [each for each in notices if "was not captured" in each and "longer than" in each]


async def test_nobody_hides_ddl_by_making_his_transaction_read_only_meanwhile(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    with as_role(source.dsn, owner) as conn:
        conn.execute("CREATE FUNCTION app.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
                     " SET TRANSACTION READ ONLY; RETURN 1; END $$")  # fmt: skip
        with pytest.raises(psycopg.Error, match="read-only"):
            conn.execute("ALTER TABLE app.t ADD COLUMN hidden int DEFAULT app.f()")


async def test_a_base_snapshot_sweeps_the_journal(make_setup: MakeSetup) -> None:
    source = make_setup()
    await source.init()
    with source.connect() as conn:
        conn.execute("CREATE TABLE a (id int); CREATE TABLE b (id int)")
        assert conn.execute("SELECT count(*) FROM archiver.journal").fetchone() == (2,)
        async with source.daemon(), asyncio.timeout(30):
            while conn.execute("SELECT count(*) FROM archiver.journal").fetchone() != (0,):
                await asyncio.sleep(0.2)
