"""Which entries of a dump call users' functions when they are made."""

from __future__ import annotations

import pytest

from archiver.format.dump import Entry
from archiver.format.dump_code import makes_with_code, schemas_named


@pytest.mark.parametrize(
    ("definition", "calls"),
    [
        ("(v integer)", False),
        ("(v integer DEFAULT app.f(), CHECK ((app.f() > 0)))", False),
        ("(v integer, g integer GENERATED ALWAYS AS ((v + abs(v))) STORED)", False),
        ("(v integer, g integer GENERATED ALWAYS AS ((v + app.f(v))) STORED)", True),
        ("(v integer, g integer GENERATED ALWAYS AS ((v)::app.d) STORED)", True),
        ("(j jsonb, g integer GENERATED ALWAYS AS (JSON_VALUE(j, '$' RETURNING app.d)) STORED)", True),
        ("(v integer)\nPARTITION BY LIST (v)", False),
        ("(v integer)\nPARTITION BY LIST (lower((v)::text))", False),
        ("(v integer)\nPARTITION BY LIST (((app.f(1) + v)))", True),
        ("(v integer)\nPARTITION BY RANGE (v, app.f(v))", True),
    ],
)
def test_a_table_whose_columns_or_key_the_planner_looks_into_is_made_with_code(definition: str, calls: bool) -> None:
    entry = Entry(f"CREATE TABLE app.t {definition};\n", name="t", type="TABLE", schema="app")
    assert makes_with_code(entry) is calls


@pytest.mark.parametrize(
    ("statement", "schemas"),
    [
        ('CREATE TABLE app.t (a int, "secret" int, PRIMARY KEY ("secret", a), CHECK ((secret > 0)))', {"app"}),
        (
            "CREATE TABLE app.t (a b.c DEFAULT d.f(1), e text COLLATE g.h, CHECK ((a OPERATOR(i.+) 1) > 0))",
            "app b d g i",
        ),
        ("CREATE TABLE app.t (a int) PARTITION BY RANGE (((b.f(1) + a)) c.ops)", "app b c"),
        ("CREATE TABLE app.t (a int DEFAULT nextval('\"Odd.\".s'::regclass), b text DEFAULT 'c.d')", {"app", "Odd."}),
        ("ALTER TABLE ONLY app.t ATTACH PARTITION b.u FOR VALUES FROM ('c.d') TO ('e')", "app b"),
        (
            "CREATE AGGREGATE app.a (int) (SFUNC = b.f, STYPE = c.d, SORTOP = OPERATOR(e.<), INITCOND = 'f.g')",
            "app b c e",
        ),
        ("CREATE TABLE app.t (a archiver.b)", "app"),
    ],
)
def test_a_schema_is_named_in_front_of_something(statement: str, schemas: set[str] | str) -> None:
    wanted = set(schemas.split()) if isinstance(schemas, str) else schemas
    assert schemas_named(statement) - {"pg_catalog"} == wanted
