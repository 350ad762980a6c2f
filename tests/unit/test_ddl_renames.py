"""Renamings that nobody's lock stops, and the statements that take them back."""

from __future__ import annotations

import pytest

from archiver.format.ddl import Event
from archiver.format.ddl_renames import Rename, rename_of


def renamed(text: str, identity: str, type_: str = "type") -> Rename | None:
    tag = " ".join(text.split()[:2])
    objects = [{"type": type_, "schema": "s", "identity": identity}]
    return rename_of(text, Event("ddl_command_end", tag, "anna", {}, ["s"], objects=objects))


@pytest.mark.parametrize(
    ("text", "identity", "name", "undo", "redo"),
    [
        ('ALTER SCHEMA a RENAME TO "B"', '"B"', "a", 'ALTER SCHEMA "B" RENAME TO "a"', 'ALTER SCHEMA a RENAME TO "B"'),
        ("ALTER TYPE a RENAME TO b", "s.b", "a", 'ALTER TYPE s.b RENAME TO "a"', "ALTER TYPE s.a RENAME TO b"),
        ("ALTER TYPE x.a SET SCHEMA s", "s.a", "a", 'ALTER TYPE s.a SET SCHEMA "x"', "ALTER TYPE x.a SET SCHEMA s"),
        ("ALTER DOMAIN a RENAME TO b", "s.b", "a", 'ALTER DOMAIN s.b RENAME TO "a"', "ALTER DOMAIN s.a RENAME TO b"),
        (
            "ALTER SEQUENCE a RENAME TO b",
            "s.b",
            "a",
            'ALTER SEQUENCE s.b RENAME TO "a"',
            "ALTER SEQUENCE s.a RENAME TO b",
        ),
        (
            "ALTER FUNCTION f RENAME TO g",
            's.g(integer,"X y"."t(")',
            "f",
            'ALTER FUNCTION s.g(integer,"X y"."t(") RENAME TO "f"',
            'ALTER FUNCTION s.f (integer, "X y"."t(") RENAME TO g',
        ),
        (
            "ALTER FUNCTION x.f SET SCHEMA s",
            "s.f()",
            "f",
            'ALTER FUNCTION s.f() SET SCHEMA "x"',
            "ALTER FUNCTION x.f () SET SCHEMA s",
        ),
        (
            "ALTER TYPE a RENAME VALUE 'l' TO 'it''s'",
            "s.a",
            "l",
            "ALTER TYPE s.a RENAME VALUE 'it''s' TO 'l'",
            "ALTER TYPE s.a RENAME VALUE 'l' TO 'it''s'",
        ),
    ],
)
def test_a_renaming_can_be_taken_back_whatever_the_search_path(
    text: str, identity: str, name: str, undo: str, redo: str
) -> None:
    assert renamed(text, identity) == Rename(name, undo, redo, of_label="RENAME VALUE" in text)


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TYPE a RENAME ATTRIBUTE x TO y",
        "ALTER DOMAIN a RENAME CONSTRAINT x TO y",
        "ALTER TYPE a ADD VALUE 'x'",
        "ALTER TYPE a SET SCHEMA s",
        "ALTER TABLE a RENAME TO b",
        "ALTER SCHEMA a OWNER TO anna",
    ],
)
def test_what_renames_no_whole_object_or_is_locked_is_no_renaming(text: str) -> None:
    assert renamed(text, "s.a") is None


def test_an_aggregate_is_left_alone() -> None:
    assert renamed("ALTER ROUTINE a RENAME TO b", "s.b(*)", "aggregate") is None
