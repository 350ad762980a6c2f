"""pg_dump's output: borders, order of restoration, what is archiver's, roles."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from archiver.format.dump import END, PREAMBLE, Entry, Script, for_restore, split, statements, unquote
from archiver.format.dump_roles import for_target


def entry(kind: str, name: str, body: str, *, schema: str = "public", owner: str = "bob") -> str:
    return f"--\n-- Name: {name}; Type: {kind}; Schema: {schema}; Owner: {owner}\n--\n\n{body}\n\n\n"


PRE = """\
--
-- PostgreSQL database dump
--

\\restrict abc

SET statement_timeout = 0;
SET transaction_timeout = 0;

"""
POST = "--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n\n"


def dump(*entries: str) -> str:
    return PRE + "".join(entries) + POST


def script(
    *entries: str, publication: str = "archiver_shop", settings: Collection[str] = ("statement_timeout",)
) -> Script:
    return for_restore(split(dump(*entries)), publication=publication, settings=settings)


def one(kind: str, name: str, body: str, **fields: str) -> Entry:
    return split(dump(entry(kind, name, body, **fields)))[1]


def names(entries: list[Entry]) -> list[str]:
    return [item.name for item in entries]


def test_entries_carry_the_fields_of_their_header() -> None:
    first, table, last = split(dump(entry("TABLE", "t", "CREATE TABLE t ();")))
    assert (first.type, last.type) == (PREAMBLE, END)
    assert (table.name, table.type, table.schema, table.owner) == ("t", "TABLE", "public", "bob")
    assert table.label == "TABLE public.t"


def test_a_tablespace_is_no_part_of_the_owner() -> None:
    assert one("TABLE", "t", "CREATE TABLE t ();", owner="bob; Tablespace: fast").owner == "bob"


FAKE = "\n--\n-- Name: fake; Type: TABLE; Schema: public; Owner: eve\n--\n"


@pytest.mark.parametrize(
    "body",
    [
        f"COMMENT ON TABLE t IS 'it''s{FAKE}';",
        f"COMMENT ON TABLE t IS E'it\\'s{FAKE}';",
        f"CREATE FUNCTION f() AS $${FAKE}$$;",
        f"CREATE FUNCTION f() AS $_$ $$ ' {FAKE}$_$;",
        f'CREATE FUNCTION f() AS $ü1$ $_$ " {FAKE}$ü1$;',
        f'CREATE TABLE "a""b{FAKE}" ();',
        f"CREATE VIEW v AS /* {FAKE} */ SELECT 1;",
        f"CREATE TABLE t (a date DEFAULT date'2020-01-01', b text DEFAULT '\\', c text DEFAULT '{FAKE}');",
    ],
)
def test_a_header_inside_a_string_a_body_or_a_name_is_no_border(body: str) -> None:
    entries = split(dump(entry("TABLE", "t", body), entry("TABLE", "u", "CREATE TABLE u ();")))
    assert names(entries) == ["", "t", "u", ""]


ODD = "x; Owner: y; Type: TABLE; Schema: archiver"


@pytest.mark.parametrize(
    "odd",
    [
        ODD,
        "x; Type: SCHEMA; Schema: -; Owner: y",
        "x; Owner: y",
        "archiver; Owner: y; Type: TABLE",
        ODD.replace("x;", "x\n;"),
    ],
)
def test_what_a_header_means_is_told_by_its_statement(odd: str) -> None:
    line = odd.replace("\n", " ")
    text = "".join(
        f"--\n-- Name: {name}; Type: {kind}; Schema: {schema}; Owner: me\n--\n\n{body}\n\n"
        for name, kind, schema, body in (
            (line, "SCHEMA", "-", f'CREATE SCHEMA "{odd}";'),
            ("t", "TABLE", line, f"CREATE TABLE \"{odd}\".t (a text DEFAULT 'archiver.t');"),
            (line, "TABLE", "shop", f'CREATE TABLE shop."{odd}" (a archiver.t);'),
            (f'SCHEMA "{line}"', "ACL", "-", f'GRANT USAGE ON SCHEMA "{odd}" TO archiver;'),
        )
    )
    found = [(entry.name, entry.type, entry.schema, entry.owner) for entry in split(text)[1:]]
    assert found == [
        (line, "SCHEMA", "-", "me"),
        ("t", "TABLE", line, "me"),
        (line, "TABLE", "shop", "me"),
        (f'SCHEMA "{line}"', "ACL", "-", "me"),
    ]


def test_a_setting_written_before_a_header_goes_with_that_entry_and_those_after_it() -> None:
    text = dump(
        entry("TABLE", "a", "CREATE TABLE a ();"),
        "SET default_table_access_method = heap;\n\n",
        entry("TABLE", "b", "CREATE TABLE b ();"),
        entry("TABLE", "c", "CREATE TABLE c ();"),
    )
    _, a, b, c, _ = split(text)
    assert "default_table_access_method" not in a.sql
    assert b.text.startswith("SET default_table_access_method")
    assert c.sql.startswith("SET default_table_access_method = heap;")


def test_statements_end_at_semicolons_outside_of_quotes() -> None:
    text = "-- one; two\nCREATE TABLE \";\" ();\n\nCOMMENT ON x IS ';';\nSELECT $$;$$;"
    assert [part.strip()[-3:] for part in statements(text)] == ["();", "';'"[1:] + ";", "$$;"]
    assert "".join(statements(text)) == text


def test_what_psql_alone_understands_is_left_out() -> None:
    assert "\\restrict" not in script().preamble.text
    assert "statement_timeout" in script().preamble.text


@pytest.mark.parametrize("known", ["statement_timeout", "transaction_timeout"])
def test_a_setting_is_left_out_for_targets_that_do_not_know_it(known: str) -> None:
    """Whatever its name: a pg_dump that is newer than this sets what nobody knows yet."""
    preamble = script(settings=[known]).preamble.text
    assert [name for name in ("statement_timeout", "transaction_timeout") if name in preamble] == [known]


def test_entries_are_sorted_into_the_steps_of_a_restoration() -> None:
    sorted_ = script(
        entry("TABLE", "t", "-"),
        entry("DEFAULT", "t id", "-"),
        entry("CONSTRAINT", "t t_pkey", "-"),
        entry("MATERIALIZED VIEW", "postponed", "-"),
        entry("INDEX", "i", "-"),
        entry("COMMENT", 'INDEX "i"', "-"),
        entry("RULE", "v _RETURN", "-"),
        entry("RULE", "t protect", "-"),
        entry("TRIGGER", "t tr", "-"),
        entry("COMMENT", 'TRIGGER "tr" ON "t"', "-"),
        entry("FK CONSTRAINT", "t fk", "-"),
        entry("POLICY", "t p", "-"),
        entry("PUBLICATION", "mine", "-", schema="-"),
        entry("ACL", 'TABLE "t"', "-"),
        entry("EVENT TRIGGER", "e", "-", schema="-"),
    )
    assert names(sorted_.pre) == ["t", "t id"]
    assert names(sorted_.keys) == ["t t_pkey", "postponed", "i", 'INDEX "i"', "v _RETURN"]
    assert names(sorted_.late) == ["t protect", "t tr", 'TRIGGER "tr" ON "t"', "t fk", "t p", "mine", 'TABLE "t"', "e"]


def test_a_comment_on_a_constraint_within_a_table_keeps_no_other_table_from_its_rows() -> None:
    sorted_ = script(
        entry("TABLE", "a", "-"),
        entry("COMMENT", "CONSTRAINT positive ON a", "-"),
        entry("TABLE", "b", "-"),
        entry("CONSTRAINT", "a a_pkey", "-"),
    )
    assert (names(sorted_.pre), names(sorted_.keys)) == (["a", "b"], ["a a_pkey"])
    assert names(sorted_.late) == ["CONSTRAINT positive ON a"]


def _owned(kind: str, signature: str) -> str:
    return f"CREATE {kind} public.{signature} …;\n\n\nALTER {kind} public.{signature} OWNER TO bob;"


def test_rights_on_what_everybody_may_use_come_right_after_it() -> None:
    sorted_ = script(
        entry("SCHEMA", "s", "-", schema="-"),
        entry("EXTENSION", "x", "-", schema="-"),
        entry("TYPE", "mood", "-"),
        entry("FUNCTION", "Odd name(integer, text)", _owned("FUNCTION", '"Odd name"(a integer, text)')),
        entry("TABLE", "t", "-"),
        entry("INDEX", "i", "-"),
        entry("AGGREGATE", "late(integer)", _owned("AGGREGATE", "late(integer)")),
        entry("ACL", "SCHEMA public", "-", schema="-"),
        entry("ACL", "SCHEMA s", "-", schema="-"),
        entry("ACL", "FUNCTION of_an_extension()", "-"),
        entry("ACL", 'FUNCTION "Odd name"(a integer, text)', "-"),
        entry("ACL", "FUNCTION late(integer)", "-"),
        entry("ACL", "TYPE mood", "-"),
        entry("ACL", "TABLE t", "-"),
    )
    assert names(sorted_.pre) == [
        *("s", "SCHEMA s", "x", "SCHEMA public", "FUNCTION of_an_extension()"),
        *("mood", "TYPE mood", "Odd name(integer, text)", 'FUNCTION "Odd name"(a integer, text)', "t"),
    ]
    assert names(sorted_.keys) == ["i", "late(integer)", "FUNCTION late(integer)"]
    assert names(sorted_.late) == ["TABLE t"]


@pytest.mark.parametrize(
    "name", ["SET default_tablespace = x", "SET default_tablespace = '';\n\n", "\n;SET default_tablespace = '';\n\n"]
)
def test_a_name_that_reads_like_a_setting_is_none(name: str) -> None:
    header = name.replace("\n", " ")
    _, first, second, _ = split(
        dump(
            entry("TABLE", header, f'ALTER TABLE public."{name}" OWNER TO bob;').rstrip() + "\n\n",
            entry("TABLE", "b", "-"),
        )
    )
    assert (first.name, second.name) == (header, "b")
    assert (first.state, second.state, second.text[:2]) == ((), (), "--")


@pytest.mark.parametrize(
    ("kind", "name", "schema", "body"),
    [
        ("SCHEMA", "archiver", "-", "CREATE SCHEMA archiver;"),
        ("COMMENT", "SCHEMA archiver", "-", "-"),
        ("COMMENT", 'SCHEMA "archiver"', "-", "-"),
        ("ACL", 'SCHEMA "archiver"', "-", "-"),
        ("TABLE", "t", "archiver", "-"),
        ("EVENT TRIGGER", "archiver_ddl", "-", "-"),
        ("COMMENT", 'EVENT TRIGGER "archiver_ddl"', "-", "-"),
        ("PUBLICATION", "archiver_shop", "-", "-"),
        ("COMMENT", 'PUBLICATION "archiver_shop"', "-", "-"),
        ("PUBLICATION TABLE", "archiver_shop t", "public", 'ALTER PUBLICATION "archiver_shop" ADD TABLE ONLY "t";'),
    ],
)
def test_what_is_archivers_is_left_out(kind: str, name: str, schema: str, body: str) -> None:
    result = script(entry(kind, name, body, schema=schema))
    assert [*result.pre, *result.keys, *result.late] == []


@pytest.mark.parametrize(
    ("kind", "name", "schema", "body"),
    [
        ("SCHEMA", "archiver2", "-", "-"),
        ("TABLE", "archiver", "public", "-"),
        ("PUBLICATION", "archiver_other", "-", "-"),
        ("PUBLICATION TABLE", "archiver_shop t", "public", 'ALTER PUBLICATION "archiver_shop t" ADD TABLE ONLY "x";'),
        ("TRIGGER", "t archiver_x", "public", "-"),
    ],
)
def test_what_only_sounds_like_archivers_is_kept(kind: str, name: str, schema: str, body: str) -> None:
    result = script(entry(kind, name, body, schema=schema))
    assert len([*result.pre, *result.keys, *result.late]) == 1


def test_schema_public_is_not_made_twice() -> None:
    assert "IF NOT EXISTS" in script(entry("SCHEMA", "public", 'CREATE SCHEMA "public";', schema="-")).pre[0].text


def test_an_owner_that_the_target_lacks_is_left_out_and_reported() -> None:
    item = one("TABLE", "t", 'CREATE TABLE "t" ();\n\n\nALTER TABLE "public"."t" OWNER TO "b""ob";')
    [kept], [skipped] = for_target([item], {"eve"})
    assert "CREATE TABLE" in kept.text
    assert "OWNER" not in kept.text
    assert (skipped.entry, skipped.reason) == ("TABLE public.t", 'no role b"ob')
    assert skipped.statement == 'ALTER TABLE "public"."t" OWNER TO "b""ob";'


def test_an_owner_that_may_not_be_set_is_left_out_though_its_grants_stay() -> None:
    table = one("TABLE", "t", "CREATE TABLE t ();\n\nALTER TABLE public.t OWNER TO bob;")
    grant = one("ACL", "TABLE t", "GRANT SELECT ON TABLE public.t TO bob;")
    kept, skipped = for_target([table, grant], {"bob"}, owners={"me"})
    assert len(kept) == 2
    assert [item.entry for item in skipped] == ["TABLE public.t"]


def test_text_that_reads_like_an_owner_or_a_grant_inside_a_body_stays() -> None:
    body = "CREATE FUNCTION f() AS $$\nALTER TABLE t OWNER TO eve;\nGRANT SELECT ON t TO eve;\n$$;"
    item = one("FUNCTION", "f()", body)
    assert for_target([item], set()) == ([item], [])


def test_privileges_stay_for_the_roles_that_are_there() -> None:
    item = one(
        "ACL",
        'TABLE "t"',
        'REVOKE ALL ON TABLE "t" FROM PUBLIC;\nGRANT SELECT ON TABLE "t" TO "bob" WITH GRANT OPTION;\n'
        'SET SESSION AUTHORIZATION "bob";\nGRANT SELECT ON TABLE "t" TO "eve";\nRESET SESSION AUTHORIZATION;\n'
        'GRANT INSERT ON TABLE "t" TO "eve";',
    )
    [kept], skipped = for_target([item], {"bob"})
    assert "PUBLIC" in kept.text
    assert "WITH GRANT OPTION" in kept.text
    assert "eve" not in kept.text
    assert "SESSION AUTHORIZATION" not in kept.text
    assert [item.reason for item in skipped] == ["no role eve", "no role eve"]


def test_an_acl_for_nobody_there_goes_altogether() -> None:
    kept, skipped = for_target([one("ACL", 'TABLE "t"', 'GRANT SELECT ON TABLE "t" TO "eve";')], set())
    assert kept == []
    assert len(skipped) == 1


def test_default_privileges_need_both_roles() -> None:
    text = 'ALTER DEFAULT PRIVILEGES FOR ROLE "bob" IN SCHEMA "s" GRANT SELECT ON TABLES TO "eve";'
    item = one("DEFAULT ACL", "DEFAULT PRIVILEGES FOR TABLES", text)
    assert for_target([item], {"bob", "eve"})[1] == []
    assert for_target([item], {"bob"})[0] == []
    assert for_target([item], {"eve"})[0] == []


def test_a_policy_stays_for_those_of_its_roles_that_are_there() -> None:
    item = one("POLICY", "t p", 'CREATE POLICY "p" ON "s"."t" FOR SELECT TO "bob", "eve" USING (true);')
    [kept], [skipped] = for_target([item], {"bob"})
    assert 'TO "bob" USING (true)' in kept.text
    assert skipped.reason == "no role eve"
    assert for_target([item], set())[0] == []


def test_a_policy_for_everyone_stays() -> None:
    item = one("POLICY", "t p", 'CREATE POLICY "p" ON "s"."t" USING (("x" = \' TO "eve"\'));')
    assert for_target([item], set()) == ([item], [])


def test_a_user_mapping_is_reported_without_its_password() -> None:
    item = one("USER MAPPING", "m", 'CREATE USER MAPPING FOR "eve" SERVER "s" OPTIONS ("password" \'x\');')
    kept, [skipped] = for_target([item], set())
    assert kept == []
    assert "password" not in skipped.statement


@pytest.mark.parametrize(("identifier", "name"), [("plain", "plain"), ('"Q"', "Q"), ('"a""b"', 'a"b')])
def test_identifiers_are_unquoted(identifier: str, name: str) -> None:
    assert unquote(identifier) == name
