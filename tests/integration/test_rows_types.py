"""Every built-in type with its edge values, through the whole chain: as a value, in arrays, as a key, and in rows
without a key. Compared by dumps and, byte for byte, by what the server sends in binary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from archiver.embedded import PostgresServer
from tests.fix_archive import Setup
from tests.fix_servers import MakeDatabase
from tests.integration.edge_values import EDGES, EDGES_SINCE, USERS_EDGES, USERS_TYPES, WITHOUT_VALUES
from tests.integration.whole_chain import Restored, binary_rows, restore_both_ways

MakeSetup = Callable[..., Setup]
COPIES = 20  # so many rows take the way of large batches
KEY_BYTES = 500  # longer values are neither copied nor keys: an index could not hold them

_BUILT_IN = """
SELECT oid::regtype::text FROM pg_type
 WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typname !~ '^_'
"""
_HAS_ORDER = """
SELECT EXISTS (SELECT FROM pg_opclass o JOIN pg_type t ON t.oid = %s::regtype
                WHERE o.opcmethod = 403 AND o.opcdefault
                  AND (o.opcintype = t.oid OR t.typtype = 'r' AND o.opcintype = 'anyrange'::regtype
                       OR t.typtype = 'm' AND o.opcintype = 'anymultirange'::regtype
                       OR t.typtype = 'e' AND o.opcintype = 'anyenum'::regtype
                       OR t.typname = 'varchar' AND o.opcintype = 'text'::regtype))
"""


def edges(conn: psycopg.Connection[tuple[object, ...]]) -> dict[str, list[str]]:
    """The types and values that this server knows."""
    every = dict(EDGES)
    for since, known in EDGES_SINCE.items():
        if conn.info.server_version >= since * 10_000:
            every |= {name: every[name] + more for name, more in known.items()}
    try:
        conn.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:  # built without libxml: the next test asks Debian's
        every["xml"] = []
    return every


def tables_of(number: int, type_: str, *, key: bool) -> str:
    made = f"CREATE TABLE value_{number} (id int PRIMARY KEY, v {type_}, a {type_}[], n int);"
    made += f"CREATE TABLE loose_{number} (v {type_}, a {type_}[]);"
    if key:
        made += f"CREATE TABLE key_{number} (v {type_}, r int, n int, PRIMARY KEY (v, r));"
    return made


def rows_of(number: int, type_: str, values: list[str], first: int, copies: int, *, key: bool) -> Iterator[str]:
    """Every value, alone and in arrays with nulls and odd bounds; `copies` times from id `first` on."""
    listed = ", ".join(f"({at}, {literal(value)}::{type_})" for at, value in enumerate(values))
    few = f"CASE WHEN pg_column_size(v) < {KEY_BYTES} THEN {copies} ELSE 1 END"
    source = f"(VALUES {listed}) AS x (i, v), generate_series(1, {few}) AS r"
    array = f"('[-1:0][3:4]=' || ARRAY[ARRAY[v, NULL], ARRAY[NULL, v]]::text)::{type_}[]"
    array = f"CASE WHEN r % 2 = 0 AND x.v IS NOT NULL THEN {array} ELSE ARRAY[v]::{type_}[] END"
    if "vector" in type_ or type_.endswith((".words", ".pairs")):
        array = f"'{{}}'::{type_}[]"  # ARRAY[] takes these for arrays of one more dimension
    yield f"INSERT INTO value_{number} SELECT {first} + i * {copies} + r, v, {array}, 0 FROM {source}"
    yield f"INSERT INTO value_{number} (id) VALUES ({first})" if "words" not in type_ else "SELECT 1"
    yield f"INSERT INTO loose_{number} SELECT v, {array} FROM {source}"
    if key:
        short = f"WHERE pg_column_size(v) < {KEY_BYTES}"
        yield f"INSERT INTO key_{number} SELECT v, {first} + r, 0 FROM {source} {short} ON CONFLICT DO NOTHING"


def literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def changes_of(number: int, *, key: bool) -> Iterator[str]:
    """Rows that move, change and go, for some of which only the stream's own text finds them again."""
    value, loose = f"value_{number}", f"loose_{number}"
    yield f"UPDATE {value} SET n = n + 1 WHERE id % 2 = 0"
    yield f"UPDATE {value} x SET v = y.v, a = y.a FROM {value} y WHERE y.id = x.id + 1 AND x.id % 3 = 0 AND y.v IS NOT NULL"
    yield f"DELETE FROM {value} WHERE id % 5 = 0"
    yield f"DELETE FROM {loose} WHERE ctid IN (SELECT min(ctid) FROM {loose} GROUP BY v::text, a::text)"
    yield (
        f"UPDATE {loose} SET a = NULL"
        f" WHERE ctid IN (SELECT max(ctid) FROM {loose} WHERE a IS NOT NULL GROUP BY v::text, a::text)"
    )
    if key:
        yield f"UPDATE key_{number} SET n = 1 WHERE r % 2 = 0"
        yield f"UPDATE key_{number} SET r = -r WHERE r % 3 = 0"
        yield f"DELETE FROM key_{number} WHERE r % 5 = 0"


async def check_types(setup: Setup, types: dict[str, list[str]], before: str = "") -> Restored:
    numbered = list(enumerate((name, values) for name, values in types.items() if values))
    with setup.connect() as conn:
        conn.execute(before.encode())
        keys = {name: has_order(conn, name) for name in types}
    create = [tables_of(at, name, key=keys[name]) for at, (name, _) in numbered]
    changes: list[str] = []
    for first, copies in ((0, COPIES), (10_000, 2)):  # large batches, then single statements
        for at, (name, values) in numbered:
            changes += rows_of(at, name, values, first, copies, key=keys[name])
        changes.append(f"CREATE TABLE between_{first} ()")  # DDL ends a batch
        for at, (name, _) in numbered:
            changes += changes_of(at, key=keys[name])
        changes.append(f"CREATE TABLE after_{first} ()")
    early = [row for at, (name, values) in numbered for row in rows_of(at, name, values, 20_000, 1, key=keys[name])]
    restored = await restore_both_ways(setup, ";".join(create + early), changes)
    assert restored.warnings == set()
    return restored


def assert_same_bytes(setup: Setup, restored: Restored) -> None:
    """For types of which the binary form holds no oid of the database."""
    expected = binary_rows(setup.dsn)
    for dsn in (restored.replayed, restored.loaded):
        found = binary_rows(dsn)
        assert [name for name in expected if found[name] != expected[name]] == []


def has_order(conn: psycopg.Connection[tuple[object, ...]], name: str) -> bool:
    row = conn.execute(_HAS_ORDER, [name]).fetchone()
    return bool(row and row[0])


async def test_every_built_in_type_comes_back_exactly(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        types = edges(conn)
    assert_same_bytes(setup, await check_types(setup, types))


async def test_xml_comes_back_exactly(make_setup: MakeSetup, make_database: MakeDatabase, pg15: PostgresServer) -> None:
    setup = make_setup(make_database(pg15))
    setup.make_database = lambda **options: make_database(pg15, **options)
    await check_types(setup, {"xml": EDGES["xml"]})


async def test_types_that_users_make_come_back_exactly(make_setup: MakeSetup) -> None:
    await check_types(make_setup(), USERS_EDGES, USERS_TYPES)


@pytest.mark.parametrize("server", ["pg", "pg15"])
def test_no_built_in_type_is_forgotten(request: pytest.FixtureRequest, server: str) -> None:
    with psycopg.connect(request.getfixturevalue(server).dsn()) as conn:
        built_in = {name for (name,) in conn.execute(_BUILT_IN)}
        tested = {row[0] for name in EDGES for row in conn.execute("SELECT %s::regtype::text", [name])}
    assert built_in - tested - set(WITHOUT_VALUES) == set()


@pytest.mark.parametrize("name", WITHOUT_VALUES)
def test_types_without_values_are_left_out_for_a_reason(pg: PostgresServer, name: str) -> None:
    with psycopg.connect(pg.dsn()) as conn, pytest.raises(psycopg.errors.FeatureNotSupported, match="cannot accept"):
        conn.execute(f"SELECT ''::pg_catalog.{name}".encode())
