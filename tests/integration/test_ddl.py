"""DDL in the stream: what is changed while the daemon runs is there after a restore, to the end and to points between.

Each scenario is a list of statements, one a transaction unless it says BEGIN; the dumps of source and restored
database are compared at its end, and at every restore point that it sets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from archiver.policy.target import ToLatest, ToName
from archiver.postgres.session import connect
from archiver.postgres.setup import name_restore_point
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup

POINT = "-- restore point"

BEFORE = """
CREATE TABLE item (id int PRIMARY KEY, name text, price numeric DEFAULT 1);
INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 50) i;
CREATE TABLE note (line text);
INSERT INTO note VALUES ('a'), ('a'), ('b');
"""


async def check(setup: Setup, statements: Sequence[str], before: str = BEFORE) -> list[str]:
    """Run statements on an archived source and compare every restore with the source. Returns the warnings."""
    expected: dict[str, list[str]] = {}
    with setup.connect() as conn:
        conn.execute(before)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in statements:
                if statement == POINT:
                    await point(setup, expected)
                else:  # one that waits for the daemon's snapshots must not keep the daemon from going on
                    await asyncio.to_thread(conn.execute, statement)
            await setup.archived()
    warnings = []
    for name, dump in {**expected, "": pg_dump(setup.dsn)}.items():
        restored, summary = await setup.restore(ToName(name) if name else ToLatest())
        assert difference(pg_dump(restored), dump) == ""
        warnings += summary.warnings
    return warnings


async def point(setup: Setup, expected: dict[str, list[str]]) -> None:
    conn = await connect(setup.dsn, purpose="test")
    async with conn:
        name = f"point {len(expected)}"
        expected[name] = pg_dump(setup.dsn)
        await name_restore_point(conn, name)


TABLES = [
    "CREATE TABLE customer (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL)",
    "INSERT INTO customer (name) SELECT 'c' || i FROM generate_series(1, 30) i",
    "ALTER TABLE customer ADD COLUMN email text DEFAULT 'nobody', ADD CHECK (length(name) > 0)",
    "UPDATE customer SET email = name || '@example.com' WHERE id < 10",
    POINT,
    "BEGIN; INSERT INTO customer (name) VALUES ('x'); ALTER TABLE customer RENAME name TO label;"
    " UPDATE customer SET label = label || '!'; ALTER TABLE customer RENAME TO client;"
    " INSERT INTO client (label) VALUES ('y'); COMMIT",
    "ALTER TABLE client ALTER COLUMN label TYPE varchar(40) USING upper(label)",
    "ALTER TABLE client DROP COLUMN email",
    "CREATE TABLE purchase (id serial PRIMARY KEY, client int REFERENCES client ON DELETE CASCADE, at date)",
    "INSERT INTO purchase (client, at) SELECT id, '2026-01-01' FROM client",
    "ALTER TABLE purchase ALTER at SET DEFAULT current_date, ALTER at SET NOT NULL",
    "DELETE FROM client WHERE id = 3",
    "ALTER TABLE purchase DROP CONSTRAINT purchase_client_fkey",
    "DELETE FROM client WHERE id = 4",
    "CREATE TABLE heap (a int, b json)",
    "INSERT INTO heap VALUES (1, '{}'), (1, '{}')",
    "UPDATE heap SET a = 2",
    "DROP TABLE note",
    "DELETE FROM heap WHERE ctid = (SELECT min(ctid) FROM heap)",
]
OBJECTS = [
    "CREATE SCHEMA shop; CREATE SEQUENCE shop.ticket START 5 INCREMENT 2",
    "CREATE TYPE shop.mood AS ENUM ('sad', 'ok')",
    "CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0)",
    "CREATE TYPE shop.pair AS (a int, b text)",
    "CREATE TABLE shop.thing (id shop.positive PRIMARY KEY, mood shop.mood, pair shop.pair)",
    "INSERT INTO shop.thing VALUES (1, 'ok', '(1,x)')",
    "ALTER TYPE shop.pair ADD ATTRIBUTE c date CASCADE",
    "CREATE VIEW shop.happy AS SELECT * FROM shop.thing WHERE mood = 'ok'",
    "CREATE OR REPLACE VIEW shop.happy AS SELECT *, 1 AS one FROM shop.thing WHERE mood = 'ok'",
    "CREATE FUNCTION shop.twice(i int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT i * 2'",
    "CREATE FUNCTION shop.atomic(i int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT shop.twice(i); SELECT i; END",
    "CREATE PROCEDURE shop.note(t text) LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.note VALUES (t); END $$",
    "CALL shop.note('called')",
    "CREATE AGGREGATE shop.total(int) (SFUNC = int4pl, STYPE = int)",
    "CREATE OPERATOR shop.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)",
    "CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " INSERT INTO public.note VALUES ('stamp ' || NEW.id); RETURN NEW; END $$",
    "CREATE TRIGGER stamp BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION shop.stamp()",
    "INSERT INTO item VALUES (1001, 'stamped')",
    "ALTER TABLE item ENABLE ALWAYS TRIGGER stamp",
    "INSERT INTO item VALUES (1002, 'stamped')",
    POINT,
    "ALTER TABLE item DISABLE TRIGGER stamp",
    "CREATE RULE quiet AS ON DELETE TO item WHERE OLD.id = 1 DO INSTEAD NOTHING",
    "ALTER TABLE item ENABLE ROW LEVEL SECURITY; CREATE POLICY cheap ON item USING (price < 10)",
    "COMMENT ON TABLE item IS 'it''s \"an\" item'; COMMENT ON COLUMN item.id IS 'the key'",
    "CREATE INDEX ON item (name) WHERE price > 0; CREATE STATISTICS item_stats ON name, price FROM item",
    "GRANT SELECT ON item TO PUBLIC; GRANT USAGE ON SCHEMA shop TO PUBLIC",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO PUBLIC",
    "CREATE PUBLICATION theirs FOR TABLE item",
    "CREATE TABLE parted (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
    "CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu')",
    "CREATE TABLE parted_us (region text, id int NOT NULL, PRIMARY KEY (id, region))",
    "INSERT INTO parted_us VALUES ('us', 1)",
    "ALTER TABLE parted ATTACH PARTITION parted_us FOR VALUES IN ('us')",
    "INSERT INTO parted VALUES (2, 'us'), (1, 'eu')",
    "ALTER TABLE parted DETACH PARTITION parted_eu",
    "INSERT INTO parted_eu VALUES (7, 'eu')",
    "CREATE TEXT SEARCH CONFIGURATION shop.plain (COPY = simple)",
    "CREATE CAST (shop.pair AS text) WITH INOUT",
    "SELECT nextval('shop.ticket')",
]
DROPS = [
    *OBJECTS,
    POINT,
    "DROP CAST (shop.pair AS text)",
    "DROP POLICY cheap ON item; DROP RULE quiet ON item; DROP TRIGGER stamp ON item",
    "DROP OPERATOR shop.=== (int, int); DROP AGGREGATE shop.total(int)",
    "DROP FUNCTION shop.atomic(int), shop.twice(int)",
    "DROP STATISTICS item_stats; DROP PUBLICATION theirs",
    "DROP TEXT SEARCH CONFIGURATION shop.plain",
    "DROP INDEX item_name_idx",
    "DROP VIEW shop.happy",
    POINT,
    "DROP TYPE shop.mood CASCADE",
    "DROP TABLE parted; DROP TABLE IF EXISTS nothing, parted_eu",
    "DROP SCHEMA shop CASCADE",
]
NESTED = [
    """DO $$ BEGIN
        CREATE TABLE by_do (id int PRIMARY KEY, "quo""ted" text DEFAULT 'a"
b');
        FOR i IN 1..3 LOOP
            EXECUTE format('CREATE TABLE by_do_%s (id int PRIMARY KEY); CREATE INDEX ON by_do_%s (id)', i, i);
            EXECUTE 'CREATE TABLE IF NOT EXISTS by_do_x (id int PRIMARY KEY)';
        END LOOP;
    END $$""",
    """CREATE FUNCTION make(name text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$ BEGIN
        EXECUTE format('CREATE TABLE public.%I (id int PRIMARY KEY)', name);
        COMMENT ON SCHEMA public IS 'made "it" "
        ';
    END $$""",
    "SELECT make('one'), make('Two \"three\"')",
    """CREATE FUNCTION by_sql() RETURNS void LANGUAGE sql AS
       $$ SELECT 1; CREATE TABLE sql_a (id int PRIMARY KEY); INSERT INTO note VALUES ('x');
          CREATE TABLE sql_b (id int PRIMARY KEY); $$""",
    "SELECT by_sql()",
    "CREATE TABLE m1 (id int PRIMARY KEY); INSERT INTO m1 VALUES (1); SELECT 1; CREATE TABLE m2 (); DROP TABLE m1;"
    " CREATE TABLE m1 (id int PRIMARY KEY, v text); INSERT INTO m1 VALUES (2, ';'); ALTER TABLE m1 ADD w int",
    "BEGIN; CREATE TABLE s1 (id int PRIMARY KEY); SAVEPOINT a; CREATE TABLE s2 (); INSERT INTO s1 VALUES (1);"
    " DROP TABLE note; ROLLBACK TO a; INSERT INTO s1 VALUES (2); CREATE TABLE s2 (id int PRIMARY KEY); COMMIT",
    "CREATE TABLE r1 (); BEGIN; CREATE TABLE r2 (); ROLLBACK; CREATE TABLE r3 (id int PRIMARY KEY)",
    """DO $$ BEGIN
        BEGIN
            CREATE TABLE undone ();
            RAISE 'undo';
        EXCEPTION WHEN OTHERS THEN
            CREATE TABLE done (id int PRIMARY KEY);
        END;
    END $$""",
]
FILLED = [
    'CREATE TABLE copied AS SELECT id, name COLLATE "C" AS name, random() AS r FROM item',
    "UPDATE copied SET name = 'u' WHERE id < 5",
    "BEGIN; SELECT id, price INTO chosen FROM item WHERE id < 9; DELETE FROM chosen WHERE id = 2; COMMIT",
    "PREPARE p AS SELECT id AS pid FROM item WHERE id < 4; CREATE TABLE prepared AS EXECUTE p",
    "CREATE TEMP TABLE stage (n int, t varchar(7)); INSERT INTO stage VALUES (1, 'x')",
    "CREATE TEMP TABLE stage_2 AS SELECT * FROM stage",
    "CREATE TABLE final WITH (fillfactor = 70) AS SELECT * FROM stage WITH NO DATA",
    "INSERT INTO final SELECT * FROM stage",
    "CREATE TABLE IF NOT EXISTS final AS SELECT 1",
    """CREATE FUNCTION inner_ctas() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
         CREATE TABLE within AS SELECT 1 AS a; RETURN 5; END $$""",
    "CREATE TABLE outside AS SELECT inner_ctas() AS b",
]
TEMPORARY = [
    "CREATE TEMP TABLE scratch (id serial PRIMARY KEY, line text)",
    "CREATE INDEX ON scratch (line); ALTER TABLE scratch ADD v float DEFAULT random()",
    "CREATE VIEW pg_temp.seen AS SELECT * FROM scratch; COMMENT ON TABLE scratch IS 'mine'",
    "CREATE TRIGGER quiet BEFORE INSERT ON scratch EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "GRANT SELECT ON scratch TO PUBLIC; GRANT SELECT ON scratch, note TO PUBLIC",
    "CREATE TABLE kept (id int PRIMARY KEY); DROP TABLE scratch CASCADE",
    "CREATE TEMP TABLE scratch (another int); CREATE TEMP TABLE item (id int); ALTER TABLE item ADD w int; DROP TABLE item",
    "ALTER TABLE item ADD x int",
]
SCENARIOS = {
    "tables": TABLES,
    "objects": OBJECTS,
    "drops": DROPS,
    "nested": NESTED,
    "filled": FILLED,
    "temporary": TEMPORARY,
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_ddl_comes_back(make_setup: MakeSetup, scenario: str) -> None:
    assert await check(make_setup(), SCENARIOS[scenario]) == []
