"""What entries of the journal say."""

from __future__ import annotations

from typing import Any

import pytest

from archiver.errors import IntegrityError
from archiver.format.journal import ComputedRows, Entry, computed_rows, parse_entry
from archiver.lsn import Lsn
from tests.unit.frames import JOURNAL, journal_row

ROWS: dict[str, Any] = {"schema": "public", "name": "t", "first": True, "rows": ["(1)"], "lsn": "0/16"}


def test_an_entry_is_read_by_the_names_of_its_columns() -> None:
    assert parse_entry(JOURNAL, journal_row("ddl", {"tag": "x", "lsn": "0/16"})) == Entry(
        "2f0c", "ddl", Lsn(0x16), {"tag": "x", "lsn": "0/16"}
    )


@pytest.mark.parametrize("said", ["not JSON", "[]", "[" * 100_000, '{"lsn": 7}', '{"lsn": "x"}'])
def test_an_entry_that_no_trigger_wrote_is_refused(said: str) -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        parse_entry(JOURNAL, journal_row("ddl", said))
    with pytest.raises(IntegrityError, match="cannot be read"):
        parse_entry(JOURNAL, (b"2f0c", None, None, None, b"{}"))


def test_computed_rows_are_read() -> None:
    assert computed_rows(parse_entry(JOURNAL, journal_row("rows", ROWS))) == ComputedRows("public", "t", True, ["(1)"])


@pytest.mark.parametrize(
    "wrong", [{"schema": 7}, {"first": "yes"}, {"rows": [1]}, {"rows": None}, {"rows": "(1)"}, {"name": None}]
)
def test_rows_that_no_trigger_wrote_are_refused_with_their_place(wrong: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="cannot be read") as refused:
        computed_rows(parse_entry(JOURNAL, journal_row("rows", ROWS | wrong)))
    assert refused.value.where == "0/16"
    assert refused.value.hint
