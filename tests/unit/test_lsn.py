"""LSNs: read and printed as PostgreSQL does, ordered as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import UsageError
from archiver.lsn import Lsn

LSNS = st.integers(0, 2**64 - 1).map(Lsn)
PAGE = 8192


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0/0", 0),
        ("16/B374D848", 0x16_B374D848),
        ("16/b374d848", 0x16_B374D848),
        (" 1/2\n", 0x1_00000002),
        ("00000001/00000002", 0x1_00000002),
        ("FFFFFFFF/FFFFFFFF", 2**64 - 1),
    ],
)
def test_an_lsn_is_read_as_postgresql_writes_it(text: str, value: int) -> None:
    assert Lsn.parse(text) == value


@pytest.mark.parametrize(
    "text", ["", "0", "/", "0/", "/0", "0/0/0", "0x1/2", "1/2 3", "-1/0", "123456789/0", "0/x", "٣/0"]
)
def test_what_is_no_lsn_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="not an LSN") as refused:
        Lsn.parse(text)
    assert "16/B374D848" in str(refused.value.hint)


def test_an_lsn_prints_without_leading_zeros_and_in_upper_case() -> None:
    assert str(Lsn(0x16_0000ABCD)) == "16/ABCD"
    assert repr(Lsn(0)) == "0/0"


def test_a_format_string_prints_an_lsn_and_a_number_when_asked() -> None:
    lsn = Lsn(0x1_00000010)
    assert f"{lsn}" == "1/10"
    assert f"{lsn:>8}" == "    1/10"
    assert f"{lsn:d}" == "4294967312"
    assert f"{lsn:016X}" == "0000000100000010"


@given(LSNS)
def test_what_is_printed_is_read_back(lsn: Lsn) -> None:
    assert Lsn.parse(str(lsn)) == lsn


def test_the_order_is_that_of_the_log_and_not_of_the_spelling() -> None:
    texts = ["0/9", "0/10", "1/0", "9/FFFFFFFF", "10/0"]
    assert [str(lsn) for lsn in sorted(map(Lsn.parse, reversed(texts)))] == texts


@pytest.mark.parametrize("offset", [0, 24])
def test_a_position_behind_a_page_header_is_the_page_border(offset: int) -> None:
    assert Lsn(7 * PAGE + offset).before_page_header() == 7 * PAGE


def test_the_first_page_of_a_wal_segment_has_a_longer_header() -> None:
    assert Lsn((3 << 24) + 40).before_page_header() == 3 << 24


@pytest.mark.parametrize("offset", [32, 40, 100, PAGE - 1])
def test_a_position_further_into_a_page_stays(offset: int) -> None:
    assert Lsn(7 * PAGE + offset).before_page_header() == 7 * PAGE + offset


@given(LSNS)
def test_a_page_border_is_never_moved_again(lsn: Lsn) -> None:
    moved = lsn.before_page_header()
    assert 0 <= lsn - moved <= 40
    assert moved.before_page_header() == moved
