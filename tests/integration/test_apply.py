"""End to end without capture: what a publication says of a workload, applied, must give the source's own tables."""

from __future__ import annotations

import json
import random
from typing import Any

import psycopg
import pytest

from archiver.format.journal import Entry
from archiver.format.pgmessages import RowMessage
from archiver.policy.batch import Batch
from archiver.postgres.apply_rows import TableWriter
from tests.fix_replay import replay
from tests.integration.replay_source import WORKLOAD, Source, assert_equal


async def test_rows_come_and_change_and_go(source: Source, target: str) -> None:
    source.run(
        r"INSERT INTO plain SELECT i, E'tab\t nl\n cr\r bs\\ \\N ' || i, i / 7.0,"
        r" '2024-01-01'::timestamptz + i * '1h'::interval, '\xdeadbeef00', ARRAY[true, NULL]"
        " FROM generate_series(1, 100) i",
        "INSERT INTO plain (id, name) VALUES (1000, NULL), (1001, ''), (1002, '\\.')",
        "UPDATE plain SET name = NULL WHERE id % 3 = 0",
        "UPDATE plain SET name = 'x' WHERE id % 5 = 0",
        "DELETE FROM plain WHERE id % 7 = 0",
        "INSERT INTO plain (id, name) VALUES (7, 'again')",
    )
    await replay(source.messages(), target)
    assert_equal(source, target)


async def test_changes_to_rows_of_earlier_batches_find_them(source: Source, target: str) -> None:
    source.run("INSERT INTO plain SELECT i, 'a' FROM generate_series(1, 500) i")
    await replay(source.messages(), target)
    source.run(
        "UPDATE plain SET name = 'b' WHERE id <= 200",
        "DELETE FROM plain WHERE id BETWEEN 100 AND 300",
        "INSERT INTO plain SELECT i, 'new' FROM generate_series(150, 160) i",
    )
    await replay(source.messages(), target)
    assert_equal(source, target)


@pytest.mark.parametrize("rows", [2, 60])
async def test_swapped_unique_values_are_applied_one_by_one(
    source: Source, target: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    singly, write_singly = [], TableWriter.write_singly

    async def seen(writer: TableWriter, changes: list[RowMessage]) -> None:
        singly.append(writer.relation.name)
        await write_singly(writer, changes)

    monkeypatch.setattr(TableWriter, "write_singly", seen)
    source.run(f"INSERT INTO uniq SELECT i, i FROM generate_series(1, {rows}) i")
    await replay(source.messages(), target)
    source.run("UPDATE uniq SET u = -u", f"UPDATE uniq SET u = {rows + 1} + u")
    await replay(source.messages(), target)
    assert singly == ["uniq"]
    assert_equal(source, target)


async def test_deferred_unique_constraints_may_be_violated_within_a_source_transaction(
    source: Source, target: str
) -> None:
    source.run("INSERT INTO later VALUES (1, 1), (2, 2)")
    source.run(
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE later SET u = 2 WHERE id = 1;"
        " UPDATE later SET u = 1 WHERE id = 2; COMMIT"
    )
    await replay(source.messages(), target, batch=Batch(max_rows=1))
    assert_equal(source, target)


@pytest.mark.parametrize("table", ["toast", "toast_full", "toast_full_pk"])
@pytest.mark.parametrize("max_rows", [1, 100_000])
async def test_an_unchanged_toast_value_stays(source: Source, target: str, table: str, max_rows: int) -> None:
    source.run(
        f"INSERT INTO {table} SELECT i, 0, repeat(i::text, 5000), repeat('y', 5000 + i) FROM generate_series(1, 40) i",
        f"UPDATE {table} SET n = n + 1",
        f"UPDATE {table} SET big = 'small' WHERE id % 2 = 0",
        f"UPDATE {table} SET big2 = big2 || 'z' WHERE id % 3 = 0",
        f"UPDATE {table} SET id = id + 100 WHERE id % 4 = 0",
        f"UPDATE {table} SET n = -n",
    )
    await replay(source.messages(), target, batch=Batch(max_rows=max_rows))
    assert_equal(source, target)


@pytest.mark.parametrize("table", ["toast", "toast_full", "toast_full_pk"])
async def test_an_unchanged_toast_value_moves_with_its_key(source: Source, target: str, table: str) -> None:
    source.run(f"INSERT INTO {table} SELECT i, 0, repeat(i::text, 5000), NULL FROM generate_series(1, 40) i")
    await replay(source.messages(), target)
    source.run(
        f"UPDATE {table} SET n = 1 WHERE id < 5",
        f"UPDATE {table} SET id = id + 100 WHERE id < 30",
        f"UPDATE {table} SET n = 5 WHERE id > 100",
        f"DELETE FROM {table} WHERE id = 101",
    )
    await replay(source.messages(), target)
    assert_equal(source, target)


async def test_a_toasted_key_finds_its_row(source: Source, target: str) -> None:
    source.run("INSERT INTO toast_key SELECT repeat(i::text, 2100), 0 FROM generate_series(1, 9) i")
    await replay(source.messages(), target)
    source.run(
        "UPDATE toast_key SET n = 1",
        "UPDATE toast_key SET k = k || 'x' WHERE k LIKE '1%'",
        "DELETE FROM toast_key WHERE k LIKE '2%'",
    )
    await replay(source.messages(), target)
    assert_equal(source, target)


@pytest.mark.parametrize("rows", [3, 50])
async def test_generated_always_identities_are_kept_and_moved(source: Source, target: str, rows: int) -> None:
    source.run(
        f"INSERT INTO always (v) SELECT 'v' FROM generate_series(1, {rows})",
        f"INSERT INTO always_other (k, v, big) SELECT i, 'v', repeat('q', 5000) FROM generate_series(1, {rows}) i",
    )
    await replay(source.messages(), target)
    source.run(
        "UPDATE always SET v = 'w'",
        "UPDATE always SET id = DEFAULT WHERE id < 3",
        "UPDATE always_other SET v = 'w'",
        "UPDATE always_other SET id = DEFAULT",
        "UPDATE always_other SET k = k || 'x' WHERE id % 2 = 0",
        "DELETE FROM always_other WHERE k = '1'",
    )
    await replay(source.messages(), target)
    assert_equal(source, target)


@pytest.mark.parametrize("copies", [1, 40])
@pytest.mark.parametrize("max_rows", [7, 100_000])
async def test_identical_rows_without_a_key_are_counted(
    source: Source, target: str, copies: int, max_rows: int
) -> None:
    source.run(
        "INSERT INTO heap SELECT i % 3, 'b', '{\"a\":  1}', '(1,2)', '(0,0),(1,1)'"
        f" FROM generate_series(1, {copies * 3}) i",
        f"INSERT INTO heap SELECT NULL, NULL, NULL, NULL, NULL FROM generate_series(1, {copies})",
        f"INSERT INTO nothing SELECT FROM generate_series(1, {copies * 2})",
        "INSERT INTO insert_only VALUES (1, 'x'), (1, 'x')",
        f"INSERT INTO heap_unique SELECT i, 'b' FROM generate_series(1, {copies}) i",
    )
    await replay(source.messages(), target)
    source.run(
        "DELETE FROM heap WHERE ctid IN (SELECT min(ctid) FROM heap GROUP BY a)",
        "UPDATE heap SET b = 'c' WHERE ctid IN (SELECT max(ctid) FROM heap GROUP BY a)",
        "DELETE FROM nothing WHERE ctid < '(0,3)'",
        "UPDATE heap_unique SET a = -a",
        f"UPDATE heap_unique SET a = {copies + 1} + a",
    )
    await replay(source.messages(), target, batch=Batch(max_rows=max_rows))
    assert_equal(source, target)


async def test_key_changes_follow_each_other(source: Source, target: str) -> None:
    source.run("INSERT INTO plain SELECT i, 'p' FROM generate_series(1, 50) i")
    await replay(source.messages(), target)
    source.run(
        "UPDATE plain SET id = id + 1000",
        "UPDATE plain SET id = id - 999",
        "UPDATE plain SET id = -id WHERE id < 9",
        "DELETE FROM plain WHERE id = -2",
        "INSERT INTO plain VALUES (-2, 'new')",
        "UPDATE plain SET id = 2 WHERE id = -2",
    )
    await replay(source.messages(), target)
    assert_equal(source, target)


async def test_every_shape_of_table_is_restored(source: Source, target: str) -> None:
    odd = '"Odd %s ""Schema"""."ta ble$1"'
    source.run(
        "INSERT INTO generated SELECT i, i FROM generate_series(1, 30) i",
        "UPDATE generated SET a = a + 1",
        f"INSERT INTO {odd} SELECT i, 's' || i % 2, '%s', i FROM generate_series(1, 40) i",
        "INSERT INTO by_index SELECT i, 'c' || i, i FROM generate_series(1, 40) i",
        "INSERT INTO part SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, i FROM generate_series(1, 40) i",
        "INSERT INTO base SELECT i, i FROM generate_series(1, 40) i",
        "INSERT INTO derived SELECT i, i, i FROM generate_series(1, 40) i",
        "INSERT INTO typed SELECT 'ok', i, ROW(i, E'a,\"\\\\b')::pair, int4range(i, i + 5), 'a:1 b:2',"
        " gen_random_uuid(), '1 mon -2 days 03:04:05.678', i / 3.0, '10.0.0.1/8' FROM generate_series(1, 40) i",
    )
    await replay(source.messages(), target)
    source.run(
        f'UPDATE {odd} SET "a%b" = \'changed\' WHERE "i d" > 3',
        f'UPDATE {odd} SET "i d" = "i d" + 100 WHERE "i d" < 10',
        f'DELETE FROM {odd} WHERE "i d" = 20',
        "UPDATE by_index SET v = -v, id = id + 1000",
        "UPDATE by_index SET code = 'd' || code WHERE v > -10",
        "DELETE FROM by_index WHERE v = -30",
        "UPDATE part SET region = 'us' WHERE id < 7",
        "UPDATE part SET v = 0",
        "UPDATE base SET v = v * 2",
        "DELETE FROM ONLY base WHERE id = 4",
        "UPDATE typed SET d = d + 100 WHERE f < 5",
        "UPDATE typed SET f = 'NaN', i = i * 2",
        "UPDATE generated SET id = id + 100 WHERE id < 4",
    )
    await replay(source.messages(), target)
    assert_equal(source, target)


async def test_truncate_empties_what_it_emptied_at_the_source(source: Source, target: str) -> None:
    source.run(
        "INSERT INTO parent SELECT generate_series(1, 5); INSERT INTO child SELECT generate_series(1, 5)",
        "INSERT INTO plain VALUES (1)",
        "TRUNCATE parent RESTART IDENTITY CASCADE",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO part VALUES (1, 'eu', 1); INSERT INTO base VALUES (1); INSERT INTO derived VALUES (2)",
        "TRUNCATE part; TRUNCATE ONLY base",
        "BEGIN; INSERT INTO plain VALUES (2); TRUNCATE plain; INSERT INTO plain VALUES (3); COMMIT",
    )
    await replay(source.messages(), target)
    assert_equal(source, target)


async def test_large_transactions_and_their_rolled_back_parts_arrive_as_committed(source: Source, target: str) -> None:
    filler = "SELECT i, 'row ' || i FROM generate_series({}, {}) i"
    source.run(
        "BEGIN; INSERT INTO plain (id, name) " + filler.format(1, 5000) + ";"
        "SAVEPOINT a; INSERT INTO plain (id, name) " + filler.format(5001, 9000) + ";"
        "UPDATE plain SET name = 'wrong'; DELETE FROM plain WHERE id < 100; ROLLBACK TO a;"
        "SAVEPOINT b; ALTER TABLE plain ADD COLUMN temporary int DEFAULT 5;"
        "UPDATE plain SET temporary = 6 WHERE id < 3000; ROLLBACK TO b;"
        "SAVEPOINT c; INSERT INTO plain (id, name) " + filler.format(9001, 12000) + "; RELEASE c;"
        "UPDATE plain SET amount = id; COMMIT",
        "BEGIN; INSERT INTO uniq " + filler.format(1, 5000).replace("'row ' || i", "i") + "; ROLLBACK",
        "BEGIN; DELETE FROM plain WHERE id % 2 = 0; INSERT INTO uniq VALUES (1, 1); COMMIT",
    )
    messages = source.messages()
    assert {b"S", b"E", b"c", b"A"} <= {message[:1] for message in messages}
    await replay(messages, target, batch=Batch(max_rows=1000))
    assert_equal(source, target)


async def test_concurrent_large_transactions_interleave(source: Source, target: str) -> None:
    with psycopg.connect(source.conn.info.dsn) as other:
        for start in range(0, 6000, 2000):
            other.execute(
                f"INSERT INTO uniq SELECT i, i, repeat('o', 50) FROM generate_series({start + 1}, {start + 2000}) i"
            )
            source.run(
                f"INSERT INTO plain SELECT i, repeat('s', 50) FROM generate_series({start + 1}, {start + 2000}) i"
            )
        source.run("UPDATE plain SET name = 'before the other commits'")
        other.commit()
    await replay(source.messages(), target)
    assert_equal(source, target)


async def test_entries_of_the_journal_reach_their_handler_after_what_came_before(source: Source, target: str) -> None:
    seen: list[tuple[Any, ...]] = []

    async def ddl(conn: psycopg.AsyncConnection[Any], entry: Entry) -> None:
        cursor = await conn.execute("SELECT count(*) FROM public.plain")
        seen.append((entry.said["sql"], *(await cursor.fetchone() or ())))
        await conn.execute(entry.said["sql"].encode())

    statement = "ALTER TABLE public.plain ADD COLUMN extra int DEFAULT 3"
    said = json.dumps({"sql": statement})
    source.run(
        "INSERT INTO plain VALUES (1)",
        "CREATE SCHEMA archiver; CREATE TABLE archiver.journal (id int PRIMARY KEY, kind text, content text)",
        f"BEGIN; INSERT INTO archiver.journal VALUES (1, 'ddl', '{said}'), (2, 'other', '{{}}'); {statement}; COMMIT",
        "UPDATE plain SET extra = 4",
    )
    await replay(source.messages(), target, on_entry={"ddl": ddl})
    assert seen == [(statement, 1)]
    assert_equal(source, target)


async def test_triggers_do_not_fire(source: Source, target: str) -> None:
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute("""
            CREATE FUNCTION double() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              INSERT INTO public.insert_only VALUES (NEW.id); RETURN NEW; END $$;
            CREATE TRIGGER double BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION double()""")
    source.run("INSERT INTO plain VALUES (1)")
    await replay(source.messages(), target)
    assert_equal(source, target)


@pytest.mark.parametrize("seed", range(4))
async def test_a_random_workload_is_restored(source: Source, target: str, seed: int) -> None:
    """Many small transactions on few rows of many tables, so that everything meets everything."""
    generator = random.Random(seed)
    for _ in range(150):
        statements = [generator.choice(WORKLOAD)(generator) for _ in range(generator.randrange(1, 6))]
        end = generator.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"])
        source.attempt(f"BEGIN; {'; '.join(statements)}; {end}")
    messages = source.messages()
    await replay(messages, target, batch=Batch(max_rows=generator.choice([3, 40, 1000])))
    assert_equal(source, target)
