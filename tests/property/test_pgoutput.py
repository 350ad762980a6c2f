"""Whatever the server can write is read back as written; whatever it cannot write is refused, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import IntegrityError
from archiver.format import pgoutput as p
from archiver.lsn import Lsn
from tests.pgoutput_encoder import encode

LSN = st.integers(0, 2**64 - 1).map(Lsn)
U32 = st.integers(0, 2**32 - 1)
TIME = st.datetimes(timezones=st.just(UTC))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
SCHEMA = TEXT.filter(bool)
ROW = st.lists(st.none() | st.just(p.UNCHANGED) | st.binary(max_size=20), max_size=6).map(tuple)
COLUMN = st.builds(p.Column, TEXT, U32, st.integers(-(2**31), 2**31 - 1), st.booleans())
COLUMNS = st.lists(COLUMN, max_size=5).map(tuple)
PREPARED = (LSN, LSN, TIME, U32, TEXT)
SIZE = st.just(0)  # not part of the message: see unsized

MESSAGES = st.one_of(
    st.builds(p.Begin, LSN, TIME, U32),
    st.builds(p.Commit, LSN, LSN, TIME),
    st.builds(p.Origin, LSN, TEXT),
    st.builds(p.Relation, U32, SCHEMA, TEXT, st.sampled_from("dnfi"), COLUMNS),
    st.builds(p.Type, U32, SCHEMA, TEXT),
    st.builds(p.Insert, U32, ROW, SIZE),
    st.builds(p.Update, U32, ROW, st.booleans(), ROW, SIZE),
    st.builds(p.Update, U32, st.none(), st.just(False), ROW, SIZE),
    st.builds(p.Delete, U32, ROW, st.booleans(), SIZE),
    st.builds(p.Truncate, st.lists(U32, max_size=4).map(tuple), st.booleans(), st.booleans()),
    st.builds(p.LogicalMessage, st.booleans(), LSN, TEXT, st.binary(max_size=20)),
    st.builds(p.StreamStart, U32, st.booleans()),
    st.builds(p.StreamStop),
    st.builds(p.StreamCommit, U32, LSN, LSN, TIME),
    st.builds(p.StreamAbort, U32, U32, LSN, TIME),
    st.builds(p.StreamAbort, U32, U32, st.none(), st.none()),
    st.builds(p.BeginPrepare, *PREPARED),
    st.builds(p.Prepare, *PREPARED),
    st.builds(p.CommitPrepared, *PREPARED),
    st.builds(p.RollbackPrepared, LSN, LSN, TIME, TIME, U32, TEXT),
    st.builds(p.StreamPrepare, *PREPARED),
)
XID = st.none() | U32


def unsized(message: p.Message) -> p.Message:
    return message._replace(size=0) if isinstance(message, p.Insert | p.Update | p.Delete) else message


@given(MESSAGES, XID)
def test_a_message_is_read_back_as_it_was_written(message: p.Message, xid: int | None) -> None:
    decoded = p.decode(encode(message, xid=xid), streamed=xid is not None)
    assert unsized(decoded) == message
    assert type(decoded) is type(message)


@given(MESSAGES, XID)
def test_every_truncation_is_refused(message: p.Message, xid: int | None) -> None:
    encoded = encode(message, xid=xid)
    for length in range(len(encoded)):
        if isinstance(message, p.StreamAbort) and length == p.STREAM_ABORT.size:
            continue  # the form without LSN and time
        with pytest.raises(IntegrityError):
            p.decode(encoded[:length], streamed=xid is not None)


@given(MESSAGES, XID, st.binary(min_size=1, max_size=9))
def test_trailing_bytes_are_refused(message: p.Message, xid: int | None, more: bytes) -> None:
    with pytest.raises(IntegrityError):
        p.decode(encode(message, xid=xid) + more, streamed=xid is not None)


@given(st.sampled_from([bytes([tag]) for tag in b"BCORYIUDTMSEcAbPKrp"]), st.binary(max_size=200), st.booleans())
def test_random_bytes_raise_nothing_but_integrity_error(tag: bytes, body: bytes, streamed: bool) -> None:
    for look in (p.decode, p.decode_row):
        with suppress(IntegrityError):
            look(tag + body, streamed=streamed)
    for peek in (p.parse_begin, p.parse_commit):
        with suppress(IntegrityError):
            peek(tag + body)


@given(MESSAGES, XID, st.data())
def test_a_changed_byte_raises_nothing_but_integrity_error(
    message: p.Message, xid: int | None, data: st.DataObject
) -> None:
    encoded = bytearray(encode(message, xid=xid))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with suppress(IntegrityError):
        p.decode(bytes(encoded), streamed=xid is not None)


@given(st.binary(max_size=50))
def test_a_message_of_an_unknown_kind_is_refused(body: bytes) -> None:
    with pytest.raises(IntegrityError, match="malformed pgoutput message"):
        p.decode(b"\x01" + body)
    with pytest.raises(IntegrityError):
        p.decode(b"")


@given(TIME)
def test_a_time_survives_postgresql_s_epoch(time: datetime) -> None:
    assert p.from_pg_time(p.to_pg_time(time)) == time
