"""The digest's definition, pinned by a vector worked out from its words."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from archiver.errors import IntegrityError
from archiver.format.digest import RowDigest


def digest(*rows: bytes) -> RowDigest:
    result = RowDigest()
    result.update(rows)
    return result


def test_the_digest_is_the_count_and_the_sum_of_the_rows_hashes() -> None:
    rows = [b"1\tone\n", b"2\t\\N\n"]
    total = sum(int.from_bytes(blake2b(row, digest_size=32).digest(), "little") for row in rows) % 2**256
    assert str(digest(*rows)) == f"2:{total:064x}"


def test_an_empty_table_has_a_digest_of_zeros() -> None:
    assert str(RowDigest()) == "0:" + 64 * "0"


def test_equal_rows_count_as_often_as_they_occur() -> None:
    assert digest(b"x\n") != digest(b"x\n", b"x\n")


def test_a_null_differs_from_an_empty_string_and_from_its_spelling() -> None:
    assert len({str(digest(row)) for row in (b"\\N\n", b"\n", b"\\\\N\n")}) == 3


@pytest.mark.parametrize("text", ["", "1", "1:ff", "-1:" + 64 * "0", "1:" + 64 * "G"])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError):
        RowDigest.parse(text)
