"""The digest of parts is the digest of the whole, in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archiver.format.digest import RowDigest

ROWS = st.lists(st.binary(max_size=20), max_size=30)


def digest(rows: list[bytes]) -> RowDigest:
    result = RowDigest()
    result.update(rows)
    return result


@given(ROWS, st.randoms())
def test_order_does_not_matter(rows: list[bytes], random: object) -> None:
    shuffled = sorted(rows, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert digest(shuffled) == digest(rows)


@given(ROWS, ROWS)
def test_parts_add_up(first: list[bytes], second: list[bytes]) -> None:
    assert digest(first).merge(digest(second)) == digest(first + second)


@given(ROWS)
def test_text_reads_back(rows: list[bytes]) -> None:
    assert RowDigest.parse(str(digest(rows))) == digest(rows)


@given(ROWS, st.binary(max_size=20))
def test_one_more_row_shows(rows: list[bytes], extra: bytes) -> None:
    assert digest([*rows, extra]) != digest(rows)
