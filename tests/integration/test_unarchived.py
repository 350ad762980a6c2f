"""Tables that nobody archives: their rows come back as old as the base snapshot, and everyone is told before."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psycopg
import pytest

from archiver.cli.restore import unarchived
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan, read_history
from archiver.snapshots import read_index
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_cli import Site
from tests.fix_drill import Drilled
from tests.fix_servers import MakeDatabase
from tests.integration.test_crash import file_regions, with_fields

BEFORE = """
CREATE TABLE item (id int PRIMARY KEY); CREATE TABLE keyless (id int, v text);
INSERT INTO item SELECT generate_series(1, 10); INSERT INTO keyless SELECT g, 'old' FROM generate_series(1, 5) g;
"""


@pytest.fixture
def setup(make_setup: MakeSetup, tmp_path: Path) -> Setup:
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms"})
    with setup.connect() as conn:
        conn.execute(BEFORE)
    return setup


def rows(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query.encode()).fetchall()


def test_a_plan_and_a_drill_say_which_tables_are_not_archived(site: Site, make_database: MakeDatabase) -> None:
    site.execute(BEFORE)
    assert site.run("init", "--keyless", "exclude").returncode == 0
    with site.started("run"):
        site.wait_until(lambda: json.loads(site.run("info", "--json").stdout)["snapshots"], 90)
        site.execute("UPDATE keyless SET v = 'new'; INSERT INTO item VALUES (11)")
    assert "NOT ARCHIVED     public.keyless" in site.run("info").stdout
    into = make_database()
    shown = site.run("restore", "--latest", "--into", into, "--dry-run")
    assert "NOT ARCHIVED     public.keyless: rows as old as the base snapshot, or none" in shown.stdout
    restored = site.run("restore", "--latest", "--into", into, "--yes", "--json")
    facts = json.loads(restored.stdout)
    assert (restored.returncode, facts["plan"]["unarchived_tables"]) == (0, ["public.keyless"])
    [warning] = [each for each in facts["result"]["warnings"] if "keyless" in each]
    assert warning.startswith("table public.keyless is not archived: its rows are those of ")
    assert rows(into, "SELECT count(*), min(v), max(v) FROM keyless") == [(5, "old", "old")]
    assert site.run("drill").returncode == 7
    site.replace("[source]\n", '[source]\nexclude = ["public.keyless"]\n')
    assert site.run("snapshot").returncode == 0
    assert site.run("drill").returncode == 0
    assert "NOT ARCHIVED" not in site.run("info").stdout


async def test_the_log_counts_tables_that_came_after_the_base_snapshot(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archiver.table_watch.TABLES_SECONDS", 0.2)
    await setup.init(keyless="exclude")
    with setup.connect() as conn:
        async with setup.daemon():
            await setup.archived()
            conn.execute("CREATE TABLE late (id int); INSERT INTO late VALUES (1)")
            async with setup.open() as archive, asyncio.timeout(30):
                while (await read_history(archive)).changes[-1].unarchived != 2:
                    conn.execute("INSERT INTO item SELECT max(id) + 1 FROM item")
                    await asyncio.sleep(0.2)
    async with setup.open() as archive:
        plan = await make_plan(archive, ToLatest())
        named = unarchived(await read_index(archive, plan.snapshot), plan)
    assert named == ["public.keyless", "1 that came after the base snapshot"]


DDL = {
    "it takes them": ("ALTER TABLE keyless ADD more int DEFAULT 7", "its rows are those of"),
    "another type": ("ALTER TABLE keyless ALTER v TYPE int USING 1", "does not take those"),
    "a column is gone": ("ALTER TABLE keyless DROP v", "does not take those"),
    "a check": ("DELETE FROM keyless WHERE id > 1; ALTER TABLE keyless ADD CHECK (id < 2)", "does not take those"),
    "a unique index": ("UPDATE keyless SET v = id; CREATE UNIQUE INDEX ON keyless (v)", "does not take those"),
    "a rename": ("ALTER TABLE keyless RENAME TO renamed", "its rows are those of"),
    "it is gone": ("DROP TABLE keyless", "it was dropped"),
    "another in its place": ("DROP TABLE keyless; CREATE TABLE keyless (id int, v text)", "it was dropped"),
    "a trigger": (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER t BEFORE INSERT ON keyless FOR EACH ROW EXECUTE FUNCTION f();"
        "ALTER TABLE keyless ENABLE ALWAYS TRIGGER t",
        "its rows are those of",
    ),
}


@pytest.mark.parametrize("name", DDL)
async def test_no_statement_of_the_stream_meets_rows_that_are_old(setup: Setup, name: str) -> None:
    change, told = DDL[name]
    await setup.init(keyless="exclude")
    with setup.connect() as conn:
        async with setup.daemon():
            await setup.archived()
            conn.execute(change.encode())
            conn.execute("INSERT INTO item VALUES (11)")
            await setup.archived()
    restored, summary = await setup.restore()
    assert difference(pg_dump(restored, "--schema-only"), pg_dump(setup.dsn, "--schema-only")) == ""
    assert rows(restored, "SELECT count(*) FROM item") == [(11,)]
    [warning] = [each for each in summary.warnings if each.startswith("table public.keyless is not archived")]
    assert told in warning


async def test_a_drill_fails_for_a_table_that_nobody_archives_until_it_is_excluded(
    setup: Setup, tmp_path: Path
) -> None:
    await setup.init(keyless="exclude")
    drilled = Drilled(setup, tmp_path)
    async with setup.daemon():
        await setup.archived()
        await drilled.snapshot()
        record = await drilled.drill()
        assert [(check.name, check.found) for check in record.failed] == [
            ("tables whose changes are not archived", "public.keyless")
        ]
        source = setup.config.require_source().model_dump() | {"exclude": ["public.keyless"]}
        excluding = Drilled(with_fields(setup, source=source), tmp_path)
        await excluding.snapshot()
        await excluding.snapshot()
        assert (await excluding.drill()).failed == []
