"""Makers of statements that create tables and change them as a whole: partitions, inheritance, filled tables, drops."""

from __future__ import annotations

from tests.fuzz.gen import KEY_TYPES, Gen, Weighted
from tests.fuzz.world import Table


def _generated(g: Gen, columns: list[str]) -> str:
    if not columns:
        return ""
    column = g.pick(columns)
    kind = "VIRTUAL" if g.server_version >= 180000 and g.chance(40) else "STORED"
    expression = g.pick([f"{column} IS NULL", f"coalesce({column}, {column}) IS NOT DISTINCT FROM {column}"])
    return f"{g.name()} boolean GENERATED ALWAYS AS ({expression}) {kind}"


def column_definition(g: Gen, name: str) -> str:
    if g.chance(5):
        return f"{name} {g.pick(['serial', 'bigserial'])}"
    if g.chance(6):
        options = g.opt(30, " (START 10 INCREMENT 3)")
        return f"{name} {g.pick(['int', 'bigint'])} GENERATED {g.pick(['ALWAYS', 'BY DEFAULT'])} AS IDENTITY{options}"
    kind = g.type()
    collate = g.opt(10, ' COLLATE "C"') if kind == "text" else ""
    default = f" DEFAULT {g.default(kind)}" if g.chance(25) else ""
    check = f" CHECK ({name} IS NOT NULL)" if g.chance(3) else ""
    return f"{name} {kind}{collate}{default}{g.opt(15, ' NOT NULL')}{check}{g.opt(3, ' UNIQUE')}"


def _key(g: Gen, name: str) -> str:
    if g.chance(35):
        return f"{name} int GENERATED {g.pick(['ALWAYS', 'BY DEFAULT'])} AS IDENTITY PRIMARY KEY"
    return f"{name} {g.pick(KEY_TYPES)} PRIMARY KEY{g.opt(10, ' DEFERRABLE INITIALLY DEFERRED')}"


def _elements(g: Gen) -> list[str]:
    names = list(dict.fromkeys(g.name() for _ in range(g.number_up_to(6))))
    elements = [column_definition(g, name) for name in names]
    if g.chance(65):
        elements.insert(g.number_up_to(len(elements)), _key(g, "id"))
    if g.chance(15) and (made := _generated(g, names)):
        elements.append(made)
    keyed = [table for table in g.world.of("r", "p") if len(table.key) == 1]
    if keyed and g.chance(15):
        other = g.pick(keyed)
        kind = next(column.type for column in other.columns if column.name == other.key[0])
        action = g.pick(["", " ON DELETE CASCADE", " ON UPDATE CASCADE ON DELETE SET NULL"])
        elements.append(f"ref {kind} REFERENCES {g.ref(other)}{action}{g.opt(30, ' DEFERRABLE INITIALLY DEFERRED')}")
    if names and g.chance(10):
        elements.append(f"CHECK (({g.pick(names)})::text <> 'never')")
    return elements


def create(g: Gen) -> str:
    persistence = "UNLOGGED " if g.chance(4) else "TEMP " if g.chance(6) else ""
    name = g.name() if persistence == "TEMP " else g.new()
    inherits = f" INHERITS ({g.ref(g.table('r', 'p'))})" if g.chance(8) and g.world.of("r", "p") else ""
    options = g.opt(8, " WITH (fillfactor = 70, autovacuum_enabled = false)")
    elements = ", ".join(_elements(g))
    return f"CREATE {persistence}TABLE {g.opt(10, 'IF NOT EXISTS ')}{name} ({elements}){inherits}{options}"


def create_like(g: Gen) -> str:
    # An index that another connection makes before ours commits is not in the copy; in a restore it is.
    what = "INCLUDING DEFAULTS" if g.inside else g.pick(["INCLUDING ALL", "INCLUDING DEFAULTS", ""])
    return f"CREATE TABLE {g.new()} (LIKE {g.ref(g.table())} {what})"


def create_partitioned(g: Gen) -> str:
    columns = [column_definition(g, name) for name in dict.fromkeys(g.name() for _ in range(g.number_up_to(3)))]
    key = g.opt(70, ", PRIMARY KEY (k)")
    by = g.pick(["LIST", "RANGE", "HASH"])
    return f"CREATE TABLE {g.new()} ({', '.join(['k int', *columns])}{key}) PARTITION BY {by} (k)"


def _bounds(g: Gen, parent: Table) -> str:
    at = g.number_up_to(9)
    if parent.strategy != "h" and g.chance(20):
        return "DEFAULT"
    return {
        "l": f"FOR VALUES IN ({at})",
        "r": f"FOR VALUES FROM ({at * 10}) TO ({at * 10 + 10})" if at else "FOR VALUES FROM (MINVALUE) TO (10)",
        "h": f"FOR VALUES WITH (MODULUS 4, REMAINDER {at % 4})",
    }[parent.strategy]


def create_partition(g: Gen) -> str:
    parent = g.table("p")
    sub = g.opt(15, f" PARTITION BY {g.pick(['LIST', 'RANGE', 'HASH'])} (k)")
    return f"CREATE TABLE {g.new()} PARTITION OF {g.ref(parent)} {_bounds(g, parent)}{sub}"


def fill_partitioned(g: Gen) -> str:
    parent = g.table("p")
    columns = [
        c for c in parent.writable if c.name == "k" or (c.not_null and not c.default and not c.identity) or g.chance(50)
    ]
    rows = [
        f"({', '.join(str(g.number_up_to(99)) if c.name == 'k' else g.value(c.type) for c in columns)})"
        for _ in range(g.rng.randint(1, 3))
    ]
    return f"INSERT INTO {g.ref(parent)} ({', '.join(c.name for c in columns)}) VALUES {', '.join(rows)}"


def attach(g: Gen) -> str:
    parent = g.table("p")
    name = f"{parent.schema}.part_{g.number}"
    return (
        f"CREATE TABLE {name} (LIKE {parent.full} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED);"
        f" ALTER TABLE {parent.full} ATTACH PARTITION {name} {_bounds(g, parent)}"
    )


def detach(g: Gen) -> str:
    link = g.pick([each for each in g.world.named("INHERITS") if each.detail == "p"])
    # One that waits in vain leaves the partition half detached, of which no event tells.
    how = g.pick(["", " CONCURRENTLY"]) if g.idle and not g.busy else ""
    return f"ALTER TABLE {link.on} DETACH PARTITION {link.name}{how}"


def attach_again(g: Gen) -> str:
    parent = g.table("p")
    loose = [t for t in g.world.of("rp") if not t.partition and any(c.name == "k" for c in t.columns) and t != parent]
    return f"ALTER TABLE {parent.full} ATTACH PARTITION {g.pick(loose).full} {_bounds(g, parent)}"


def inherit(g: Gen) -> str:
    if (links := [each for each in g.world.named("INHERITS") if each.detail == "r"]) and g.chance(60):
        link = g.pick(links)
        return f"ALTER TABLE {link.name} NO INHERIT {link.on}"
    if not g.archived:
        raise IndexError  # pg_dump puts the columns of such a child into another order
    first, second = g.some(g.world.of("r", "p"), 2, 2)
    return f"ALTER TABLE {first.full} INHERIT {second.full}"


def create_as(g: Gen) -> str:
    source = g.pick(g.world.of("rpvm", "pt"))
    columns = ", ".join(c.name for c in g.some(source.columns, 1, 4))
    extra = g.opt(30, ", random() AS r, now() AS t")
    query = f"SELECT {columns}{extra} FROM {g.ref(source)} LIMIT 50"
    if g.chance(30):
        return query.replace(" FROM ", f" INTO {g.opt(10, 'TEMP ')}{g.name()} FROM ", 1)
    kind = g.pick(["", "", "", "UNLOGGED ", "TEMP "])
    name = g.name() if kind == "TEMP " else g.new()
    return f"CREATE {kind}TABLE {g.opt(15, 'IF NOT EXISTS ')}{name} AS {query}{g.opt(10, ' WITH NO DATA')}"


def drop(g: Gen) -> str:
    names = ", ".join(g.ref(table) for table in g.some(g.world.of("rp", "put"), 1, 2))
    return f"DROP TABLE {g.opt(20, 'IF EXISTS nothing, ')}{names}{g.opt(75, ' CASCADE')}"


MAKERS: Weighted = {
    create: 24, create_like: 2, create_partitioned: 5, create_partition: 9, fill_partitioned: 6, attach: 2, detach: 2,
    attach_again: 2, inherit: 2, create_as: 6, drop: 4,
}  # fmt: skip
