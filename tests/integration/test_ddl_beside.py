"""DDL beside open transactions: what waits for no lock may come, in the order of commits, before what ran before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from archiver.errors import IntegrityError, PostgresError
from archiver.policy.target import ToLatest
from archiver.postgres.ddl_replay import DdlReplay
from archiver.recovery_plan import make_plan
from archiver.restore import run_restore
from tests.dumps import difference, pg_dump
from tests.fix_archive import Setup
from tests.integration.test_ddl_traps import failing_after

MakeSetup = Callable[..., Setup]

SWAPPED = """
CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('ok'); CREATE FUNCTION app.one() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE app.item (id int PRIMARY KEY, note text); INSERT INTO app.item VALUES (1, 'a'), (2, 'b');
CREATE TABLE app.quiet (id int PRIMARY KEY);
CREATE SCHEMA new; CREATE TYPE new.mood AS ENUM ('great');
CREATE TABLE new.item (id int PRIMARY KEY, note text); INSERT INTO new.item VALUES (1, 'c');
CREATE TABLE new.quiet (id int PRIMARY KEY);
"""
SWAP = "ALTER SCHEMA app RENAME TO old; ALTER SCHEMA new RENAME TO app"


async def test_a_schema_is_exchanged_for_another_one_under_open_transactions(make_setup: MakeSetup) -> None:
    """Their rows go where they went, also into a table that is written for the first time; their DDL too."""
    setup = make_setup()
    with setup.connect() as conn, setup.connect() as rows, setup.connect() as ddl:
        conn.execute(SWAPPED)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            rows.execute("BEGIN; INSERT INTO app.item VALUES (3, 'd'); UPDATE app.item SET note = 'e' WHERE id = 1")
            ddl.execute("BEGIN; INSERT INTO app.quiet VALUES (1); CREATE TABLE app.made (id int, mood app.mood)")
            ddl.execute("CREATE TABLE app.filled AS SELECT app.one() AS one; DROP FUNCTION app.one")
            ddl.execute("ALTER TABLE app.quiet ADD r float DEFAULT random()")
            conn.execute(SWAP.encode())
            conn.execute("INSERT INTO app.item VALUES (3, 'f'); DELETE FROM app.item WHERE id = 1")
            rows.execute("UPDATE old.item SET note = 'g' WHERE id = 2; COMMIT")
            ddl.execute("INSERT INTO old.made VALUES (1, 'ok'); COMMIT; CREATE TABLE app.last (mood app.mood)")
            await setup.archived()
    restored, summary = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""
    assert summary.warnings == []


async def test_what_a_transaction_did_not_see_renamed_has_its_old_name_for_it(make_setup: MakeSetup) -> None:
    """Also where its statement ran after the renaming, and before that was committed."""
    setup = make_setup()
    with setup.connect() as conn, setup.connect() as other:
        conn.execute(SWAPPED)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            other.execute("BEGIN; CREATE TABLE app.early (id int)")
            conn.execute("BEGIN; ALTER SCHEMA app RENAME TO old")
            conn.execute("ALTER SCHEMA new RENAME TO app; CREATE TABLE app.inner (id int)")
            other.execute("CREATE TABLE app.made (mood app.mood); INSERT INTO app.made VALUES ('ok')")
            conn.execute("COMMIT")
            other.execute("CREATE TABLE app.newest (mood app.mood); INSERT INTO app.newest VALUES ('great'); COMMIT")
            await setup.archived()
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""


BESIDE = {
    "renamed and dropped": "ALTER FUNCTION one() RENAME TO one_old; DROP FUNCTION one_old()",
    "renamed and made anew": "ALTER FUNCTION one() RENAME TO one_old; "
    "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 2'",
    "a schema exchanged and dropped": "ALTER SCHEMA app RENAME TO old; CREATE SCHEMA app; CREATE TABLE app.t (id int);"
    " DROP SCHEMA old CASCADE",
    "a label and its type": "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'; ALTER TYPE mood RENAME TO feeling",
}


@pytest.mark.parametrize("beside", BESIDE)
async def test_unrelated_ddl_of_an_open_transaction_is_not_concerned(make_setup: MakeSetup, beside: str) -> None:
    setup = make_setup()
    with setup.connect() as conn, setup.connect() as other:
        conn.execute("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE SCHEMA app")
        conn.execute("CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE felt (id int PRIMARY KEY, mood mood)")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            other.execute("BEGIN; INSERT INTO felt VALUES (1, 'ok'); CREATE TABLE unrelated (id int)")
            conn.execute(BESIDE[beside].encode())
            other.execute("INSERT INTO unrelated VALUES (1); COMMIT")
            await setup.archived()
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""


async def test_ddl_that_means_what_cannot_be_called_so_again_stops_the_restore(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn, setup.connect() as other:
        conn.execute("CREATE TYPE mood AS ENUM ('ok')")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            other.execute("BEGIN; CREATE TABLE felt (mood mood)")
            conn.execute("ALTER TYPE mood RENAME TO feeling; CREATE TYPE mood AS ENUM ('great')")
            other.execute("COMMIT")
            await setup.archived()
    with pytest.raises(PostgresError, match="what was called mood was renamed since") as caught:
        await setup.restore()
    assert "DDL at" in (caught.value.where or "")
    assert caught.value.hint


async def test_a_type_is_renamed_while_a_transaction_uses_it_and_the_restore_is_interrupted(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup()
    with setup.connect() as conn, setup.connect() as other:
        conn.execute("CREATE TYPE mood AS ENUM ('ok', 'sad')")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            other.execute("BEGIN; CREATE TABLE felt (id int PRIMARY KEY, mood mood DEFAULT 'sad')")
            conn.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'so'")
            conn.execute("ALTER TYPE mood RENAME TO feeling")
            other.execute("INSERT INTO felt VALUES (1); COMMIT")
            await setup.archived()
    target = setup.make_database(stem="restored")
    async with setup.open() as archive:
        plan = await make_plan(archive, ToLatest())
        with monkeypatch.context() as broken:
            broken.setattr(DdlReplay, "_replay_statement", failing_after(2, DdlReplay._replay_statement))
            with pytest.raises(RuntimeError, match="killed"):
                await run_restore(archive, plan, target)
        assert (await run_restore(archive, plan, target)).resumed
    assert difference(pg_dump(target), pg_dump(setup.dsn)) == ""


async def test_a_label_of_an_enum_is_renamed_while_transactions_write_it(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn, setup.connect() as few, setup.connect() as many:
        for session in (conn, few, many):
            session.execute("SET search_path = feelings, feelings_now")
        conn.execute("CREATE SCHEMA feelings; CREATE TYPE mood AS ENUM ('ok', 'sad')")
        conn.execute("CREATE TABLE felt (id int PRIMARY KEY, moods mood[])")
        conn.execute("CREATE TABLE loose (mood mood); ALTER TABLE loose REPLICA IDENTITY FULL")
        conn.execute("INSERT INTO loose VALUES ('sad')")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            few.execute("BEGIN; INSERT INTO felt VALUES (1, '{sad,ok}'), (2, '{ok}'); DELETE FROM loose")
            many.execute("BEGIN; INSERT INTO felt SELECT i, '{sad}' FROM generate_series(10, 99) i")
            conn.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'so'")
            few.execute("INSERT INTO felt VALUES (3, '{so}')")
            conn.execute("ALTER TYPE mood RENAME VALUE 'so' TO 'blue'; ALTER SCHEMA feelings RENAME TO feelings_now")
            few.execute("UPDATE felt SET moods = moods || 'blue'::mood; COMMIT")
            many.execute("INSERT INTO felt VALUES (4, '{blue,ok}'); COMMIT; INSERT INTO felt VALUES (5, '{blue}')")
            await setup.archived()
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""


async def test_rows_are_never_written_into_another_table_of_the_same_name(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing tells the table's OID, as with triggers of an earlier version."""
    setup = make_setup()
    with setup.connect() as conn, setup.connect() as rows:
        conn.execute(SWAPPED)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute("CREATE TABLE app.late (id int PRIMARY KEY); CREATE TABLE new.late (id int PRIMARY KEY)")
            conn.execute("INSERT INTO new.late VALUES (1)")
            rows.execute("BEGIN; INSERT INTO app.late VALUES (2)")
            conn.execute(SWAP.encode())
            rows.execute("COMMIT")
            await setup.archived()
    with monkeypatch.context() as earlier:
        earlier.setattr("archiver.format.ddl.tables_of", lambda _event: {})
        with pytest.raises(IntegrityError, match=r"rows of app\.late are of another table"):
            await setup.restore()
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""
