"""What `source.exclude` means to all who read it: init, check, the event trigger, base snapshots. Real servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from archiver.errors import TargetUnreachable, UsageError
from archiver.policy.target import ToName
from archiver.postgres.preflight import check_before_init, check_source
from archiver.postgres.session import connect
from archiver.postgres.setup import name_restore_point, publishable_tables
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.test_crash import file_regions, with_fields
from tests.integration.test_ddl_traps import new_snapshot

BEFORE = """
CREATE TABLE item (id int PRIMARY KEY, v int); INSERT INTO item VALUES (1, 1), (2, 2);
CREATE TABLE reading (day int PRIMARY KEY, v int) PARTITION BY RANGE (day);
CREATE TABLE reading_a PARTITION OF reading FOR VALUES FROM (0) TO (100); INSERT INTO reading VALUES (1, 1);
CREATE SCHEMA "Odd"; CREATE TABLE "Odd"."a.""b" (id int PRIMARY KEY); INSERT INTO "Odd"."a.""b" VALUES (1);
CREATE UNLOGGED TABLE scratch (id int);
"""
EXCLUDE = ("public.reading", '"Odd"."a.""b"', "public.scratch")
LATER = [
    "CREATE TABLE reading_b PARTITION OF reading FOR VALUES FROM (100) TO (200)",
    "CREATE TABLE reading_c PARTITION OF reading FOR VALUES FROM (200) TO (300) PARTITION BY RANGE (day)",
    "CREATE TABLE reading_c_1 PARTITION OF reading_c FOR VALUES FROM (200) TO (210)",
    "INSERT INTO reading VALUES (2, 2), (101, 3), (201, 4)",
    "ALTER TABLE reading ADD r float DEFAULT random()",  # whose rows would come in the stream
    'TRUNCATE item, "Odd"."a.""b"',
    "INSERT INTO item VALUES (3, 3), (4, 4), (5, 5)",
]
MakeSite = Callable[[Sequence[str]], Setup]


@pytest.fixture
def make_site(make_setup: MakeSetup, make_database: MakeDatabase, tmp_path: Path) -> MakeSite:
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()

    def make(exclude: Sequence[str]) -> Setup:
        dsn = make_database()
        setup = make_setup(dsn, region=file_regions(tmp_path), source={"dsn": dsn, "exclude": exclude})
        with setup.connect() as conn:
            conn.execute(BEFORE)
        return setup

    return make


_PUBLISHED = "SELECT tablename::text FROM pg_publication_tables WHERE schemaname <> 'archiver' ORDER BY 1"


def published(conn: psycopg.Connection[Any]) -> list[str]:
    return [name for (name,) in conn.execute(_PUBLISHED).fetchall()]


def count(dsn: str, table: str) -> int:
    with psycopg.connect(dsn) as conn:
        [(rows,)] = conn.execute(f"SELECT count(*)::int FROM {table}".encode()).fetchall()
    return int(rows)


async def findings(setup: Setup) -> dict[str, tuple[str, str]]:
    async with await connect(setup.dsn, purpose="test") as conn:
        source = setup.config.require_source()
        checks = await check_before_init(conn, source, None) + await check_source(conn, source, None)
    return {check.name: (check.status, check.detail) for check in checks}


async def test_an_excluded_table_stays_out_with_all_its_partitions_and_those_made_later(make_site: MakeSite) -> None:
    setup = make_site(EXCLUDE)
    with setup.connect() as conn:
        conn.execute('ALTER TABLE "Odd"."a.""b" ADD FOREIGN KEY (id) REFERENCES item')  # TRUNCATE sees it, too
        await setup.init()
        assert published(conn) == ["item"]
        async with setup.daemon():
            await setup.archived()
            for statement in LATER:
                conn.execute(statement.encode())
            await setup.archived()
        assert published(conn) == ["item"]
    assert (await findings(setup))["publication"][0] == "ok"
    assert "fail" not in {status for status, _ in (await findings(setup)).values()}
    restored, summary = await setup.restore()
    assert {table: count(restored, table) for table in ("item", "reading", '"Odd"."a.""b"')} == {
        "item": 3, "reading": 0, '"Odd"."a.""b"': 0,
    }  # fmt: skip
    assert any("public.reading_a is not archived" in warning for warning in summary.warnings)


@pytest.mark.parametrize("name", ["public.nothing", "item", "public.seen", ".", "public.item.id"])
async def test_init_and_check_refuse_a_name_that_is_no_tables(make_site: MakeSite, name: str) -> None:
    setup = make_site(())
    with setup.connect() as conn:
        conn.execute("CREATE VIEW seen AS SELECT 1 AS a")
    async with await connect(setup.dsn, purpose="test") as session:
        with pytest.raises(UsageError, match=r"source\.exclude names no table: ") as refused:
            await publishable_tables(session, ["public.item", name])
        assert refused.value.message.endswith(f": {name}")
        source = with_source(setup, exclude=[name]).config.require_source()
        with pytest.raises(UsageError, match="names no table"):
            await check_source(session, source, None)


def with_source(setup: Setup, **fields: Any) -> Setup:
    return with_fields(setup, source=setup.config.require_source().model_dump() | fields)


async def test_base_snapshots_go_on_when_an_excluded_table_is_dropped(make_site: MakeSite) -> None:
    setup = make_site(["public.reading"])
    with setup.connect() as conn, capture_logs() as logs:
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute("DROP TABLE reading; INSERT INTO item VALUES (3, 3)")
            conn.execute("SELECT archiver.record_loss('failed', 'a base snapshot, please')")
            await new_snapshot(setup)
    [warning] = [entry for entry in logs if entry["event"] == "source.exclude names no table"]
    assert (warning["log_level"], warning["names"]) == ("warning", ("public.reading",))
    restored, _ = await setup.restore()
    assert count(restored, "item") == 3


@pytest.mark.parametrize(
    ("excluded", "before", "change", "table"),
    [
        (
            "public.reading",
            "DROP TABLE reading_a; ALTER TABLE item RENAME id TO day",
            "ALTER TABLE reading ATTACH PARTITION item FOR VALUES FROM (0) TO (100)",
            "item",
        ),
        ("public.scratch", "SELECT", "DROP TABLE scratch; ALTER TABLE item RENAME TO scratch", "scratch"),
    ],
    ids=["attached", "renamed"],
)
async def test_a_table_that_becomes_an_excluded_one_leaves_the_archive_and_does_not_come_back_stale(
    make_site: MakeSite, excluded: str, before: str, change: str, table: str
) -> None:
    setup = make_site([excluded])
    with setup.connect() as conn:
        conn.execute(before.encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute(change.encode())
            async with await connect(setup.dsn, purpose="test") as session:
                await name_restore_point(session, "behind")
            conn.execute(f"UPDATE {table} SET v = 7".encode())
            await new_snapshot(setup)
            assert table not in published(conn)
    restored, _ = await setup.restore()
    assert count(restored, table) == 0
    with pytest.raises(TargetUnreachable):
        await setup.restore(ToName("behind"))


async def test_what_is_published_is_in_base_snapshots_though_it_was_excluded_since(make_site: MakeSite) -> None:
    """Otherwise its changes would come without the rows that they are of, and no restore could go on."""
    setup = make_site(())
    await setup.init()
    setup = with_source(setup, exclude=["public.item"])
    with setup.connect() as conn, capture_logs() as logs:
        async with setup.daemon():
            await setup.archived()
            conn.execute("UPDATE item SET v = 7")
            await setup.archived()
    restored, _ = await setup.restore()
    with psycopg.connect(restored) as target:
        assert target.execute("SELECT v FROM item").fetchall() == [(7,), (7,)]
    [warning] = [entry for entry in logs if entry["event"].startswith("excluded tables are still published")]
    assert warning["tables"] == ["public.item"]
    status, detail = (await findings(setup))["publication"]
    assert (status, detail.endswith("carries excluded tables: public.item")) == ("warn", True)
