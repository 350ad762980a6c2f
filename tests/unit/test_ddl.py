"""Which statement fired an event, and what becomes of it at a target."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pglast import parse_sql

from archiver.errors import IntegrityError
from archiver.format import ddl, ddl_drops, ddl_losses, ddl_told
from archiver.format.ddl import Event, Text
from archiver.format.ddl_described import create_table
from archiver.format.ddl_rewrite import TargetFacts, for_target
from archiver.format.sql_text import scannable, with_standard_strings

EVENT: dict[str, Any] = {
    "event": "sql_drop", "tag": "DROP TABLE", "role": "r", "settings": {}, "schemas": ["pg_temp_3", "public"],
}  # fmt: skip
FRAME = "PL/pgSQL function f() line 3 at EXECUTE"
TARGET = TargetFacts(frozenset({"anna", "ben"}), "archiver_shop")


def event(tag: str = "CREATE TABLE", source: str = "", **fields: Any) -> Event:
    base: dict[str, Any] = {"kind": "ddl_command_end", "role": "anna", "settings": {}, "schemas": ["public"]}
    return Event(**base | {"tag": tag, "source": source} | fields)


def tables(*names: str) -> list[dict[str, str]]:
    return [{"type": "table", "schema": "public", "identity": f"public.{name}"} for name in names]


def rewritten(text: str, target: TargetFacts = TARGET, **fields: Any) -> list[str]:
    return for_target(text, event(**fields), target).statements


def test_a_message_that_no_trigger_wrote_is_refused() -> None:
    for said in ({}, {"event": 1}, EVENT | {"settings": 7}, EVENT | {"text": "2f0c"}):
        with pytest.raises(IntegrityError, match="cannot be read"):
            ddl.parse_event(said)


@pytest.mark.parametrize("name", ["session_replication_role", "local_preload_libraries", "role", "datestyle"])
def test_a_setting_that_no_trigger_tells_of_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        ddl.parse_event(EVENT | {"settings": {name: "x"}})


def test_a_message_is_read_without_the_temporary_schema() -> None:
    read = ddl.parse_event(EVENT)
    assert (read.kind, read.schemas, read.nth) == ("sql_drop", ["public"], 1)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_of_several_statements_the_one_at_its_place_is_meant(nth: int) -> None:
    text = "SELECT ';'; CREATE TABLE a ();SET x = 1; /* ; */ CREATE TABLE b (); INSERT INTO b DEFAULT VALUES; CREATE TABLE c ()"
    name = "abc"[nth - 1]
    found = ddl_told.statement_of(event(source=text, nth=nth, objects=tables(name)))
    assert found.split() == ["CREATE", "TABLE", name, "()"]


def test_letters_outside_ascii_do_not_shift_statements() -> None:
    text = "CREATE TABLE \"ü😀\" (); COMMENT ON TABLE x IS 'ä'; CREATE TABLE b ()"
    assert ddl_told.statement_of(event(source=text, nth=3, objects=tables("b"))) == "CREATE TABLE b ()"


def test_a_count_that_a_rollback_shifted_is_corrected_by_the_name() -> None:
    text = "CREATE TABLE a (); ROLLBACK; CREATE TABLE b (id int)"
    assert ddl_told.statement_of(event(source=text, nth=1, objects=tables("b"))) == "CREATE TABLE b (id int)"


def test_what_cannot_be_told_is_an_error() -> None:
    for source in ("SELECT 1", "CREATE TABLE a (", "CREATE INDEX ON a (b)", 'SQL statement "CREATE'):
        with pytest.raises(IntegrityError, match="cannot be told"):
            ddl_told.statement_of(event(source=source, objects=tables("a")))


def told(text: str, nth: int, *names: str, tag: str = "CREATE TABLE") -> str:
    return ddl_told.statement_of(event(tag, text, nth=nth, objects=tables(*names)))


def test_what_is_rolled_back_is_not_counted() -> None:
    text = "CREATE TABLE a (); SAVEPOINT s; CREATE TABLE b (); ROLLBACK TO s; CREATE TABLE b (id int); COMMIT; CREATE TABLE c ()"
    assert [told(text, *each) for each in ((1, "a"), (2, "b"), (1, "c"))] == [
        "CREATE TABLE a ()", "CREATE TABLE b (id int)", "CREATE TABLE c ()",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TABLE a ADD x int; COMMIT; ALTER TABLE a ADD y int",
        "SAVEPOINT s; ALTER TABLE a ADD x int; SAVEPOINT t; SELECT 1 / 0; ROLLBACK TO s; ALTER TABLE a ADD y int",
        "ALTER TABLE b ADD x int; ALTER TABLE a ADD y int",
        "SET standard_conforming_strings = off; ALTER TABLE a ADD x text DEFAULT 'a\\b'",
        'SQL statement "ALTER TABLE a ADD x int; CREATE VIEW v AS SELECT 1 "\nPL/x""\n' + FRAME,
        'SQL statement "ALTER TABLE a ADD x int' + '"\nPL/' * 100,
    ],
)
def test_what_may_be_one_of_two_statements_is_not_told(text: str) -> None:
    with pytest.raises(IntegrityError, match="cannot be told"):
        told(text, 1, "a", tag="ALTER TABLE")
    assert ddl_losses.loss_of(event("ALTER TABLE", text, nth=1, objects=tables("a"))) == "untold"


def test_a_text_that_a_function_runs_again_is_counted_on() -> None:
    source = 'SQL statement "CREATE TABLE a (); CREATE TABLE b ()"\n' + FRAME
    assert [told(source, nth, name) for nth, name in ((3, "a"), (4, "b"))] == ["CREATE TABLE a ()", "CREATE TABLE b ()"]


def test_a_text_with_very_deep_expressions_ends_no_process() -> None:
    for levels in (20_000, 150_000):
        assert (
            told(f"CREATE TABLE a (); CREATE VIEW v AS SELECT {'+'.join('1' * levels)}", 1, "a") == "CREATE TABLE a ()"
        )
    assert ddl_losses.loss_of(event(source=f"CREATE VIEW v AS SELECT {'+'.join('1' * 300_000)}", nth=1)) == "untold"
    assert told(f"CREATE TABLE a (); SELECT {'+'.join('1' * 1_000_000)}", 1, "a") == "CREATE TABLE a ()"


def test_what_cannot_be_read_of_a_text_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    split = ddl_told.split
    monkeypatch.setattr(ddl_told, "split", lambda text, **options: asked.append(text) or split(text, **options))
    text = Text('SQL statement "DROP TABLE a;' + 'SELECT 1 "\nPL/x";' * 60 + f'"\n{FRAME}')
    for nth in range(1, 100):
        assert ddl_losses.loss_of(replace(event("DROP TABLE", "", nth=nth), source=text.source, text=text)) == "untold"
    assert len(asked) <= 64


def test_a_text_is_not_parsed_up_to_each_of_many_far_ends() -> None:
    text = 'SQL statement "CREATE TABLE a ();' + "SELECT 1;" * 100_000 + 'SELECT 1 "\nPL/x";' * 60 + f'"\n{FRAME}'
    started = time.process_time()
    assert ddl_losses.loss_of(event(source=text, nth=1)) == "untold"
    assert time.process_time() - started < 1


@pytest.mark.parametrize("padding", ["/*/**/*/", "+/**/", "+"])
def test_a_text_full_of_operators_is_read_in_linear_time(padding: str) -> None:
    """PostgreSQL's own scanner takes a minute for it."""
    text = f"CREATE TABLE a (); SELECT 1 {padding * 100_000} 1"
    started = time.process_time()
    ddl_losses.loss_of(event(source=text, nth=1, objects=tables("a")))
    assert time.process_time() - started < 10


def test_comments_that_are_left_out_are_no_part_of_a_literal() -> None:
    for literal in ("'\\'", "'/* '", '"/*"', "$$ -- $$"):
        statement = f"COMMENT ON TABLE a IS {literal}"
        assert scannable(f"{statement}{'/**/' * 1000}") == f"{statement}{' ' * 1000}"
        assert scannable(f"{statement} /**/") == f"{statement} /**/"


def test_a_text_full_of_quotes_is_read_in_linear_time() -> None:
    text = "COMMENT ON TABLE app.t IS '" + 'x"\n' * 20_000 + "'"
    started = time.monotonic()
    assert told(f'SQL statement "{text}"\n{FRAME}', 1, tag="COMMENT") == text
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE a ()",
        'CREATE TABLE "a" ("b" int)',
        "CREATE TABLE a (v text DEFAULT '\"\nPL/pgSQL function x')",
        'COMMENT ON TABLE "a"\nIS \'x"\n"\'',
    ],
)
def test_a_statement_inside_a_line_of_context_ends_where_it_parses(statement: str) -> None:
    tag = statement.partition(" ON")[0] if statement.startswith("COMMENT") else "CREATE TABLE"
    source = f'SQL statement "{statement}"\n{FRAME}\nSQL statement "SELECT f("x")"'
    assert ddl_told.statement_of(event(tag, source, objects=tables("a"))) == statement


def test_a_statement_of_an_sql_function_is_found_in_the_bodies_of_that_name() -> None:
    bodies = ["SELECT 1; SELECT 2", "SELECT 1; CREATE TABLE a (); CREATE TABLE b ()"]
    source = 'SQL function "f" statement 2'
    assert (
        ddl_told.statement_of(event(source=source, text=ddl.Text(bodies=bodies), objects=tables("a")))
        == "CREATE TABLE a ()"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"'a\'b'", r" E'a\'b'"),
        (r"E'a\'b'", r"E'a\'b'"),
        ("'plain'", "'plain'"),
        (r"$$ '\' $$", r"$$ '\' $$"),
        (r'"a\" -- \'' "\n" r"'\\'", r'"a\" -- \'' "\n" r" E'\\'"),
        (r"'it''s \\'", r" E'it''s \\'"),
        (r"/* /* ' */ $a$ */ '\'' $a$ '\' $a$", r"/* /* ' */ $a$ */  E'\'' $a$ '\' $a$"),
        (r"a$b$ '\'$b$'", r"a$b$  E'\'$b$'"),
        (r"'\' no end", r"'\' no end"),
    ],
)
def test_strings_of_the_old_kind_are_marked(written: str, meant: str) -> None:
    assert with_standard_strings(written) == meant


@pytest.mark.parametrize("text", ["$a{}$ ", "/* ", "' \\' ", 'E"', "-- /* ", "U&'"])
def test_a_text_full_of_beginnings_is_read_in_linear_time(text: str) -> None:
    def seconds(count: int) -> float:
        began = time.perf_counter()
        with_standard_strings("\\" + "".join(text.format(number) for number in range(count)))
        return time.perf_counter() - began

    assert seconds(40_000) < 20 * max(seconds(10_000), 0.002)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", False),
        ("SELECT 1 AS a INTO t", True),
        ("SELECT 1 AS a INTO t UNION SELECT 2", True),
        ("ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE x", True),
        ("CREATE TABLE t AS EXECUTE p", True),
        ("GRANT a TO b", False),
        ("GRANT SELECT ON t TO b", True),
        ("GRANT CONNECT ON DATABASE d TO b", False),
        ("COMMENT ON ROLE r IS ''", False),
        ("COMMENT ON TABLE r IS ''", True),
        ("ALTER DATABASE d OWNER TO x", False),
        ("ALTER TABLE d OWNER TO x", True),
        ("ALTER ROLE a RENAME TO b", False),
        ("ALTER TABLE a RENAME b TO c", True),
        ("DROP EVENT TRIGGER e", False),
        ("DROP TABLE t", True),
        ("DROP OWNED BY a", True),
        ("REASSIGN OWNED BY a TO b", False),
        ("REINDEX TABLE t", False),
        ("TRUNCATE t", False),
        ("REFRESH MATERIALIZED VIEW m", True),
        ("ALTER SYSTEM SET a = 1", False),
        ("SECURITY LABEL ON ROLE r IS 'x'", False),
    ],
)
def test_statements_that_fire_event_triggers_are_told_from_others(text: str, expected: bool) -> None:
    assert ddl_told.fires(parse_sql(text)[0].stmt) is expected


@pytest.mark.parametrize(
    ("kind", "identity", "expected"),
    [
        ("table", 'public."A b"', 'DROP TABLE IF EXISTS public."A b" CASCADE'),
        ("trigger", "t on public.x", "DROP TRIGGER IF EXISTS t on public.x CASCADE"),
        ("cast", "(a.b AS text)", "DROP CAST IF EXISTS (a.b AS text) CASCADE"),
        ("aggregate", "public.total()", "DROP ROUTINE IF EXISTS public.total() CASCADE"),
        ("operator class", "public.o USING btree", "DROP OPERATOR CLASS IF EXISTS public.o USING btree CASCADE"),
        ("statistics object", "public.s", "DROP STATISTICS IF EXISTS public.s CASCADE"),
    ],
)
def test_an_object_is_dropped_by_its_identity(kind: str, identity: str, expected: str) -> None:
    dropped = event("DROP", kind="sql_drop", objects=[{"type": kind, "identity": identity}])
    [statement] = ddl_drops.drop_statements(dropped)
    assert statement == expected
    parse_sql(statement)


@pytest.mark.parametrize(
    ("kind", "name", "of", "expected"),
    [
        ("user mapping", "b-n", 'f"r', 'DROP USER MAPPING IF EXISTS FOR "b-n" SERVER "f""r"'),
        ("transform", 'a."b c"', "L", 'DROP TRANSFORM IF EXISTS FOR a."b c" LANGUAGE "L" CASCADE'),
    ],
)
def test_what_has_an_identity_without_quotes_is_dropped_by_its_address(
    kind: str, name: str, of: str, expected: str
) -> None:
    dropped = [{"type": kind, "identity": f"{name} on {of}", "names": [name], "args": [of]}]
    [statement] = ddl_drops.drop_statements(event("DROP", kind="sql_drop", objects=dropped))
    assert statement == expected
    parse_sql(statement)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (a)", ["CREATE INDEX  i ON t (a)"]),
        ("CREATE INDEX i ON t (a) TABLESPACE x", ["CREATE INDEX i ON t (a)"]),
        ("ALTER TABLE t SET TABLESPACE x", []),
        ("ALTER TABLE t ADD a int, SET TABLESPACE x", ["ALTER TABLE t ADD COLUMN a integer"]),
        ("GRANT SELECT ON t TO anna, carl", ["GRANT SELECT ON TABLE t TO anna"]),
        ("GRANT SELECT ON t TO carl", []),
        ("REVOKE ALL ON FUNCTION f() FROM PUBLIC", ["REVOKE ALL ON FUNCTION f() FROM PUBLIC"]),
        ("ALTER TABLE t OWNER TO carl", []),
        ("ALTER VIEW v OWNER TO anna", ["ALTER VIEW v OWNER TO anna"]),
        ("ALTER FUNCTION f() OWNER TO carl", []),
        ("CREATE SCHEMA AUTHORIZATION carl", ["CREATE SCHEMA carl"]),
        ("CREATE POLICY p ON t TO carl", []),
        ("CREATE USER MAPPING FOR carl SERVER s", []),
        ("ALTER PUBLICATION archiver_shop ADD TABLE t", []),
        ("CREATE TABLE t (a int) TABLESPACE x", ["CREATE TABLE t (a integer)"]),
    ],
)
def test_what_the_target_lacks_is_taken_out_of_a_statement(text: str, expected: Sequence[str]) -> None:
    assert rewritten(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'CREATE POLICY "ü😀" ON t TO SESSION_USER, Current_Role USING (a = session_user)',
            ['CREATE POLICY "ü😀" ON t TO "ben", "anna" USING (a = session_user)'],
        ),
        (
            "ALTER DEFAULT PRIVILEGES FOR USER SESSION_USER GRANT SELECT ON TABLES TO anna",
            ['ALTER DEFAULT PRIVILEGES FOR USER "ben" GRANT SELECT ON TABLES TO anna'],
        ),
        ("GRANT SELECT ON t TO SESSION_USER GRANTED BY CURRENT_USER", ["GRANT SELECT ON TABLE t TO ben"]),
        ("CREATE USER MAPPING FOR USER SERVER s", ['CREATE USER MAPPING FOR "anna" SERVER s']),
    ],
)
def test_the_roles_of_a_session_are_named(text: str, expected: Sequence[str]) -> None:
    assert rewritten(text, session_role="ben") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CREATE POLICY p ON t TO CURRENT_USER", []),
        ("GRANT SELECT ON t TO CURRENT_ROLE, anna", ["GRANT SELECT ON TABLE t TO anna"]),
        ("REVOKE SELECT ON t FROM SESSION_USER", []),
        ("CREATE SCHEMA AUTHORIZATION CURRENT_USER", ["CREATE SCHEMA carl"]),
        ("DROP OWNED BY CURRENT_USER", []),
    ],
)
def test_a_role_of_the_session_that_is_not_at_the_target_is_not_the_restoring_one(
    text: str, expected: Sequence[str]
) -> None:
    assert rewritten(text, role="carl", session_role="dora") == expected


def test_an_archive_that_does_not_tell_the_session_s_role_leaves_it_as_it_is() -> None:
    text = "CREATE POLICY p ON t TO SESSION_USER"
    assert rewritten(text) == [text]


def test_grants_on_temporary_tables_do_not_travel() -> None:
    found = rewritten("GRANT SELECT ON a, b, public.a TO anna", temporary=frozenset({"a"}))
    assert found == ["GRANT SELECT ON TABLE b, public.a TO anna"]


@pytest.mark.parametrize(
    ("table", "travels"), [("a", False), ("pg_temp.c", False), ("pg_temp_3.c", False), ("public.a", True), ("b", True)]
)
def test_statistics_of_temporary_tables_do_not_travel(table: str, travels: bool) -> None:
    text = f"CREATE STATISTICS s ON x, y FROM {table}"
    assert rewritten(text, temporary=frozenset({"a"})) == [text] * travels


@pytest.mark.parametrize(
    ("value", "type_", "literal"),
    [
        ('{"2026-01-01 00:00:00+00"}', "timestamp with time zone", "'2026-01-01 00:00:00+00'"),
        ("{anna}", "text", "'anna'"),
        (r'{"{a,\"b\\\\c\"}"}', "text[]", r"""E'{a,"b\\\\c"}'"""),
        ("{it's}", "text", "'it''s'"),
    ],
)
def test_a_default_computed_once_is_given_by_its_value(value: str, type_: str, literal: str) -> None:
    missing = {"c": {"type": type_, "value": value, "default": "now()"}}
    first, second = rewritten("ALTER TABLE s.t ADD c text DEFAULT now() NOT NULL", tag="ALTER TABLE", missing=missing)
    added = parse_sql(first)[0].stmt.cmds[0].def_.constraints[0].raw_expr
    assert added == parse_sql(f"SELECT CAST({literal} AS {type_})")[0].stmt.targetList[0].val
    assert second == 'ALTER TABLE "s"."t" ALTER COLUMN "c" SET DEFAULT now()'


def test_numbers_and_truth_values_as_default_are_left_alone() -> None:
    missing = {"c": {"type": "integer", "value": "{5}", "default": "5"}}
    text = "ALTER TABLE t ADD c int DEFAULT 5"
    assert rewritten(text, missing=missing) == [text]


def test_a_new_enum_value_asks_for_a_commit_and_a_renamed_one_does_not() -> None:
    assert for_target("ALTER TYPE m ADD VALUE 'x'", event("ALTER TYPE"), TARGET).commits
    assert not for_target("ALTER TYPE m RENAME VALUE 'x' TO 'y'", event("ALTER TYPE"), TARGET).commits


def test_subscriptions_are_left_out_and_reported() -> None:
    replay = for_target("DROP SUBSCRIPTION s", event("DROP SUBSCRIPTION"), TARGET)
    assert replay.statements == []
    assert "subscriptions" in replay.left_out[0]


@pytest.mark.parametrize(
    "text",
    [
        "GRANT SELECT ON LARGE OBJECT 4711, 4712 TO anna",
        "REVOKE ALL ON LARGE OBJECT 4711 FROM anna",
        "ALTER LARGE OBJECT 4711 OWNER TO anna",
        "COMMENT ON LARGE OBJECT 4711 IS 'x'",
        "SECURITY LABEL ON LARGE OBJECT 4711 IS 'x'",
    ],
)
def test_what_is_said_of_large_objects_is_left_out_and_reported(text: str) -> None:
    replay = for_target(text, event(), TARGET)
    assert (replay.statements, replay.left_out) == ([], ["large objects are not archived"])


def test_a_table_is_made_from_its_description() -> None:
    column = {
        "name": 'a"b',
        "type": "text",
        "not_null": True,
        "collation": 'pg_catalog."C"',
        "default": None,
        "options": None,
    }
    table = {
        "schema": "s", "name": "t", "persistence": "p", "method": "heap", "options": ["fillfactor=70"],
        "server": None, "server_options": None, "columns": [column],
    }  # fmt: skip
    assert create_table(table) == (
        'CREATE TABLE "s"."t" ("a""b" text COLLATE pg_catalog."C" NOT NULL) USING "heap" WITH (fillfactor = \'70\')'
    )
    foreign = table | {"server": "far", "server_options": [["x", "it's"]], "columns": None}
    assert create_table(foreign) == 'CREATE FOREIGN TABLE "s"."t" () SERVER "far" OPTIONS ("x" \'it\'\'s\')'
