"""Change segments: records survive every split of their bytes, and damage is told."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import IntegrityError
from archiver.format.segment import Context, Record, Relation, Sequences, encode, read_records

MESSAGES = st.binary(min_size=1, max_size=60).filter(lambda data: data[0] >= 0x20)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    MESSAGES,
    st.builds(Relation, st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=40)),
    st.builds(Sequences, st.binary(max_size=40)),
    st.builds(Context, st.integers(0, 2**32 - 1)),
)


@given(st.lists(RECORDS, max_size=20), st.lists(st.integers(0, 2000), max_size=30))
def test_records_come_back_whatever_the_pieces(records: list[Record], cuts: list[int]) -> None:
    data = b"".join(encode(record) for record in records)
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(borders)]
    assert list(read_records(pieces)) == records


@given(st.lists(RECORDS, min_size=1, max_size=5))
def test_a_byte_at_a_time_is_as_good(records: list[Record]) -> None:
    data = b"".join(encode(record) for record in records)
    assert list(read_records(data[i : i + 1] for i in range(len(data)))) == records


@given(st.lists(RECORDS, min_size=1, max_size=5), st.data())
def test_a_truncation_inside_a_record_is_refused(records: list[Record], data: st.DataObject) -> None:
    encoded = [encode(record) for record in records]
    cut = data.draw(st.integers(1, len(encoded[-1]) - 1))
    with pytest.raises(IntegrityError):
        list(read_records([b"".join(encoded)[:-cut]]))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_our_own_error(data: bytes) -> None:
    with suppress(IntegrityError):
        list(read_records([data]))


def test_a_length_of_four_gibibytes_is_refused_at_once() -> None:
    with pytest.raises(IntegrityError, match="4294967295 bytes"):
        list(read_records([b"\xff\xff\xff\xff", b"I" * 100]))
