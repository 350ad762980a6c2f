"""A shop with something of everything, its archive, and when a restored copy equals it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.archive import OpenArchive
from archiver.recovery_plan import read_history
from tests.fix_archive import MakeSetup, Setup
from tests.integration.test_capture import digest
from tests.integration.test_crash import file_regions

TABLES = ("customer", "purchase", "reading_a", "reading_b", "note")
SCHEMA = """
CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, purchases int DEFAULT 0);
CREATE TABLE purchase (
  id serial PRIMARY KEY, customer bigint NOT NULL REFERENCES customer ON DELETE CASCADE, amount int
);
CREATE TABLE reading (day date, sensor int, value numeric, PRIMARY KEY (day, sensor)) PARTITION BY RANGE (day);
CREATE TABLE reading_a PARTITION OF reading FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE reading_b PARTITION OF reading FOR VALUES FROM ('2026-02-01') TO ('2027-01-01');
CREATE TABLE note (line text);
CREATE SEQUENCE ticket INCREMENT -2;
CREATE FUNCTION count_purchases() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  UPDATE public.customer SET purchases = purchases + 1 WHERE id = NEW.customer;
  INSERT INTO public.note VALUES ('purchase of ' || NEW.amount);
  RETURN NULL;
END $$;
CREATE TRIGGER counted AFTER INSERT ON purchase FOR EACH ROW EXECUTE FUNCTION count_purchases();
"""


def fill(conn: psycopg.Connection[Any], rows: int = 2000) -> None:
    conn.execute("INSERT INTO customer (name) SELECT 'customer ' || i FROM generate_series(1, %s::int) i", (rows,))
    change(conn, rows)


def change(conn: psycopg.Connection[Any], rows: int) -> None:
    """Something of everything, in a few transactions."""
    values = "SELECT id, id %% 97 FROM customer ORDER BY random() LIMIT %s"
    conn.execute(f"INSERT INTO purchase (customer, amount) {values}", (rows // 2,))
    conn.execute("DELETE FROM customer WHERE id = (SELECT max(id) FROM customer)")
    conn.execute(
        "INSERT INTO reading SELECT date '2026-01-15' + i %% 60, (SELECT count(*) FROM reading) + i, i / 7.0"
        " FROM generate_series(1, %s::int) i",
        (rows // 4,),
    )
    conn.execute("UPDATE reading SET day = day + 20 WHERE day BETWEEN '2026-01-20' AND '2026-01-25' AND sensor % 2 = 0")
    conn.execute("INSERT INTO note SELECT 'same' FROM generate_series(1, 5)")
    conn.execute("DELETE FROM note WHERE ctid IN (SELECT ctid FROM note WHERE line = 'same' LIMIT 2)")
    conn.execute("SELECT nextval('ticket') FROM generate_series(1, 7)")
    conn.execute("UPDATE customer SET name = name || '!' WHERE id % 3 = 0")


def contents(dsn: str) -> list[object]:
    return [digest(dsn, table) for table in TABLES]


def sequences(dsn: str) -> dict[str, int]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname <> 'archiver'"
        ).fetchall()
    return {name: value or 0 for name, value in rows}


def assert_equal(restored: str, source: str) -> None:
    assert contents(restored) == contents(source)
    truth, there = sequences(source), sequences(restored)
    assert truth.keys() == there.keys()
    assert all(there[name] >= truth[name] for name in truth if name != "ticket")
    assert there["ticket"] <= truth["ticket"]
    with psycopg.connect(restored) as conn:
        left = conn.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'archiver'").fetchall()
    assert left == []


def foreign_keys_and_triggers(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(
            "SELECT conname FROM pg_constraint WHERE contype = 'f'"
            " UNION SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
        ).fetchall()


@pytest.fixture
async def shop(make_setup: MakeSetup, tmp_path: Path) -> Setup:
    """A shop with a base snapshot and several change segments, all in folders."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms", "max_bytes": "64KiB"})
    return await archived_shop(setup)


async def archived_shop(setup: Setup) -> Setup:
    with setup.connect() as conn:
        conn.execute(SCHEMA)
        fill(conn)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for _ in range(4):
                change(conn, 600)
                await asyncio.sleep(0.25)
            await setup.archived()
    return setup


async def segments(archive: OpenArchive) -> list[Path]:
    """The keys of the change segments."""
    return [Path(entry.object.key) for entry in (await read_history(archive)).changes if entry.object]
