"""What archiver's own logical messages say of the subtransaction that wrote them."""

from __future__ import annotations

import pytest

from archiver.format.own_messages import subtransaction
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
