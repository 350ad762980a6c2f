"""Makers of statements about everything beside tables: types, views, routines, triggers, rules, policies, and so on."""

from __future__ import annotations

from tests.fuzz.gen import ROLES, Gen, Weighted
from tests.fuzz.world import Table


def schema(g: Gen) -> str:
    known = g.schema()
    return g.pick(
        [f"CREATE SCHEMA {g.name()}", f"CREATE SCHEMA IF NOT EXISTS {g.name()} AUTHORIZATION {g.pick(ROLES)}",
         f"CREATE SCHEMA {g.name()} CREATE TABLE one (id int PRIMARY KEY) CREATE VIEW two AS SELECT id FROM one",
         f"ALTER SCHEMA {known} RENAME TO {g.name()}" if known != "public" else f"CREATE SCHEMA {g.name()}",
         f"DROP SCHEMA {known} CASCADE" if known != "public" and g.chance(40) else f"COMMENT ON SCHEMA {known} IS 'it''s'"]
    )  # fmt: skip


def create_type(g: Gen) -> str:
    return g.pick(
        [f"CREATE TYPE {g.new()} AS ENUM ('a', 'b''s', 'ü {g.number}')",
         f"CREATE TYPE {g.new()} AS (a int, \"B c\" text, d {g.type()})",
         f"CREATE DOMAIN {g.new()} AS int {g.pick(['CHECK (VALUE IS NULL OR VALUE < 1000000)', 'DEFAULT 7', 'NOT NULL', ''])}",
         f"CREATE TYPE {g.new()} AS RANGE (subtype = float8)"]
    )  # fmt: skip


def alter_type(g: Gen) -> str:
    known = g.named("TYPE", "DOMAIN")
    either = [
        f"ALTER {known.kind} {known.full} RENAME TO {g.name()}",
        f"ALTER {known.kind} {known.full} SET SCHEMA {g.schema()}",
    ]
    if g.chance(15):
        return f"DROP {known.kind} {known.full}{g.opt(70, ' CASCADE')}"
    if known.on == "e":
        label = g.pick(known.detail)
        add = f"ALTER TYPE {known.full} ADD VALUE {g.opt(20, 'IF NOT EXISTS ')}'v{g.number}'"
        either += [add, f"{add} BEFORE {label}", add, f"ALTER TYPE {known.full} RENAME VALUE {label} TO 'r{g.number}'"]
    elif known.on == "c" and not g.busy:  # rows of an open transaction would have other attributes
        either += [f"ALTER TYPE {known.full} ADD ATTRIBUTE {g.name()} {g.type()} CASCADE",
                   f"ALTER TYPE {known.full} DROP ATTRIBUTE IF EXISTS d CASCADE",
                   f"ALTER TYPE {known.full} RENAME ATTRIBUTE a TO a{g.number} CASCADE",
                   f"ALTER TYPE {known.full} ALTER ATTRIBUTE a TYPE bigint CASCADE"]  # fmt: skip
    elif known.on == "d":
        either += [f"ALTER DOMAIN {known.full} SET DEFAULT 5", f"ALTER DOMAIN {known.full} DROP NOT NULL",
                   f"ALTER DOMAIN {known.full} ADD CONSTRAINT c{g.number} CHECK (VALUE IS NULL OR VALUE <> -{g.number}) NOT VALID"]  # fmt: skip
    return g.pick(either)


def view(g: Gen) -> str:
    source = g.pick(g.world.of("rpvm"))
    columns = ", ".join(c.name for c in g.some(source.columns, 1, 5))
    query = (
        f"SELECT {columns}{g.opt(30, f', {g.number} AS n{g.number}')} FROM {g.ref(source)}{g.opt(20, ' WHERE true')}"
    )
    if g.chance(35):
        # What another connection commits before ours is not in it; in a restore it is.
        no_data = " WITH NO DATA" if g.inside else g.opt(20, " WITH NO DATA")
        return f"CREATE MATERIALIZED VIEW {g.opt(10, 'IF NOT EXISTS ')}{g.new()} AS {query}{no_data}"
    known = g.world.of("v")
    name = g.pick(known).full if known and g.chance(30) else g.new()
    if name == source.full:
        raise IndexError  # a view of itself: no dump can be restored
    return f"CREATE {g.opt(50, 'OR REPLACE ')}{g.opt(5, 'TEMP ')}VIEW {name} AS {query if g.chance(80) else 'TABLE ' + g.ref(source)}"


def alter_view(g: Gen) -> str:
    known = g.pick(g.world.of("vm"))
    kind = "MATERIALIZED VIEW" if known.kind == "m" else "VIEW"
    either = [f"DROP {kind} {g.ref(known)}{g.opt(70, ' CASCADE')}", f"ALTER {kind} {known.full} RENAME TO {g.name()}",
              f"ALTER {kind} {known.full} SET SCHEMA {g.schema()}", f"COMMENT ON {kind} {g.ref(known)} IS '{g.number}'",
              f"ALTER {kind} {known.full} RENAME COLUMN {g.pick(known.columns).name} TO {g.name()}"]  # fmt: skip
    if known.kind == "m":
        no_data = " WITH NO DATA" if g.inside else g.opt(20, " WITH NO DATA")  # as above
        either += [f"REFRESH MATERIALIZED VIEW {g.ref(known)}{no_data}"] * 5
        either.append(f"CREATE UNIQUE INDEX ON {known.full} ({known.columns[0].name})")
    else:
        either.append(f"ALTER VIEW {known.full} SET (security_barrier = true)")
    return g.pick(either)


def function(g: Gen) -> str:
    name = g.new()
    body = g.pick(["SELECT 1", "SELECT 'a;\"b'::text; SELECT 2", "SELECT 3 -- it's"])
    trigger = "IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;"
    log = f"INSERT INTO {g.pick(g.world.of('r', 'p')).full} DEFAULT VALUES;" if g.chance(50) else "NULL;"
    return g.pick(
        [f"CREATE OR REPLACE FUNCTION {name}(i int DEFAULT 2) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT i * {g.number} $$",
         f"CREATE FUNCTION {name}() RETURNS int LANGUAGE sql AS $f${body}; SELECT 5 $f$",
         f"CREATE FUNCTION {name}() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT {g.number}; END",
         f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {log} {trigger} EXCEPTION WHEN OTHERS THEN {trigger} END $$",
         f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {trigger} END $$",
         f"CREATE PROCEDURE {name}(INOUT t text) LANGUAGE plpgsql AS $$ BEGIN t := 'x'; END $$",
         f"CREATE AGGREGATE {name}(int) (SFUNC = int4pl, STYPE = int)"]
    )  # fmt: skip


def alter_function(g: Gen) -> str:
    known = g.named("FUNCTION", "PROCEDURE", "AGGREGATE")
    kind = "ROUTINE" if g.chance(50) else known.kind
    return g.pick(
        [f"DROP {kind} {known.full}{g.opt(70, ' CASCADE')}", f"ALTER {kind} {known.full} RENAME TO {g.name()}",
         f"ALTER {kind} {known.full} SET SCHEMA {g.schema()}", f"ALTER {kind} {known.full} OWNER TO {g.pick(ROLES)}",
         f"COMMENT ON {kind} {known.full} IS $c$it's$c$", f"ALTER {kind} {known.full} STABLE",
         f"ALTER {kind} {known.full} SET work_mem = '1MB'", f"GRANT EXECUTE ON {kind} {known.full} TO {g.pick(ROLES)}"]
    )  # fmt: skip


def trigger(g: Gen) -> str:
    function = g.pick([each for each in g.world.named("FUNCTION") if each.detail[0]])
    event = g.pick(["INSERT", "UPDATE", "DELETE", "INSERT OR UPDATE OR DELETE"])
    constraint = g.chance(10)
    when = "AFTER" if constraint else g.pick(["BEFORE", "AFTER"])
    return (
        f"CREATE {'CONSTRAINT ' if constraint else g.opt(15, 'OR REPLACE ')}TRIGGER {g.name()} {when} {event} ON"
        f" {g.ref(g.table())} {'DEFERRABLE INITIALLY DEFERRED ' if constraint else ''}FOR EACH ROW EXECUTE FUNCTION {function.name}()"
    )


def rule(g: Gen) -> str:
    table = g.table("rv")
    action = g.pick(["NOTHING", f"SELECT {g.number}", f"INSERT INTO {g.table('r', 'p').full} DEFAULT VALUES"])
    how = g.pick(["ALSO", "ALSO", "INSTEAD"]) if table.kind == "r" else "INSTEAD"
    where = (
        f" WHERE hashtext(OLD.{g.pick(table.columns).name}::text) = 5" if how == "INSTEAD" and table.kind == "r" else ""
    )
    event = g.pick(["UPDATE", "DELETE"])
    return f"CREATE {g.opt(30, 'OR REPLACE ')}RULE {g.name()} AS ON {event} TO {table.full}{where} DO {how} {action}"


def policy(g: Gen) -> str:
    if g.chance(30) and (known := g.world.named("POLICY")):
        each = g.pick(known)
        return g.pick(
            [
                f"ALTER POLICY {each.name} ON {each.on} RENAME TO {g.name()}",
                f"ALTER POLICY {each.name} ON {each.on} USING (true)",
            ]
        )
    table = g.table()
    roles = g.pick(["", f" TO {g.pick(ROLES)}", f" TO {', '.join(ROLES)}", " TO CURRENT_USER, PUBLIC"])
    return f"CREATE POLICY {g.name()} ON {g.ref(table)}{roles} USING ({g.predicate(g.pick(table.columns))})"


def drop_part(g: Gen) -> str:
    known = g.named("TRIGGER", "RULE", "POLICY")
    if g.chance(30) and known.kind != "POLICY":
        return f"ALTER {known.kind} {known.name} ON {known.on} RENAME TO {g.name()}"
    return f"DROP {known.kind} {g.opt(20, 'IF EXISTS ')}{known.name} ON {known.on}"


def _kind(table: Table) -> str:
    return {"v": "VIEW", "m": "MATERIALIZED VIEW", "S": "SEQUENCE"}.get(table.kind, "TABLE")


def comment(g: Gen) -> str:
    table = g.table("rpvmS")
    text = g.pick([f"'comment {g.number}'", "'it''s'", "E'tab\\tand \\\\'", "NULL", "$$a;b$$"])
    if table.columns and g.chance(50) and table.kind != "S":
        return f"COMMENT ON COLUMN {g.ref(table)}.{g.pick(table.columns).name} IS {text}"
    return f"COMMENT ON {_kind(table)} {g.ref(table)} IS {text}"


def grant(g: Gen) -> str:
    table = g.table("rpvmS")
    role = g.pick([*ROLES, "PUBLIC", "CURRENT_USER"])
    option = g.opt(15, " WITH GRANT OPTION") if role in ROLES else ""
    columns = f"SELECT ({g.pick(table.columns).name})" if table.columns and g.chance(30) else "SELECT"
    word = "SEQUENCE " if table.kind == "S" else ""
    # A table that another connection has made, and not committed yet, has its privileges before these.
    everywhere = [] if g.busy else [
         f"GRANT SELECT ON ALL TABLES IN SCHEMA {g.schema()} TO {role}",
         f"ALTER DEFAULT PRIVILEGES IN SCHEMA {g.schema()} GRANT SELECT ON TABLES TO {role}",
         f"ALTER DEFAULT PRIVILEGES FOR ROLE {g.pick(ROLES)} REVOKE SELECT ON TABLES FROM {role}"]  # fmt: skip
    return g.pick(
        [f"GRANT {columns if table.kind != 'S' else 'USAGE'} ON {word}{g.ref(table)} TO {role}{option}",
         f"GRANT ALL ON {word}{g.ref(table)} TO {role}", f"REVOKE ALL ON {word}{g.ref(table)} FROM {role} CASCADE",
         f"GRANT USAGE ON SCHEMA {g.schema()} TO {role}", *everywhere]
    )  # fmt: skip


def sequence(g: Gen) -> str:
    known = g.world.of("S", "p")
    if not known or g.chance(35):
        owned = f" OWNED BY {(t := g.table('r', 'p')).full}.{g.pick(t.columns).name}" if g.chance(20) else ""
        return f"CREATE SEQUENCE {g.new()}{g.opt(30, ' AS int')}{g.opt(30, ' START 100 INCREMENT 5')}{g.opt(20, ' CACHE 10')}{owned}"
    name = g.ref(g.pick(known))
    return g.pick(
        [f"ALTER SEQUENCE {name} INCREMENT 2", f"ALTER SEQUENCE {name} RESTART WITH {g.number * 10}", f"ALTER SEQUENCE {name} MAXVALUE 1000000",
         f"ALTER SEQUENCE {name} OWNED BY NONE", f"ALTER SEQUENCE {name} RENAME TO {g.name()}", f"DROP SEQUENCE {name} CASCADE"]
    )  # fmt: skip


def other(g: Gen) -> str:
    table = g.table("r", "p")
    return g.pick(
        [f"CREATE STATISTICS {g.new()} ON {', '.join(c.name for c in g.some(table.columns, 2, 3))} FROM {table.full}",
         f"CREATE PUBLICATION {g.name()} FOR TABLE {table.full}", f"CREATE COLLATION {g.new()} (locale = 'C', provider = libc)",
         f"CREATE TEXT SEARCH CONFIGURATION {g.new()} (COPY = simple)", f"CREATE OPERATOR {g.schema()}.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)",
         f"CREATE EXTENSION IF NOT EXISTS {g.pick(['hstore', 'citext', 'btree_gist', 'pg_trgm'])} SCHEMA public",
         "DROP EXTENSION IF EXISTS hstore CASCADE", "DROP OWNED BY fuzz_reader CASCADE"]
    )  # fmt: skip


def drop_other(g: Gen) -> str:
    known = g.named("STATISTICS", "PUBLICATION")
    return f"DROP {known.kind} {known.full}"


MAKERS: Weighted = {
    schema: 4, create_type: 6, alter_type: 6, view: 6, alter_view: 5, function: 6, alter_function: 3, trigger: 3, rule: 1,
    policy: 2, drop_part: 2, comment: 4, grant: 5, sequence: 5, other: 2, drop_other: 1,
}  # fmt: skip
