"""Which entries of a dump call users' functions when they are made."""

from __future__ import annotations

import pytest

from archiver.format.dump import Entry
from archiver.format.dump_code import makes_with_code


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
