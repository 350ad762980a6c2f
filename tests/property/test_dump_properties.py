"""Whatever a dump holds, no byte of it is lost, and quoted text never makes a border."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archiver.format.dump import split, statements
from archiver.format.dump_roles import for_target

HEADER = "--\n-- Name: t; Type: TABLE; Schema: public; Owner: bob\n--\n"
PIECES = st.sampled_from(
    [
        HEADER, "\n", "'", '"', "$$", "$a$", "E'", "\\", "--", "/*", "*/", ";", ";\n", "é", "x", " ",
        "SET default_table_access_method = heap;\n\n", "--\n-- PostgreSQL database dump complete\n--\n",
        "ALTER TABLE t OWNER TO bob;", "GRANT SELECT ON t TO bob;", "-- Name: ", "; Type: ACL; Schema: ",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=5)).map("".join)


@given(TEXTS)
def test_entries_join_to_the_dump(text: str) -> None:
    assert "".join(entry.text for entry in split(text)) == text


@given(TEXTS)
def test_statements_join_to_the_text(text: str) -> None:
    assert "".join(statements(text)) == text


@given(TEXTS)
def test_a_quoted_text_is_never_taken_for_ownership_or_a_privilege(text: str) -> None:
    body = "CREATE FUNCTION f() AS '" + text.replace("'", "''") + "';\n\n"
    entries = split(HEADER + body)
    assert for_target(entries, set()) == (entries, [])


@given(st.lists(st.text()))
def test_literals_of_any_content_never_add_an_entry(contents: list[str]) -> None:
    quoted = [HEADER + "COMMENT ON TABLE t IS '" + text.replace("'", "''") + HEADER + "';\n\n" for text in contents]
    assert len(split("".join(quoted))) == 1 + len(contents)
