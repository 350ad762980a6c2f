"""Shapes of transactions, through the whole chain: huge, streamed, rolled back in parts, prepared, deferred, cascading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest

from archiver.embedded import PostgresServer
from tests.fix_archive import Setup
from tests.fix_servers import PG_SETTINGS
from tests.integration.whole_chain import apart, restore_both_ways

MakeSetup = Callable[..., Setup]

TRUNCATES = [
    """
    CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
    CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES parent);
    CREATE TABLE grandchild (id int PRIMARY KEY, child int REFERENCES child);
    CREATE TABLE part (id int, region text) PARTITION BY LIST (region);
    CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
    CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us') PARTITION BY RANGE (id);
    CREATE TABLE part_us_1 PARTITION OF part_us FOR VALUES FROM (0) TO (100);
    CREATE TABLE base (id int PRIMARY KEY); CREATE TABLE derived (PRIMARY KEY (id)) INHERITS (base);
    CREATE TABLE alone (id int PRIMARY KEY, v text); INSERT INTO alone SELECT i FROM generate_series(1, 50) i;
    CREATE TABLE client (id int PRIMARY KEY);
    CREATE TABLE bill (id int PRIMARY KEY, client int REFERENCES client, before int REFERENCES bill) PARTITION BY RANGE (id);
    CREATE TABLE bill_1 PARTITION OF bill FOR VALUES FROM (0) TO (100);
    """,
    "INSERT INTO parent (v) VALUES ('a'), ('b'); INSERT INTO child (parent) VALUES (1), (2); INSERT INTO grandchild VALUES (1, 1)",
    "INSERT INTO part VALUES (1, 'eu'), (2, 'us'), (2, 'us'); INSERT INTO base VALUES (1); INSERT INTO derived VALUES (2)",
    "BEGIN; TRUNCATE parent RESTART IDENTITY CASCADE; INSERT INTO parent (v) VALUES ('again'); COMMIT",
    "INSERT INTO child (parent) VALUES (1); INSERT INTO grandchild SELECT id, id FROM child",
    "TRUNCATE parent CASCADE; INSERT INTO parent (v) VALUES ('third')",
    "TRUNCATE part_us; INSERT INTO part VALUES (3, 'us')",
    "TRUNCATE ONLY base; INSERT INTO base VALUES (1)",
    "TRUNCATE base, part_eu; INSERT INTO derived VALUES (3)",
    # The stream does not name the partitioned table, whose foreign keys refer to what is emptied.
    "INSERT INTO client VALUES (1); INSERT INTO bill VALUES (1, 1, 1)",
    "TRUNCATE client, bill; INSERT INTO client VALUES (2); INSERT INTO bill VALUES (2, 2, 2)",
    "TRUNCATE bill; INSERT INTO bill VALUES (3, 2, 3)",
    "BEGIN; INSERT INTO alone VALUES (100); TRUNCATE alone; INSERT INTO alone VALUES (1), (2); UPDATE alone SET v = 'x';"
    " SAVEPOINT a; TRUNCATE alone; INSERT INTO alone VALUES (3); ROLLBACK TO a; INSERT INTO alone VALUES (4); COMMIT",
    "BEGIN; DELETE FROM alone WHERE id = 1; TRUNCATE alone; ROLLBACK; UPDATE alone SET v = 'y' WHERE id = 4",
]
KEYS_THAT_CHANGE = [
    """
    CREATE TABLE plain (id int PRIMARY KEY, v text); CREATE TABLE two (a int, b text, v int, PRIMARY KEY (a, b));
    CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, u int UNIQUE DEFERRABLE, v text);
    CREATE TABLE equal (n numeric PRIMARY KEY, f float8 UNIQUE, c char(5), v int);
    CREATE TABLE ranged (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&));
    """,
    "INSERT INTO plain SELECT i, i FROM generate_series(1, 60) i; INSERT INTO two SELECT i, i, i FROM generate_series(1, 60) i",
    "INSERT INTO deferred SELECT i, i, i FROM generate_series(1, 40) i",
    "INSERT INTO equal VALUES (1.0, 0, 'a', 1), (2.00, 1, 'b', 1)",
    "INSERT INTO ranged SELECT i, int4range(i * 10, i * 10 + 10) FROM generate_series(1, 30) i",
    "UPDATE plain SET id = id + 1000; UPDATE plain SET id = id - 1001 + 2 WHERE id > 1000",
    "BEGIN; UPDATE plain SET id = -1 WHERE id = 5; UPDATE plain SET id = 5 WHERE id = 6; UPDATE plain SET id = 6 WHERE id = -1; COMMIT",
    "UPDATE two SET a = b::int, b = a::text || 'x' WHERE a < 30; UPDATE two SET b = 'same' WHERE a > 50",
    "BEGIN; DELETE FROM plain WHERE id = 10; INSERT INTO plain VALUES (10, 'new'); UPDATE plain SET id = 11000 WHERE id = 10; COMMIT",
    "BEGIN; UPDATE deferred SET id = id + 1; UPDATE deferred SET u = 41 - u; COMMIT",
    "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE deferred SET u = 1 WHERE id = 10; UPDATE deferred SET u = 99 WHERE u = 1 AND id <> 10; COMMIT",
    "UPDATE equal SET n = 1.000 WHERE n = 1; UPDATE equal SET f = '-0', c = 'a ' WHERE n = 1; UPDATE equal SET v = 2",
    "UPDATE ranged SET r = int4range(lower(r) + 1000, upper(r) + 1000); UPDATE ranged SET id = -id WHERE id < 9",
]
CYCLES = [
    """
    CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
    ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE INITIALLY DEFERRED;
    CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON UPDATE CASCADE ON DELETE SET NULL);
    CREATE TABLE owner (id int PRIMARY KEY);
    CREATE TABLE owned (id int PRIMARY KEY, owner int REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE defaulted (id int PRIMARY KEY, owner int DEFAULT 1 REFERENCES owner ON DELETE SET DEFAULT);
    CREATE CONSTRAINT TRIGGER never_stopped AFTER INSERT ON owner DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
    DROP TRIGGER never_stopped ON owner;
    """,
    "BEGIN; INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1); COMMIT",
    "BEGIN; INSERT INTO a SELECT i, 41 - i FROM generate_series(2, 39) i; INSERT INTO b SELECT i, i FROM generate_series(2, 39) i; COMMIT",
    "INSERT INTO tree VALUES (1, NULL); INSERT INTO tree SELECT i, i - 1 FROM generate_series(2, 40) i; UPDATE tree SET up = 40 WHERE id = 1",
    "INSERT INTO owner SELECT generate_series(1, 20); INSERT INTO owned SELECT i, i % 20 + 1 FROM generate_series(1, 60) i",
    "INSERT INTO defaulted SELECT i, i FROM generate_series(1, 20) i",
    "UPDATE tree SET id = id + 100; DELETE FROM tree WHERE id = 120",
    "DELETE FROM owner WHERE id IN (5, 15); DELETE FROM defaulted WHERE id > 10; UPDATE owner SET id = id + 50 WHERE id > 10",
    "BEGIN; DELETE FROM b WHERE id = 7; UPDATE a SET b = NULL WHERE b = 7; COMMIT",
    "BEGIN; SET CONSTRAINTS ALL DEFERRED; DELETE FROM a WHERE id = 1 AND false; INSERT INTO a VALUES (90, 91); INSERT INTO b VALUES (91, 90); COMMIT",
]
SAVEPOINTS = [
    "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE loose (v json)",
    "BEGIN; "
    + "".join(
        f"SAVEPOINT s{i}; INSERT INTO t VALUES ({i}, 0); INSERT INTO loose VALUES ('{i}');"
        + (f"ROLLBACK TO s{i};" if i % 3 == 0 else f"RELEASE s{i};" if i % 3 == 1 else "")
        for i in range(300)
    )
    + "UPDATE t SET v = 1 WHERE id % 2 = 0; COMMIT",
    """DO $$ BEGIN
        FOR i IN 1000..1300 LOOP
            BEGIN
                INSERT INTO t VALUES (i, 0); UPDATE t SET v = 2 WHERE id = i - 1;
                IF i % 4 = 0 THEN RAISE 'no'; END IF;
            EXCEPTION WHEN raise_exception THEN
                INSERT INTO loose VALUES ('"caught"');
            END;
        END LOOP;
    END $$""",
    "BEGIN; SAVEPOINT a; SAVEPOINT b; SAVEPOINT c; DELETE FROM t WHERE id = 1; RELEASE c; ROLLBACK TO b; DELETE FROM t WHERE id = 2;"
    " RELEASE a; COMMIT",
    "BEGIN; INSERT INTO t VALUES (-1); SAVEPOINT a; INSERT INTO t VALUES (-2); ROLLBACK TO a; INSERT INTO t VALUES (-2, 3); COMMIT",
]
SCENARIOS = {
    "truncate": TRUNCATES,
    "keys that change": KEYS_THAT_CHANGE,
    "deferred constraints and cycles": CYCLES,
    "more than 64 savepoints": SAVEPOINTS,
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_transactions_come_back(make_setup: MakeSetup, scenario: str) -> None:
    before, *changes = SCENARIOS[scenario]
    for each in (changes, apart(changes)):
        restored = await restore_both_ways(make_setup(), before, each)
        assert restored.warnings == set()


@contextmanager
def server_settings(dsn: str, **settings: str) -> Iterator[None]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for name, value in settings.items():
            conn.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        conn.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            for name in settings:
                conn.execute(f"ALTER SYSTEM RESET {name}".encode())
            conn.execute("SELECT pg_reload_conf()")


@pytest.mark.deep
async def test_a_transaction_of_a_million_rows_comes_back(make_setup: MakeSetup) -> None:
    setup = make_setup(segment={"max_age": "5s", "max_bytes": "4MiB"})
    before = "CREATE TABLE t (id int PRIMARY KEY, v int)"
    changes = [
        "BEGIN; INSERT INTO t SELECT i, 0 FROM generate_series(1, 500000) i; UPDATE t SET v = 1 WHERE id % 50 = 0;"
        " DELETE FROM t WHERE id > 10000; COMMIT"
    ]
    await restore_both_ways(setup, before, changes)


async def test_streamed_transactions_that_abort_leave_nothing(make_setup: MakeSetup) -> None:
    setup = make_setup(segment={"max_age": "300ms", "max_bytes": "64KiB"})
    before = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE loose (v json)"
    fill = "INSERT INTO t SELECT i, 'row ' || i FROM generate_series({}, {}) i; INSERT INTO loose SELECT '1' FROM generate_series(1, 900);"
    changes = [
        f"BEGIN; {fill.format(1, 5000)} ROLLBACK",
        f"BEGIN; {fill.format(1, 3000)} SAVEPOINT a; {fill.format(3001, 6000)} SAVEPOINT b; DELETE FROM t; ROLLBACK TO b;"
        f" UPDATE t SET v = 'wrong'; ROLLBACK TO a; {fill.format(6001, 9000)} COMMIT",
        f"BEGIN; TRUNCATE t; {fill.format(1, 5000)} CREATE TABLE gone (id int); DROP TABLE loose; ROLLBACK",
        "BEGIN; UPDATE t SET v = v || '!'; DELETE FROM loose WHERE ctid < '(2,0)'; COMMIT",
    ]
    with server_settings(setup.dsn, logical_decoding_work_mem="64kB"):
        await restore_both_ways(setup, before, changes)


async def test_prepared_transactions_come_when_they_are_committed(make_setup: MakeSetup) -> None:
    with closing(PostgresServer(settings=PG_SETTINGS | {"max_prepared_transactions": 5})) as server:
        server.start()
        server.execute("CREATE DATABASE prepared")
        setup = make_setup(server.dsn("prepared"))
        changes = [
            "BEGIN; INSERT INTO t VALUES (1, 'a'), (2, 'b'); CREATE TABLE made (id int PRIMARY KEY);"
            " INSERT INTO made VALUES (1); PREPARE TRANSACTION 'first'",
            "INSERT INTO t VALUES (3, 'between')",
            "BEGIN; UPDATE t SET v = 'x' WHERE id = 3; SAVEPOINT a; DELETE FROM t; ROLLBACK TO a; PREPARE TRANSACTION 'second'",
            "BEGIN; INSERT INTO t SELECT i FROM generate_series(100, 9000) i; PREPARE TRANSACTION 'never'",
            "ROLLBACK PREPARED 'never'",
            "COMMIT PREPARED 'second'",
            "INSERT INTO t VALUES (4, 'later')",
            "COMMIT PREPARED 'first'",
            "UPDATE made SET id = 2; UPDATE t SET v = 'y' WHERE id = 2",
        ]
        await restore_both_ways(setup, "CREATE TABLE t (id int PRIMARY KEY, v text)", changes)
