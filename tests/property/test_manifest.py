"""Manifests: signed, chained, spelled in one way only."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import IntegrityError
from archiver.format.manifest import (
    Archive,
    Changes,
    Entry,
    Fence,
    Gap,
    Manifest,
    ObjectRef,
    RestorePoint,
    Signed,
    check_chain,
    parse,
    parse_archive,
    sign,
    sign_archive,
)
from archiver.lsn import Lsn

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ARCHIVE = UUID(int=5)
TIMES = st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
LSNS = st.integers(0, 2**64 - 1).map(Lsn)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
SEALED = st.text("0123456789abcdef", min_size=224, max_size=224)
POINTS = st.builds(RestorePoint, lsn=LSNS, time=TIMES, key_id=TEXT, sealed=SEALED)
ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(Gap, after_lsn=LSNS, before_lsn=LSNS, reason=TEXT),
    st.builds(Fence, host=TEXT, pid=st.integers(0, 2**22), version=TEXT),
    st.builds(
        Changes,
        ordinal=st.integers(1, 2**40),
        connection=st.integers(1, 9),
        start_lsn=LSNS,
        end_lsn=LSNS,
        covered_until=st.none() | TIMES,
        max_commit_time=st.none() | TIMES,
        restore_points=st.lists(POINTS, max_size=2).map(tuple),
        object=st.none()
        | st.builds(
            ObjectRef,
            key=TEXT,
            writer=st.uuids(),
            size=st.integers(0, 2**40),
            sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
            key_id=TEXT,
            raw_bytes=st.integers(0, 2**40),
        ),
    ),
)


def make(entry: Entry, seq: int = 1, prev: str | None = None, archive: UUID = ARCHIVE) -> Signed:
    fields = Manifest(
        archive=archive, seq=seq, prev=prev, writer=UUID(int=6), created=datetime(2026, 11, 22, tzinfo=UTC), entry=entry
    )
    return sign(fields, KEY)


FENCE = Fence(host="h", pid=1, version="0")


@given(ENTRIES)
def test_a_manifest_comes_back_as_it_was_signed(entry: Entry) -> None:
    signed = make(entry)
    assert parse(signed.data, KEY.public_key()) == signed


def test_every_single_bit_change_is_refused() -> None:
    data = make(Gap(after_lsn=Lsn(1), before_lsn=Lsn(2), reason="dropped")).data
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << (position % 8)
        with pytest.raises(IntegrityError):
            parse(bytes(changed), KEY.public_key())


def test_every_truncation_is_refused() -> None:
    data = make(FENCE).data
    for length in range(len(data)):
        with pytest.raises(IntegrityError):
            parse(data[:length], KEY.public_key())


def test_another_spelling_of_the_same_fields_is_refused() -> None:
    data = make(FENCE).data
    for spelled in (data + b"\n", data.replace(b",", b", ", 1), data.upper()):
        with pytest.raises(IntegrityError):
            parse(spelled, KEY.public_key())


def test_another_signer_is_refused() -> None:
    with pytest.raises(IntegrityError, match="signature"):
        parse(make(FENCE).data, OTHER_KEY.public_key())


@given(st.binary(max_size=300) | st.text().map(str.encode))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse(data, KEY.public_key())
    with pytest.raises(IntegrityError):
        parse_archive(data)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(IntegrityError):
        parse(b"[" * 100_000, KEY.public_key())


def test_a_chain_knows_its_order() -> None:
    first = make(FENCE)
    second = make(FENCE, seq=2, prev=first.hash)
    check_chain(None, first, ARCHIVE)
    check_chain(first, second, ARCHIVE)
    for previous, following in [(None, second), (second, first), (first, first), (first, make(FENCE, 2, "0" * 64))]:
        with pytest.raises(IntegrityError):
            check_chain(previous, following, ARCHIVE)
    with pytest.raises(IntegrityError, match="another archive"):
        check_chain(None, make(FENCE, archive=UUID(int=1)), ARCHIVE)


def test_an_archive_is_signed_by_the_key_that_it_names() -> None:
    archive = Archive(
        archive=ARCHIVE,
        name="shop",
        system_identifier="7",
        database="shop",
        public_key=KEY.public_key().public_bytes_raw().hex(),
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )
    assert parse_archive(sign_archive(archive, KEY)) == archive
    with pytest.raises(IntegrityError):
        parse_archive(sign_archive(archive, OTHER_KEY))
