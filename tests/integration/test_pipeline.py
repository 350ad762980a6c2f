"""The whole way, in process: capture, base snapshot, restore, on real servers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import psycopg

from archiver.policy.target import ToTime
from tests.fix_archive import Setup

SCHEMA = """
CREATE TABLE account (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner text UNIQUE, balance numeric NOT NULL);
CREATE TABLE ledger (at timestamptz NOT NULL DEFAULT clock_timestamp(), account int REFERENCES account, amount numeric);
CREATE VIEW total AS SELECT sum(balance) FROM account;
INSERT INTO account (owner, balance) SELECT 'owner ' || i, 100 FROM generate_series(1, 100) i;
"""


def rows(dsn: str, table: str) -> list[str]:
    with psycopg.connect(dsn) as conn:
        return [row[0] for row in conn.execute(f"SELECT t::text FROM {table} t ORDER BY 1").fetchall()]


async def test_a_database_comes_back_as_it_was(make_setup: Callable[..., Setup]) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(SCHEMA)
        await setup.init()
        async with setup.daemon():
            conn.execute("INSERT INTO ledger (account, amount) SELECT id, 1 FROM account")
            await setup.archived()
            conn.execute("UPDATE account SET balance = balance + id")
            conn.execute("DELETE FROM account WHERE id NOT IN (SELECT account FROM ledger) OR id % 7 = 0 AND false")
            conn.execute("INSERT INTO ledger (account, amount) VALUES (3, NULL), (4, 'NaN')")
            before = {table: rows(setup.dsn, table) for table in ("account", "ledger", "total")}
            moment = datetime.now(UTC)
            conn.execute("UPDATE account SET balance = 0")
            await setup.archived()
            after = {table: rows(setup.dsn, table) for table in ("account", "ledger", "total")}
    restored, summary = await setup.restore(ToTime(moment))
    assert {table: rows(restored, table) for table in before} == before
    assert summary.transactions_replayed >= 1
    latest, _ = await setup.restore()
    assert {table: rows(latest, table) for table in after} == after
