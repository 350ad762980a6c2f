"""Columns of types whose values nobody can write come back empty, and are named."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.fix_archive import MakeSetup
from tests.integration.whole_chain import take_another_snapshot

COPIED = "SELECT oid, adrelid, adbin FROM pg_attrdef"
ROWS = "SELECT oid, adrelid, adbin IS NULL FROM {} ORDER BY 1"


def rows(dsn: str, table: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(ROWS.format(table).encode()).fetchall()


async def test_a_copy_of_a_catalog_comes_back_without_what_cannot_be_read(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("CREATE TABLE given (a int DEFAULT 1, b text DEFAULT 'b', c int DEFAULT 3)")
        conn.execute(f"CREATE TABLE before AS {COPIED}".encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute(
                f"CREATE TABLE streamed AS {COPIED}; DELETE FROM before WHERE oid = (SELECT min(oid) FROM before)".encode()
            )
            conn.execute("ALTER TABLE streamed ADD r float DEFAULT random()")
            conn.execute("UPDATE streamed SET oid = (oid::bigint + 1)::oid WHERE oid = (SELECT max(oid) FROM streamed)")
            await setup.archived()
        replayed, summary = await setup.restore()
        await take_another_snapshot(setup)
        loaded, later = await setup.restore()
    assert len(rows(setup.dsn, "streamed")) >= 3
    for dsn in (replayed, loaded):
        for table in ("before", "streamed"):
            assert rows(dsn, table) == [(oid, rel, True) for oid, rel, _ in rows(setup.dsn, table)]
    named = [f"column public.{table}.adbin (pg_node_tree) is empty" for table in ("before", "streamed")]
    for warnings in (summary.warnings, later.warnings):
        assert all(any(warning.startswith(name) for warning in warnings) for name in named)
