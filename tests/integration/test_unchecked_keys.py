"""Foreign keys that the restored rows violate: they come back NOT VALID, and are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.restore import Summary, run_restore
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.test_crash import file_regions
from tests.integration.test_excluded import findings
from tests.integration.test_restore_unprivileged import database_of, own_database, role, server
from tests.integration.whole_chain import take_another_snapshot

BEFORE = """
CREATE TABLE kind (id int PRIMARY KEY); INSERT INTO kind VALUES (1), (2);
CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (10) TO (20); INSERT INTO part VALUES (1), (11);
CREATE TABLE known (id int PRIMARY KEY); INSERT INTO known VALUES (1);
CREATE TABLE thing (id int PRIMARY KEY, kind int REFERENCES kind, part int REFERENCES part, known int REFERENCES known);
CREATE TABLE split (id int, kind int REFERENCES kind) PARTITION BY RANGE (id);
CREATE TABLE split_a PARTITION OF split FOR VALUES FROM (0) TO (10);
COMMENT ON CONSTRAINT thing_kind_fkey ON thing IS 'what it is'; COMMENT ON CONSTRAINT split_kind_fkey ON split IS 'too';
INSERT INTO thing VALUES (1, 1, 1, 1), (2, 2, 11, NULL); INSERT INTO split VALUES (1, 1);
"""
CHANGES = [
    "ALTER TABLE thing ADD more int; UPDATE thing SET more = 1",
    "ALTER TABLE thing ADD CONSTRAINT later FOREIGN KEY (more) REFERENCES kind, ADD CHECK (more > 0)",
    "ALTER TABLE thing ADD CONSTRAINT slow FOREIGN KEY (more) REFERENCES kind NOT VALID",
    "ALTER TABLE thing VALIDATE CONSTRAINT slow",
    "ALTER TABLE thing ADD CONSTRAINT sure FOREIGN KEY (more) REFERENCES known",
    "INSERT INTO thing VALUES (3, 1, 11, 1, 1); INSERT INTO split VALUES (2, 2)",
]
__all__ = ["role", "server"]  # fixtures
NOT_ARCHIVED = "it refers to rows that are not archived"


async def archived(setup: Setup, before: str, changes: Sequence[str]) -> None:
    with setup.connect() as conn:
        conn.execute(before.encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in changes:
                conn.execute(statement.encode())
            await setup.archived()


async def restore(setup: Setup, dsn: str) -> Summary:
    async with setup.open() as archive:
        return await run_restore(archive, await make_plan(archive, ToLatest()), dsn)


@pytest.fixture
def exclude(
    make_setup: MakeSetup, make_database: MakeDatabase, server: PostgresServer, tmp_path: Path
) -> Callable[..., Setup]:
    """A source whose archive is to exclude these tables."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    dsn = make_database(server)
    return lambda *tables: make_setup(dsn, region=file_regions(tmp_path), source={"dsn": dsn, "exclude": tables})


@pytest.mark.parametrize("superuser", [True, False])
async def test_those_that_refer_to_excluded_tables_and_partitions(
    exclude: Callable[..., Setup], server: PostgresServer, role: str, superuser: bool
) -> None:
    setup = exclude("public.kind", "public.part_b")
    await archived(setup, BEFORE, CHANGES)
    status, detail = (await findings(setup))["foreign keys"]
    assert status == "warn"
    assert detail.endswith(
        "public.split split_kind_fkey, public.thing later, public.thing slow, public.thing thing_kind_fkey,"
        " public.thing thing_part_fkey"
    )
    for _ in ("replayed", "from a base snapshot"):
        owned = own_database(setup, server, role)
        target = server.dsn(database_of(owned)) if superuser else owned
        summary = await restore(setup, target)
        assert_unchecked(target, summary.warnings)
        await take_another_snapshot(setup)


def assert_unchecked(dsn: str, warnings: Sequence[str]) -> None:
    with psycopg.connect(dsn) as conn:
        query = "SELECT conname::text, convalidated, obj_description(oid, 'pg_constraint') FROM pg_constraint"
        rows = conn.execute(
            f"{query} WHERE contype IN ('c', 'f') AND conparentid = 0 AND conrelid >= 16384".encode()
        ).fetchall()
        partitioned = {"split_kind_fkey"} if conn.info.server_version >= 180000 else set()
    unchecked = {"thing_kind_fkey", "thing_part_fkey", "later", "slow"} | partitioned
    assert {name for name, valid, _ in rows if not valid} == unchecked
    assert {name for name, valid, _ in rows if valid} == {"thing_known_fkey", "sure", "thing_more_check"}
    assert {text for _, _, text in rows} == {None, "what it is"} | ({"too"} if partitioned else set())
    reported = {warning for warning in warnings if warning.startswith("FK CONSTRAINT")}
    expected = {f"public.thing {name}" for name in unchecked - partitioned}
    assert reported == {
        *(f"FK CONSTRAINT {name} left out: its check, for {NOT_ARCHIVED}" for name in expected),
        f"FK CONSTRAINT public.split split_kind_fkey left out: {'its check, for ' if partitioned else ''}{NOT_ARCHIVED}",
    }


async def test_those_that_rows_of_the_source_violate(
    exclude: Callable[..., Setup], server: PostgresServer, role: str
) -> None:
    """As a session at the source may write them that silences the triggers."""
    setup = exclude()
    before = "CREATE TABLE item (id int PRIMARY KEY); CREATE TABLE part (id int REFERENCES item)"
    await archived(setup, before, ["SET session_replication_role = replica; INSERT INTO part VALUES (4711)"])
    for _ in ("replayed", "from a base snapshot"):
        dsn = own_database(setup, server, role)
        summary = await restore(setup, dsn)
        assert "FK CONSTRAINT public.part part_id_fkey left out: its check, for rows violate it" in summary.warnings
        with psycopg.connect(dsn) as conn:
            assert conn.execute("SELECT id FROM part").fetchall() == [(4711,)]
            assert conn.execute("SELECT convalidated FROM pg_constraint WHERE contype = 'f'").fetchall() == [(False,)]
        await take_another_snapshot(setup)
