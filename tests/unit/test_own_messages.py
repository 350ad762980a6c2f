"""What archiver's own logical messages say: the subtransaction that wrote them, and rows."""

from __future__ import annotations

import pytest

from archiver.errors import IntegrityError
from archiver.format.own_messages import ComputedRows, computed_rows, subtransaction
from archiver.format.pgmessages import LogicalMessage
from archiver.lsn import Lsn


@pytest.mark.parametrize(
    ("prefix", "content", "expected"),
    [
        ("archiver.ddl", b'{"subxact": 4000000000, "tag": "x"}', 4000000000),
        ("archiver.rows", b'{"subxact": 7}', 7),
        ("archiver.ddl", b'{"tag": "of an older trigger"}', None),
        ("archiver.ddl", b"not JSON", None),
        ("archiver.ddl", b"[]", None),
        ("theirs", b'{"subxact": 7}', None),
    ],
)
def test_only_our_own_messages_tell_their_subtransaction(prefix: str, content: bytes, expected: int | None) -> None:
    assert subtransaction(LogicalMessage(True, Lsn(1), prefix, content)) == expected


ROWS = '{"schema": "public", "name": "t", "first": true, "rows": ["(1)"], "subxact": 7}'


def test_computed_rows_are_read() -> None:
    message = LogicalMessage(True, Lsn(1), "archiver.rows", ROWS.encode())
    assert computed_rows(message) == ComputedRows("public", "t", True, ["(1)"])


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "[]",
        "{}",
        "[" * 100_000,
        ROWS.replace('"public"', "7"),
        ROWS.replace("true", '"yes"'),
        ROWS.replace('["(1)"]', "[1]"),
        ROWS.replace('["(1)"]', "null"),
        ROWS.replace('["(1)"]', '"(1)"'),
        ROWS.replace("(1)", r"(\ud800)"),
    ],
)
def test_rows_that_no_trigger_wrote_are_refused_with_their_place(content: str) -> None:
    with pytest.raises(IntegrityError, match="cannot be read") as refused:
        computed_rows(LogicalMessage(True, Lsn(0x16), "archiver.rows", content.encode()))
    assert refused.value.where == "0/16"
    assert refused.value.hint
