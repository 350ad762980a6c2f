"""Tables without a key: how often a replay reads one from its beginning to its end, which for a large one is what costs."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from tests.fix_archive import Setup
from tests.integration.whole_chain import Restored, restore_both_ways

MakeSetup = Callable[..., Setup]

ROWS = 20_000
LOOSE = f"""
CREATE TABLE loose (a int, j json); CREATE TABLE other (id int PRIMARY KEY, v int);
INSERT INTO loose SELECT i, '{{}}' FROM generate_series(1, {ROWS}) i;
INSERT INTO loose SELECT NULL, '{{}}' FROM generate_series(1, 50);
"""


def few_changes(number: int) -> list[str]:
    """Five transactions of one change each, two of them to rows that are there twice, or null in the column."""
    first = number * 10
    return [
        f"UPDATE loose SET j = '[{number}]' WHERE a = {first}",
        f"DELETE FROM loose WHERE a = {first + 1}",
        f"INSERT INTO loose VALUES ({first + 2}, '{{}}'); INSERT INTO other VALUES ({number}, 0)",
        f"DELETE FROM loose WHERE ctid = (SELECT min(ctid) FROM loose WHERE a = {first + 2})",
        f"UPDATE loose SET j = '0' WHERE a = {first + 3}; UPDATE other SET v = 1 WHERE id = {number}",
    ]


BATCHES = [change for number in range(20) for change in (*few_changes(number), f"CREATE TABLE made_{number} ()")]
"""Since DDL ends one."""


def scans(restored: Restored) -> int:
    with psycopg.connect(restored.replayed) as conn:
        conn.execute("SELECT pg_stat_force_next_flush()")
        found = conn.execute("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'loose'").fetchone()
    assert found is not None
    return int(found[0])


async def test_rows_without_a_key_are_found_without_a_scan_for_each(make_setup: MakeSetup) -> None:
    """600 changes of 600 transactions: the table may be scanned by batch, not by change."""
    changes = [f"UPDATE loose SET j = '[{number}]' WHERE a = {number}" for number in range(1, 601)]
    assert scans(await restore_both_ways(make_setup(), LOOSE, changes)) < 10


async def test_a_batch_of_few_changes_is_found_by_one_scan(make_setup: MakeSetup) -> None:
    """20 batches of 4 changes that must find a row."""
    changes = [
        *BATCHES,
        "UPDATE loose SET j = '1' WHERE a IS NULL AND ctid <= (SELECT min(ctid) FROM loose WHERE a IS NULL)",
    ]
    assert 20 <= scans(await restore_both_ways(make_setup(), LOOSE, changes)) < 30


async def test_a_batch_of_few_changes_is_found_by_an_index_that_is_not_unique(make_setup: MakeSetup) -> None:
    """Of deletes alone: so many that the planner, without statistics, would rather read the table."""
    changes = []
    for number in range(20):
        changes += [f"DELETE FROM loose WHERE a = {number * 20 + at}" for at in range(1, 15)]
        changes.append(f"CREATE TABLE made_{number} ()")
    restored = await restore_both_ways(make_setup(), LOOSE + "CREATE INDEX ON loose (a, (j::text))", changes)
    assert scans(restored) < 10


async def test_truncations_and_temporary_tables_end_no_batch(make_setup: MakeSetup) -> None:
    before = LOOSE + "CREATE TABLE emptied (id int PRIMARY KEY, v int); CREATE TABLE child (id int REFERENCES emptied)"
    changes = []
    for number in range(20):
        changes += few_changes(number)
        changes += [
            "INSERT INTO emptied SELECT i, 1 FROM generate_series(1, 30) i; INSERT INTO child VALUES (1)",
            "UPDATE emptied SET v = 2 WHERE id > 5",
            "TRUNCATE emptied CASCADE; INSERT INTO emptied VALUES (300, 4)",
            f"CREATE TEMP TABLE scratch_{number} AS SELECT * FROM emptied; DROP TABLE scratch_{number}",
        ]
    assert scans(await restore_both_ways(make_setup(), before, changes)) < 10
