"""A source database whose messages are read through SQL, and the schema that source and target share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg

SCHEMA = r'''
CREATE TABLE plain (id int PRIMARY KEY, name text, amount numeric(12,2), at timestamptz, raw bytea, flags bool[]);
CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, note text);
CREATE TABLE later (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY IMMEDIATE);
CREATE TABLE toast (id int PRIMARY KEY, n int, big text, big2 text);
ALTER TABLE toast ALTER big SET STORAGE EXTERNAL, ALTER big2 SET STORAGE EXTERNAL;
CREATE TABLE toast_full (LIKE toast INCLUDING STORAGE); ALTER TABLE toast_full REPLICA IDENTITY FULL;
CREATE TABLE toast_full_pk (LIKE toast INCLUDING ALL); ALTER TABLE toast_full_pk REPLICA IDENTITY FULL;
CREATE TABLE toast_key (k text PRIMARY KEY, n int); ALTER TABLE toast_key ALTER k SET STORAGE EXTERNAL;
CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
CREATE TABLE always_other (k text PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY, v text, big text);
ALTER TABLE always_other ALTER big SET STORAGE EXTERNAL;
CREATE TABLE heap (a int, b text, j json, p point, x box); ALTER TABLE heap REPLICA IDENTITY FULL;
CREATE TABLE heap_unique (a int UNIQUE, b text); ALTER TABLE heap_unique REPLICA IDENTITY FULL;
CREATE TABLE nothing (); ALTER TABLE nothing REPLICA IDENTITY FULL;
CREATE TABLE insert_only (a int, b text);
CREATE TABLE generated (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
CREATE SCHEMA "Odd %s ""Schema""";
CREATE TABLE "Odd %s ""Schema"""."ta ble$1"
  ("i d" int, "select" text, "a%b" text, "ä" int, PRIMARY KEY ("select", "i d"));
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL UNIQUE, v int);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
CREATE TABLE part (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY REFERENCES parent, v int);
CREATE TABLE base (id int PRIMARY KEY, v int); CREATE TABLE derived (w int, PRIMARY KEY (id)) INHERITS (base);
CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE typed (m mood, d positive, c pair, r int4range, t tsvector, u uuid, i interval, f float8, ip inet,
                    PRIMARY KEY (m, d));
'''
TABLES = """
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND n.nspname !~ '^pg_|^information_schema$|^progress$|^archiver$' ORDER BY 1
"""


class Source:
    """A database with a publication and a slot, whose messages are read through SQL."""

    def __init__(self, dsn: str, slot: str, schema: str = SCHEMA) -> None:
        self.conn = psycopg.connect(dsn, autocommit=True, client_encoding="UTF8")
        self.slot = slot
        self.conn.execute(schema)
        self.conn.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        self.conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        self.conn.execute("SET logical_decoding_work_mem = '64kB'")

    def run(self, *statements: str) -> None:
        """Each statement is a transaction of its own; several in one string are one transaction."""
        for statement in statements:
            self.conn.execute(statement)

    def attempt(self, transaction: str) -> None:
        """Run a transaction that may meet a constraint."""
        try:
            self.conn.execute(transaction)
        except psycopg.IntegrityError:
            self.conn.execute("ROLLBACK")

    def messages(self) -> list[bytes]:
        options = "'proto_version', '2', 'streaming', 'on', 'messages', 'true', 'publication_names', 'everything'"
        query = f"SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, {options})"
        return [bytes(data) for (data,) in self.conn.execute(query, [self.slot], binary=True)]


def content(conn: psycopg.Connection[Any]) -> dict[str, list[str]]:
    names = [name for (name,) in conn.execute(TABLES)]
    return {name: [row for (row,) in conn.execute(f"SELECT t::text FROM ONLY {name} t ORDER BY 1")] for name in names}


def assert_equal(source: Source, dsn: str) -> None:
    with psycopg.connect(dsn, client_encoding="UTF8") as conn:
        expected, found = content(source.conn), content(conn)
    assert found.keys() == expected.keys()
    for table, rows in expected.items():
        assert found[table] == rows, table


class Segment(NamedTuple):
    within: int | None
    relations: list[tuple[int, bytes]]
    messages: list[bytes]


def cut(messages: list[bytes], size: int) -> Iterator[Segment]:
    """As capture does it: each segment opens with where it stands, and with every relation known by then."""
    known: dict[tuple[int, bytes], bytes] = {}
    within: int | None = None
    for at in range(0, len(messages), size):
        part = messages[at : at + size]
        yield Segment(within, [(xid, message) for (xid, _), message in known.items()], part)
        for message in part:
            kind = message[:1]
            if kind == b"R":
                known[within or 0, message[5:9] if within else message[1:5]] = message
            within = {b"B": 0, b"C": None, b"S": int.from_bytes(message[1:5], "big"), b"E": None}.get(kind, within)
            if kind == b"c":
                ended = [(oid, raw) for (xid, oid), raw in known.items() if xid.to_bytes(4, "big") == message[1:5]]
                known |= {(0, oid): b"R" + raw[5:] for oid, raw in ended}
            if kind in b"cA":
                known = {key: value for key, value in known.items() if key[0] != int.from_bytes(message[1:5], "big")}


WORKLOAD: list[Callable[[random.Random], str]] = [
    lambda r: (
        f"INSERT INTO toast VALUES ({r.randrange(20)}, 1, repeat('a', 4000), repeat('b', 4000))"
        " ON CONFLICT (id) DO UPDATE SET n = toast.n + 1"
    ),
    lambda r: f"UPDATE toast SET id = {r.randrange(20)} WHERE id = {r.randrange(20)}",
    lambda r: f"UPDATE toast SET big = 's{r.random()}' WHERE id < {r.randrange(20)}",
    lambda r: f"DELETE FROM toast WHERE id % 7 = {r.randrange(7)}",
    lambda r: f"INSERT INTO uniq VALUES ({r.randrange(30)}, {r.randrange(30)}) ON CONFLICT DO NOTHING",
    lambda _: "UPDATE uniq SET u = -u",
    lambda r: f"UPDATE uniq SET u = u + 1000 WHERE id = {r.randrange(30)}",
    lambda r: f"DELETE FROM uniq WHERE id = {r.randrange(30)}",
    lambda r: f"INSERT INTO heap (a, b) VALUES ({r.randrange(4)}, 'x'), ({r.randrange(4)}, NULL)",
    lambda r: f"UPDATE heap SET b = 'y' WHERE a = {r.randrange(4)}",
    lambda r: f"DELETE FROM heap WHERE ctid IN (SELECT ctid FROM heap WHERE a = {r.randrange(4)} LIMIT 2)",
    lambda r: f"INSERT INTO toast_full_pk VALUES ({r.randrange(20)}, 1, repeat('a', 4000)) ON CONFLICT DO NOTHING",
    lambda r: f"UPDATE toast_full_pk SET n = n + 1, id = id + {r.choice([0, 0, 100, -100])} WHERE id < 10",
    lambda r: f"INSERT INTO part VALUES ({r.randrange(9)}, 'eu', 1) ON CONFLICT DO NOTHING",
    lambda r: f"UPDATE part SET region = '{r.choice(['eu', 'us'])}' WHERE id = {r.randrange(9)}",
    lambda r: r.choice(["TRUNCATE heap", "TRUNCATE part", "TRUNCATE uniq"] + ["SELECT 1"] * 5),
    lambda _: "SAVEPOINT a; DELETE FROM toast; INSERT INTO plain VALUES (-1); ROLLBACK TO a",
]
