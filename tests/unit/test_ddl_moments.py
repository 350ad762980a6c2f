"""What a statement would find anew at a restore, and what the catalog told of it."""

from __future__ import annotations

import pytest

from archiver.errors import IntegrityError
from archiver.format.ddl_losses import loss_of
from tests.unit.test_ddl import event, rewritten, tables

COMPUTED = "CREATE TABLE a PARTITION OF p FOR VALUES FROM (now()) TO ('x')"
BOUND = "FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('x')"


def bound(name: str = "a", schema: str = "public") -> dict[str, str]:
    return {"schema": schema, "name": name, "bound": BOUND}


@pytest.mark.parametrize(
    "text",
    [
        COMPUTED,
        "CREATE TABLE public.a PARTITION OF p FOR VALUES IN (1, 1::app.c)",
        "CREATE TABLE a PARTITION OF p FOR VALUES FROM ('x') TO (E'n\\x6fw')",
        "CREATE FOREIGN TABLE a PARTITION OF p FOR VALUES IN (f()) SERVER s",
        "ALTER TABLE p ATTACH PARTITION a FOR VALUES IN (1 + 1)",
        "CREATE SCHEMA s CREATE TABLE a PARTITION OF p FOR VALUES IN (f())",
    ],
)
def test_a_computed_bound_is_put_as_it_came_out(text: str) -> None:
    [statement] = rewritten(text, bounds=[bound(), bound("b")])
    assert BOUND.removeprefix("FOR VALUES ") in statement


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE a PARTITION OF p FOR VALUES FROM (1, MINVALUE) TO (-1.5, MAXVALUE)",
        "CREATE TABLE a PARTITION OF p FOR VALUES IN (NULL, true, 'known', '2026-01-01'::date)",
        "CREATE TABLE a PARTITION OF p FOR VALUES WITH (MODULUS 4, REMAINDER 1)",
        "ALTER TABLE p ATTACH PARTITION a DEFAULT",
    ],
)
def test_constants_are_left_as_they_are(text: str) -> None:
    assert rewritten(text, bounds=[bound()]) == [text]


@pytest.mark.parametrize("bounds", [[bound("b")], [bound(), bound(schema="s")]])
def test_a_bound_of_nobody_or_of_two_is_not_told(bounds: list[dict[str, str]]) -> None:
    with pytest.raises(IntegrityError, match="cannot be told"):
        rewritten(COMPUTED, bounds=bounds)
    assert loss_of(event(source=COMPUTED, objects=tables("a"), bounds=bounds)) == "untold"


def test_a_bound_that_no_catalog_told_is_a_loss_and_is_run_from_an_older_archive() -> None:
    assert loss_of(event(source=COMPUTED, objects=tables("a"))) == "untold"
    assert loss_of(event(source=COMPUTED, objects=tables("a"), bounds=[bound()])) is None
    assert rewritten(COMPUTED) == [COMPUTED]


def test_settings_from_current_are_put_as_they_were() -> None:
    text = (
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path FROM /* 'x' */ current SET work_mem = '1MB'"
        " SET TimeZone FROM CURRENT BEGIN ATOMIC SELECT 1 FROM current; END"
    )
    told = ['search_path="$user", "a,""b", public', "work_mem=1MB", "TimeZone=Asia/Tokyo"]
    [statement] = rewritten(text, tag="CREATE FUNCTION", configured=told)
    assert statement == text.replace("FROM /* 'x' */ current", """TO '$user', 'a,"b', 'public'""").replace(
        "TimeZone FROM CURRENT", "TimeZone TO 'Asia/Tokyo'"
    )
    assert loss_of(event("CREATE FUNCTION", text, objects=[{"type": "function"}])) == "untold"


@pytest.mark.parametrize(
    ("tag", "text", "lost"),
    [
        ("CREATE TABLE", "CREATE TABLE a (d timestamp DEFAULT 'no'\n'w')", True),
        ("CREATE TABLE", "CREATE TABLE a (d timestamp DEFAULT 'to\\144ay10')", False),
        ("CREATE TABLE", "CREATE TABLE a (d timestamp DEFAULT E'to\\144ay10')", True),
        ("CREATE TABLE", "CREATE TABLE a (d text DEFAULT 'known, nowhere')", False),
        ("CREATE TABLE", "CREATE TABLE now (d timestamp DEFAULT now())", False),
        ("CREATE VIEW", "CREATE VIEW a AS SELECT '{now}'::timestamp[]", True),
        ("COMMENT", "COMMENT ON TABLE a IS 'now'", False),
        ("CREATE FUNCTION", "CREATE FUNCTION f() RETURNS text LANGUAGE sql SET x.y = 'now' AS $$SELECT 'now'$$", False),
        ("CREATE FUNCTION", "CREATE FUNCTION f(a date = 'today') RETURNS date LANGUAGE sql AS 'SELECT a'", True),
        ("CREATE TRIGGER", "CREATE TRIGGER a BEFORE INSERT ON t EXECUTE FUNCTION f('now')", False),
    ],
)
def test_a_literal_that_means_a_moment_is_found_in_the_tree(tag: str, text: str, lost: bool) -> None:
    assert loss_of(event(tag, text, objects=tables("a", "now"))) == ("moment" if lost else None)


def test_defaults_that_the_catalog_told_are_no_loss_and_a_check_beside_them_is() -> None:
    told = [{"schema": "public", "name": "a", "column": "d", "default": "'2026-01-01'"}]
    default = "CREATE TABLE a (d timestamp DEFAULT 'now')"
    assert loss_of(event(source=default, objects=tables("a"), defaults=told)) is None
    assert loss_of(event(source=default[:-1] + " CHECK (d > 'today'))", objects=tables("a"), defaults=told)) == "moment"


def test_a_long_tree_is_not_walked() -> None:
    text = f"CREATE VIEW a AS SELECT {', '.join(['1'] * 100_000)}, 'x now'"
    assert loss_of(event("CREATE VIEW", text, objects=tables("a"))) == "moment"


@pytest.mark.parametrize(
    ("kind", "name", "ours"),
    [
        ("schema", "archiver", True),
        ("publication", "archiver_shop", True),
        ("publication", "archiver", False),
        ("server", "archiver", False),
        ("extension", "archiver", False),
    ],
)
def test_only_what_is_ours_is_left_out_without_a_word(kind: str, name: str, ours: bool) -> None:
    text = f"COMMENT ON {kind} {name} IS 'x'"
    objects = [{"type": kind, "identity": name}]
    assert rewritten(text, tag="COMMENT", objects=objects) == ([] if ours else [text])
