"""What a name in `source.exclude` may mean."""

from __future__ import annotations

import pytest

from archiver.postgres.exclusion import spellings


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("public.session", {("public", "session")}),
        ('public."Session"', {("public", '"Session"'), ("public", "Session")}),
        ('"public"."session"', {('"public"', '"session"'), ("public", "session")}),
        ('"a.b"."c""d"', {('"a', 'b"."c""d"'), ('"a.b"', '"c""d"'), ("a.b", 'c"d')}),
        ("a.b.c", {("a", "b.c"), ("a.b", "c")}),
        ("public.odd'\"\\name", {("public", "odd'\"\\name")}),
        ("session", set()),
        (".session", set()),
        ("public.", set()),
        ("", set()),
    ],
)
def test_a_name_is_read_bare_and_quoted(name: str, expected: set[tuple[str, str]]) -> None:
    assert set(spellings(name)) == expected
