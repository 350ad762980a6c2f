"""Drills on real archives: what is proven, what is found, what is recorded, and that nothing of the copy is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from archiver.config import DrillSection
from archiver.drill import DrillPlan, plan_drill, read_record, require_passed, run_drill, store_record
from archiver.drill_copy import DisposableServer, GivenDatabase, OwnDatabase, find_server
from archiver.errors import DrillFailed, PostgresError, StoreError
from archiver.format.drill import Record
from archiver.format.manifest import Drill
from archiver.policy.target import ToLatest, ToLsn
from archiver.verify import verify
from tests.fix_archive import MakeSetup, Setup
from tests.fix_drill import Drilled, make_drilled
from tests.fix_servers import MakeDatabase


async def newest_drill(setup: Setup) -> tuple[Drill, Record]:
    async with setup.open() as archive:
        entries = [signed.entry async for signed in archive.log.scan()]
        entry = next(entry for entry in reversed(entries) if isinstance(entry, Drill))
        return entry, await read_record(archive, entry)


def tampering(statement: str) -> Callable[[str], Awaitable[None]]:
    async def tamper(dsn: str) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute(statement.encode())

    return tamper


async def test_a_drill_proves_one_base_snapshot_by_the_next(pair: Drilled) -> None:
    record = await pair.drill()
    assert record.failed == [], record.error
    assert record.verdict == "passed"
    assert record.snapshot_lsn < record.target_lsn == record.compared_lsn
    assert record.transactions_replayed > 0
    checks = {check.name: check for check in record.checks}
    assert checks["table public.plain"].found.startswith("12 rows, digest ")
    assert checks["sequence public.customer_id_seq"].found == "550"
    assert checks["constraints that are not validated"].passed  # one is NOT VALID at the source too
    assert checks["schema"].found == checks["schema"].expected
    assert "destruction of the copy" in checks
    assert [phase.name for phase in record.phases][:3] == ["plan", "index", "server"]
    assert record.restored.destroyed
    entry, stored = await newest_drill(pair.setup)
    assert stored == record
    assert (entry.verdict, entry.checks, entry.failed_checks) == ("passed", len(record.checks), 0)
    async with pair.setup.open() as archive:
        assert (await verify(archive, read_data=True)).ok


async def test_a_record_says_who_what_and_with_which_keys(pair: Drilled) -> None:
    record = await pair.drill()
    assert "@" in record.by
    assert record.source_version // 10000 == (record.restored.server_version or 0) // 10000
    assert len(record.keks) == 1
    assert {key[:9] for key in record.data_keys} == {"changes-2", "snapshots"}
    async with pair.setup.open() as archive:
        log = [signed async for signed in archive.log.scan()]
    assert (log[-2].seq, log[-2].hash) == (record.head_seq, record.head_hash)
    recovery = sum(phase.duration.total_seconds() for phase in record.phases if phase.purpose == "recovery")
    assert record.recovery_time == pytest.approx(recovery)


KINDS = """
CREATE TABLE kind (id int PRIMARY KEY); INSERT INTO kind VALUES (1);
ALTER TABLE customer ADD kind int DEFAULT 1 REFERENCES kind;
"""


async def test_a_foreign_key_to_rows_that_are_not_archived_is_a_deviation_and_no_failure(
    make_setup: MakeSetup, make_database: MakeDatabase, tmp_path: Path
) -> None:
    dsn = make_database()
    source = {"dsn": dsn, "exclude": ["public.kind"]}
    excluding = await make_drilled(partial(make_setup, dsn), tmp_path, snapshots=2, more=KINDS, source=source)
    record = await excluding.drill()
    assert record.failed == [], record.error
    assert any(text.startswith("FK CONSTRAINT public.customer customer_kind_fkey") for text in record.deviations)


async def test_a_foreign_key_that_rows_violate_at_the_source_fails_the_drill(pair: Drilled) -> None:
    with pair.setup.connect() as conn:
        conn.execute("SET session_replication_role = replica; DELETE FROM customer WHERE id = 2")
    await pair.snapshot()
    record = await pair.drill(target=ToLatest())
    assert [(check.name, check.found) for check in record.failed] == [
        ("constraints that are not validated", "public.invoice invoice_customer_fkey")
    ]


async def test_a_row_without_its_parent_is_found_although_the_constraint_says_that_it_is_valid(
    pair: Drilled, make_database: MakeDatabase
) -> None:
    orphan = tampering("SET session_replication_role = replica; DELETE FROM customer WHERE id = 2")
    record = await pair.drill(GivenDatabase(make_database()), target=ToLatest(), tamper=orphan)
    assert [(check.name, check.found) for check in record.failed] == [
        ("foreign keys that rows violate", "public.invoice invoice_customer_fkey")
    ]


PAIR = """
CREATE SCHEMA "a.b"; CREATE SCHEMA a;
CREATE TABLE "a.b".c (id int PRIMARY KEY, v text); CREATE TABLE a."b.c" (LIKE "a.b".c INCLUDING ALL);
CREATE SEQUENCE "a.b".s; CREATE SEQUENCE a."b.s"; SELECT setval('"a.b".s', 10), setval('a."b.s"', 10);
INSERT INTO "a.b".c VALUES (1, 'x'); INSERT INTO a."b.c" VALUES (1, 'x'), (2, 'y');
ALTER TABLE "a.b".c ADD CONSTRAINT loose CHECK (id > 0) NOT VALID;
"""


@pytest.mark.parametrize(
    ("statement", "failing"),
    [
        ("SELECT 1", []),
        ("UPDATE \"a.b\".c SET v = 'another'", ["table a.b.c"]),
        ("UPDATE a.\"b.c\" SET v = 'another'", ["table a.b.c"]),
        ("SELECT setval('\"a.b\".s', 1)", ["sequence a.b.s"]),
        ("SELECT setval('a.\"b.s\"', 1)", ["sequence a.b.s"]),
        (
            'ALTER TABLE a."b.c" ADD CONSTRAINT loose CHECK (id > 0) NOT VALID',
            ["schema", "constraints that are not validated"],
        ),
    ],
)
async def test_tables_whose_names_read_alike_are_told_apart(
    make_setup: MakeSetup, make_database: MakeDatabase, tmp_path: Path, statement: str, failing: list[str]
) -> None:
    drilled = await make_drilled(make_setup, tmp_path, snapshots=2, more=PAIR)
    record = await drilled.drill(GivenDatabase(make_database()), tamper=tampering(statement))
    assert [check.name for check in record.failed] == failing


@pytest.mark.parametrize(
    ("statement", "failing"),
    [
        ("UPDATE invoice SET note = 'Paid' WHERE id = 3", ["table public.invoice"]),
        ("DELETE FROM plain WHERE v = 'q'", ["table public.plain"]),
        ("ALTER TABLE plain ADD COLUMN more int", ["table public.plain", "schema"]),
        ("CREATE TABLE stranger AS SELECT 1 AS id", ["tables beside these", "schema"]),
        ("CREATE INDEX ON invoice (note)", ["schema"]),
        ("SELECT setval('customer_id_seq', 400)", ["sequence public.customer_id_seq"]),
        (
            "ALTER TABLE plain ADD CONSTRAINT loose CHECK (v <> '') NOT VALID",
            ["schema", "constraints that are not validated"],
        ),
    ],
)
async def test_whatever_differs_in_the_copy_fails_the_drill_and_is_recorded(
    pair: Drilled, make_database: MakeDatabase, statement: str, failing: list[str]
) -> None:
    record = await pair.drill(GivenDatabase(make_database()), tamper=tampering(statement))
    assert [check.name for check in record.failed] == failing
    entry, stored = await newest_drill(pair.setup)
    assert (entry.verdict, entry.failed_checks, stored.failed) == ("failed", len(failing), record.failed)
    with pytest.raises(DrillFailed) as raised:
        require_passed(stored)
    assert raised.value.exit_code == 7


async def test_a_single_base_snapshot_is_restored_to_the_latest_state_and_counted(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    drilled = await make_drilled(make_setup, tmp_path, snapshots=1)
    settings = DrillSection(query="SELECT count(*) FROM public.plain", expect="12")
    record = await drilled.drill(settings=settings)
    assert record.verdict == "passed"
    assert record.compared_lsn is None
    assert "there are no two base snapshots that prove each other: the latest state is restored" in record.deviations
    checks = {check.name: check for check in record.checks}
    assert checks["table public.plain"].found == "12 rows, 10 in the base snapshot"
    assert checks["query: SELECT count(*) FROM public.plain"].found == "12"
    wrong = await drilled.drill(settings=settings.model_copy(update={"expect": "13"}))
    assert [(check.expected, check.found) for check in wrong.failed] == [("13", "12")]


async def test_a_drill_with_a_target_of_its_own_goes_there(pair: Drilled) -> None:
    record = await pair.drill(target=ToLatest())
    assert record.verdict == "passed"
    assert {check.name: check.found for check in record.checks}["table public.plain"].startswith("0 rows, 12 in")


async def test_a_target_that_is_a_base_snapshot_is_compared_with_itself(
    make_setup: MakeSetup, tmp_path: Path, make_database: MakeDatabase
) -> None:
    drilled = await make_drilled(make_setup, tmp_path, snapshots=1)
    async with drilled.setup.open() as archive:
        snapshot = archive.log.state.snapshot or (await plan_drill(archive)).plan.snapshot
        plan = await plan_drill(archive, ToLsn(snapshot.lsn))
    assert plan.compared == snapshot


async def test_objectives_that_are_missed_fail_the_drill(pair: Drilled, make_database: MakeDatabase) -> None:
    settings = DrillSection.model_validate({"recovery_time_objective": "1ms", "recovery_point_objective": "365d"})
    record = await pair.drill(GivenDatabase(make_database()), settings=settings)
    assert [check.name for check in record.failed] == ["recovery time"]
    assert record.recovery_time_objective == 0.001


async def test_a_given_database_is_left_as_it_is_and_must_be_empty(pair: Drilled, make_database: MakeDatabase) -> None:
    dsn = make_database()
    record = await pair.drill(GivenDatabase(dsn))
    assert record.verdict == "passed"
    assert record.restored.destroyed is None
    assert "the restored copy was left where --into said: it is not destroyed" in record.deviations
    assert record.restored.where in " ".join([*record.deviations, record.restored.where])
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM plain").fetchone() == (12,)
    with pytest.raises(PostgresError, match="not empty"):
        await GivenDatabase(dsn).check()


async def test_a_database_of_the_drill_s_own_is_dropped_from_the_configured_server(
    pair: Drilled, make_database: MakeDatabase
) -> None:
    dsn = make_database()
    record = await pair.drill(OwnDatabase(dsn))
    assert record.verdict == "passed"
    assert record.restored.destroyed
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM pg_database WHERE datname LIKE 'archiver_drill%'").fetchone() == (0,)


async def test_a_copy_that_cannot_be_restored_is_a_failed_drill(pair: Drilled) -> None:
    async with pair.setup.open() as archive:
        part = (await plan_drill(archive)).plan.snapshot.parts[-1]
    for region in ("primary", "secondary"):
        path = pair.folder / region / part.key
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    record = await pair.drill()
    assert record.verdict == "failed"
    assert record.error is not None
    assert part.key in record.error
    assert record.restored.destroyed
    assert (await newest_drill(pair.setup))[0].verdict == "failed"


async def test_a_drill_reads_the_other_region_when_one_is_gone_and_is_recorded_when_it_is_back(pair: Drilled) -> None:
    (pair.folder / "primary").rename(pair.folder / "away")
    async with pair.setup.open() as archive:
        plan: DrillPlan = await plan_drill(archive)
        record = await run_drill(archive, plan, DrillSection(), await disposable(plan))
        assert record.verdict == "passed"
        with pytest.raises(StoreError):
            await store_record(archive, record)
    (pair.folder / "away").rename(pair.folder / "primary")
    async with pair.setup.open() as archive:
        await store_record(archive, record)
    assert (await newest_drill(pair.setup))[1] == record


async def disposable(plan: DrillPlan) -> DisposableServer:
    return DisposableServer(await find_server(plan.plan.snapshot.server_version // 10000))


async def test_one_region_alone_is_read_and_every_region_gets_the_record(pair: Drilled) -> None:
    record = await pair.drill(region="secondary")
    assert record.verdict == "passed"
    assert set(record.regions) == {"secondary"}
    assert record.regions["secondary"] > record.stored_bytes
    async with pair.setup.open() as archive:
        assert (await verify(archive)).ok


async def test_a_running_daemon_shows_the_newest_drill(pair: Drilled) -> None:
    def shown(name: str) -> float | None:
        return daemon.metrics.registry.get_sample_value(f"archiver_{name}")

    async with pair.setup.daemon() as daemon:
        await asyncio.sleep(0.5)
        assert shown("last_drill_timestamp_seconds") == 0
        record = await pair.drill()
        async with asyncio.timeout(20):
            while shown("last_drill_success") != 1:
                await asyncio.sleep(0.1)
        assert shown("last_drill_timestamp_seconds") == pytest.approx(record.finished_at.timestamp())
    async with pair.setup.daemon() as daemon, asyncio.timeout(20):
        while shown("last_drill_success") != 1:  # at its start, from the log
            await asyncio.sleep(0.1)
