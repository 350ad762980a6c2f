"""A table that loses its replica identity, by whatever statement, or has a key that is none to the server: its UPDATEs go on at the source, and are archived."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fix_archive import Setup
from tests.fix_servers import MakeDatabase
from tests.integration.test_ddl_traps import new_snapshot
from tests.integration.whole_chain import restore_both_ways

MakeSetup = Callable[..., Setup]

BEFORE = """
CREATE TABLE skipped (id int);
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, v int);
CREATE UNIQUE INDEX by_index_code ON by_index (code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
CREATE TABLE by_constraint (id int NOT NULL CONSTRAINT named UNIQUE, v int);
ALTER TABLE by_constraint REPLICA IDENTITY USING INDEX named;
CREATE TABLE part (id int, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10) PARTITION BY LIST (id);
CREATE TABLE part_1_1 PARTITION OF part_1 FOR VALUES IN (1, 2, 3);
CREATE DOMAIN code AS int; CREATE TABLE by_domain (id code PRIMARY KEY, v int);
CREATE TABLE base (id int, v int); CREATE TABLE derived (PRIMARY KEY (id)) INHERITS (base);
CREATE TABLE nothing (id int PRIMARY KEY, v int);
CREATE TABLE "deferrable" (id int PRIMARY KEY DEFERRABLE, v int);
INSERT INTO by_index VALUES (1, 'a', 1), (2, 'b', 1); INSERT INTO by_constraint VALUES (1, 1), (2, 1);
INSERT INTO part VALUES (1, 1), (2, 1); INSERT INTO by_domain VALUES (1, 1), (2, 1);
INSERT INTO derived VALUES (1, 1), (2, 1); INSERT INTO nothing VALUES (1, 1), (2, 1); INSERT INTO "deferrable" VALUES (1, 1), (2, 1);
"""
LOSSES = {
    "by_index": "DROP INDEX by_index_code",
    "by_constraint": "ALTER TABLE by_constraint DROP CONSTRAINT named",
    "part_1_1": "ALTER TABLE part DROP CONSTRAINT part_pkey",
    "by_domain": "DROP DOMAIN code CASCADE",
    "derived": "ALTER TABLE base DROP COLUMN id CASCADE",
    "nothing": "ALTER TABLE nothing REPLICA IDENTITY NOTHING",
    '"deferrable"': 'SET CONSTRAINTS ALL DEFERRED; UPDATE "deferrable" SET id = 3 - id',
    "later": "CREATE TABLE later (id int PRIMARY KEY DEFERRABLE, v int)",
    "made.with_it": "CREATE SCHEMA made CREATE TABLE with_it (v int)",
}
CHANGES = [f"{loss}; UPDATE {table} SET v = v + 1" for table, loss in LOSSES.items()]


@pytest.mark.parametrize("exclude", [(), ("public.skipped",)], ids=["all tables", "listed tables"])
async def test_a_table_that_loses_its_key_is_archived_on(
    make_setup: MakeSetup, make_database: MakeDatabase, exclude: tuple[str, ...]
) -> None:
    dsn = make_database()
    setup = make_setup(dsn, source={"dsn": dsn, "exclude": exclude})
    await restore_both_ways(
        setup, BEFORE, [*CHANGES, "INSERT INTO made.with_it VALUES (1); UPDATE made.with_it SET v = 2"]
    )


async def test_where_keyless_tables_are_excluded_one_that_loses_its_key_leaves_the_publication(
    make_setup: MakeSetup,
) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(BEFORE.encode())
        await setup.init("exclude")
        async with setup.daemon():
            await setup.archived()
            for change in CHANGES:
                conn.execute(change.encode())
            await new_snapshot(setup)
            listed = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE schemaname <> 'archiver'"
            assert conn.execute(listed).fetchall() == []
