"""pgoutput, byte by byte: the forms that matter, and what PostgreSQL never writes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from archiver.errors import IntegrityError
from archiver.format import pgoutput as p
from archiver.lsn import Lsn


def test_a_transaction_s_frame_is_read() -> None:
    begin = bytes.fromhex("42 00000000 0152D8F0 0002A1B2C3D4E5F6 000002F1")
    assert p.parse_begin(begin) == p.decode(begin)
    assert p.parse_begin(begin).xid == 753
    assert p.parse_begin(begin).final_lsn == Lsn.parse("0/152D8F0")
    commit = bytes.fromhex("43 00 00000000 0152D8F0 00000000 0152D920 0000000000000000")
    assert p.parse_commit(commit) == (0x152D8F0, 0x152D920, datetime(2000, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    "commit", [b"C", b"C\x01" + bytes(24), b"C" + bytes(26), b"C\0" + bytes(16) + b"\x7f" + b"\xff" * 7]
)
def test_a_commit_that_is_peeked_at_is_checked_too(commit: bytes) -> None:
    with pytest.raises(IntegrityError):
        p.parse_commit(commit)


def test_null_empty_and_unchanged_are_three_things() -> None:
    insert = b"I\0\0\x40\0N\0\x03nt\0\0\0\0u"
    assert p.decode(insert) == p.Insert(16384, (None, b"", p.UNCHANGED), len(insert))


def test_a_relation_in_pg_catalog_comes_without_its_schema() -> None:
    assert p.decode(b"R\0\0\0\x05\0t\0f\0\0") == p.Relation(5, "pg_catalog", "t", "f", ())


def test_the_xid_of_a_streamed_message_stands_before_the_relation() -> None:
    streamed = b"I\0\0\x02\xf1\0\0\x40\0N\0\0"
    assert p.decode(streamed, streamed=True) == p.Insert(16384, (), len(streamed))
    assert p.decode_row(streamed, streamed=True) == p.decode(streamed, streamed=True)


def test_a_length_beyond_the_message_is_refused_without_reserving_memory() -> None:
    with pytest.raises(IntegrityError, match="malformed"):
        p.decode(b"I\0\0\x40\0N\0\x01t\xff\xff\xff\xffabc")
    with pytest.raises(IntegrityError, match="malformed"):
        p.decode(b"T\xff\xff\xff\xff\0")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"I\0\0\x40\0N\0\x01b\0\0\0\x01x", "binary"),
        (b"I\0\0\x40\0O\0\0", "tuple kind"),
        (b"D\0\0\x40\0N\0\0", "tuple kind"),
        (b"U\0\0\x40\0K\0\0K\0\0", "tuple kind"),
        (b"R\0\0\0\x05\0t\0x\0\0", "replica identity"),
        (b"R\0\0\0\x05\0t\0f\0\x01\x02c\0\0\0\0\0\0\0\0\0", "column flags"),
        (b"R\0\0\0\x05\0\xff\0f\0\0", "utf-8"),
        (b"C\x01" + bytes(24), "flags"),
        (b"T\0\0\0\0\x04", "options"),
        (b"M\x02" + bytes(8) + b"\0\0\0\0\0", "flags"),
        (b"S\0\0\0\x01\x02", "flags"),
    ],
)
def test_what_postgresql_never_writes_is_refused(message: bytes, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        p.decode(message)


def test_a_time_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(IntegrityError, match="not a time"):
        p.from_pg_time(2**63 - 1)
