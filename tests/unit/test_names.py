"""Names sealed in manifests."""

from __future__ import annotations

from uuid import UUID

import pytest

from archiver.errors import IntegrityError
from archiver.format.names import open_name, seal_name
from archiver.lsn import Lsn

SECRET, ARCHIVE, LSN = bytes(range(32)), UUID(int=7), Lsn(0x16)


@pytest.mark.parametrize("name", ["a", "before öffnung", "x" * 63])
def test_a_name_comes_back_and_shows_nothing_of_its_length(name: str) -> None:
    sealed = seal_name(SECRET, ARCHIVE, LSN, name)
    assert open_name(SECRET, ARCHIVE, LSN, sealed) == name
    assert len(sealed) == 224
    assert sealed != seal_name(SECRET, ARCHIVE, LSN, name)


@pytest.mark.parametrize("name", ["", "x" * 64])
def test_a_name_of_no_or_of_too_many_bytes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        seal_name(SECRET, ARCHIVE, LSN, name)


def test_every_change_is_refused() -> None:
    sealed = seal_name(SECRET, ARCHIVE, LSN, "release")
    for position in range(0, len(sealed), 7):
        digit = "1" if sealed[position] == "0" else "0"
        with pytest.raises(IntegrityError, match="altered"):
            open_name(SECRET, ARCHIVE, LSN, sealed[:position] + digit + sealed[position + 1 :])
    for secret, archive, lsn in ((bytes(32), ARCHIVE, LSN), (SECRET, UUID(int=8), LSN), (SECRET, ARCHIVE, Lsn(1))):
        with pytest.raises(IntegrityError, match="altered"):
            open_name(secret, archive, lsn, sealed)
