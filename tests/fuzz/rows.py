"""Makers of statements that write rows."""

from __future__ import annotations

from tests.fuzz.gen import Gen, Weighted
from tests.fuzz.world import Table


def _target(g: Gen) -> Table:
    return g.pick(g.world.rows)


def _some_rows(g: Gen, table: Table, name: str) -> str:
    """A condition that is true for a few rows, the same ones each time; ties are all taken."""
    if g.chance(15):
        return "true"
    if g.chance(50):
        return f"abs(hashtext({table.name}::text)) % {g.rng.randint(2, 5)} = 0"
    order = f"{table.name}::text"
    rows = f"SELECT tableoid, ctid FROM {name} ORDER BY {order} {g.opt(50, 'DESC ')}LIMIT {g.rng.randint(1, 9)}"
    return f"(tableoid, ctid) IN ({rows})"


def _columns(g: Gen, table: Table) -> list[str]:
    """Columns to give: those that must be given, and some of the others."""
    return [c.name for c in table.writable if (c.not_null and not c.default and not c.identity) or g.chance(75)]


def insert(g: Gen) -> str:
    table = _target(g)
    types = {column.name: column.type for column in table.columns}
    columns = _columns(g, table)
    conflict = g.opt(15, " ON CONFLICT DO NOTHING")
    if not columns:
        return f"INSERT INTO {g.ref(table)} DEFAULT VALUES"
    rows = [f"({', '.join(g.value(types[c]) for c in columns)})" for _ in range(g.rng.randint(1, 4))]
    if g.chance(10):
        rows += rows  # a table without a key may hold a row twice
    return f"INSERT INTO {g.ref(table)} ({', '.join(columns)}) VALUES {', '.join(rows)}{conflict}"


def insert_many(g: Gen) -> str:
    table = _target(g)
    types = {column.name: column.type for column in table.columns}
    columns = _columns(g, table) or [g.pick(table.writable).name]
    first = g.number * 1000
    count = g.rng.choice([5, 30, 200]) if g.chance(85) else 2000
    values = ", ".join(g.value(types[column], "i") for column in columns)
    return (
        f"INSERT INTO {g.ref(table)} ({', '.join(columns)}) SELECT {values}"
        f" FROM generate_series({first}, {first + count}) i ON CONFLICT DO NOTHING"
    )


def insert_long(g: Gen) -> str:
    """Values that are stored out of line, and stay there when other columns change."""
    table = g.pick([t for t in g.world.rows if any(c.type in {"text", "bytea"} and c.writable for c in t.columns)])
    types = {column.name: column.type for column in table.columns}
    columns = [c.name for c in table.writable]
    long = f"(SELECT string_agg(md5((i * {g.number})::text), '') FROM generate_series(1, 400) i)"
    values = [
        {"text": long, "bytea": f"decode({long}, 'hex')"}.get(types[c]) or g.value(types[c], str(g.number))
        for c in columns
    ]
    return f"INSERT INTO {g.ref(table)} ({', '.join(columns)}) VALUES ({', '.join(values)})"


def update(g: Gen) -> str:
    table = _target(g)
    name = g.ref(table)
    sets = []
    for column in g.some(table.writable):
        value = g.value(column.type)
        if column.type in {"integer", "bigint", "numeric"} and g.chance(60):
            value = f"{column.name} + {g.pick(['1', '100000', '0'])}"
        elif column.type == "text" and g.chance(50):
            value = f"{column.name} || '!'"
        sets.append(f"{column.name} = {value}")
    return f"UPDATE {g.opt(10, 'ONLY ')}{name} SET {', '.join(sets)} WHERE {_some_rows(g, table, name)}"


def delete(g: Gen) -> str:
    table = _target(g)
    name = g.ref(table)
    return f"DELETE FROM {g.opt(10, 'ONLY ')}{name} WHERE {_some_rows(g, table, name)}"


def truncate(g: Gen) -> str:
    names = ", ".join(g.opt(10, "ONLY ") + g.ref(table) for table in g.some(g.world.rows, 1, 2))
    return f"TRUNCATE {names}{g.opt(40, ' RESTART IDENTITY')}{g.opt(50, ' CASCADE')}"


def upsert(g: Gen) -> str:
    table = g.pick([table for table in g.world.rows if table.key])
    types = {column.name: column.type for column in table.columns}
    columns = list(dict.fromkeys([*table.key, *_columns(g, table)]))
    other = g.pick(table.writable)
    values = ", ".join(g.value(types[column], str(g.rng.randint(1, 50))) for column in columns)
    return (
        f"INSERT INTO {g.ref(table)} ({', '.join(columns)}) OVERRIDING SYSTEM VALUE VALUES ({values})"
        f" ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {other.name} = {g.value(other.type)}"
    )


def copy_rows(g: Gen) -> str:
    """Duplicates, where no key forbids them."""
    table = _target(g)
    columns = ", ".join(c.name for c in table.writable if c.name not in table.key)
    if not columns:
        raise IndexError
    return f"INSERT INTO {g.ref(table)} ({columns}) SELECT {columns} FROM {g.ref(table)} LIMIT 40"


def move_rows(g: Gen) -> str:
    """Delete and insert in one statement."""
    table = _target(g)
    columns = ", ".join(c.name for c in table.writable)
    if not columns:
        raise IndexError
    rows = _some_rows(g, table, g.ref(table))
    return (
        f"WITH gone AS (DELETE FROM {table.full} WHERE {rows} RETURNING *)"
        f" INSERT INTO {table.full} ({columns}) SELECT {columns} FROM gone"
    )


def sequence(g: Gen) -> str:
    name = g.pick(g.world.of("S", "p")).full.replace("'", "''")
    return g.pick(
        [
            f"SELECT nextval('{name}') FROM generate_series(1, {g.rng.randint(1, 60)})",
            f"SELECT setval('{name}', {g.rng.randint(1, 5000)}, {g.pick(['true', 'false'])})",
        ]
    )


def call(g: Gen) -> str:
    function = g.pick([each for each in g.world.named("FUNCTION") if each.detail == [False, 0]])
    return f"SELECT {function.name}()"


MAKERS: Weighted = {
    insert: 22, insert_many: 8, insert_long: 4, update: 20, delete: 9, truncate: 3, upsert: 6, copy_rows: 4,
    move_rows: 3, sequence: 3, call: 3,
}  # fmt: skip
