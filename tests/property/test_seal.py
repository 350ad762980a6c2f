"""Sealed objects: what goes in comes out, and nothing that was touched is ever opened."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.errors import IntegrityError
from archiver.format.seal import CHUNK_BYTES, HEADER_BYTES, Identity, Kind, Sealer, inflate, unseal
from archiver.lsn import Lsn

KEY = bytes(range(32))
IDENTITY = Identity(
    archive=UUID(int=1),
    system_identifier=7_000_000_000_000_000_001,
    kind=Kind.CHANGES,
    seq=42,
    writer=UUID(int=2),
    start=Lsn(16),
    end=Lsn(32),
    key_id="changes-2026-11-22",
)


def seal(plaintext: bytes, *, pieces: int = 1, identity: Identity = IDENTITY, key: bytes = KEY) -> bytes:
    sealer = Sealer(identity, key)
    step = max(1, -(-len(plaintext) // pieces))
    for start in range(0, len(plaintext), step):
        sealer.write(plaintext[start : start + step])
    assert sealer.raw_bytes == len(plaintext)
    return sealer.finish()


def open_all(data: bytes, raw_bytes: int, identity: Identity = IDENTITY, key: bytes = KEY) -> bytes:
    return b"".join(inflate(unseal(data, identity, key), raw_bytes))


@given(st.binary(max_size=5000), st.integers(1, 9))
def test_what_is_sealed_in_pieces_opens_as_it_was(plaintext: bytes, pieces: int) -> None:
    assert open_all(seal(plaintext, pieces=pieces), len(plaintext)) == plaintext


@pytest.mark.parametrize("size", [CHUNK_BYTES - 20, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_chunk_borders_are_no_borders_of_the_plaintext(size: int) -> None:
    incompressible = bytes(b for i in range(size // 32 + 1) for b in __import__("hashlib").sha256(b"%d" % i).digest())
    plaintext = incompressible[:size]
    assert open_all(seal(plaintext, pieces=7), size) == plaintext


def test_every_single_bit_change_is_refused() -> None:
    data = seal(b"the only copy of somebody's data")
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << (position % 8)
        with pytest.raises(IntegrityError):
            unseal(bytes(changed), IDENTITY, KEY)


def test_every_truncation_is_refused() -> None:
    data = seal(b"x" * 300)
    for length in range(len(data)):
        with pytest.raises(IntegrityError):
            unseal(data[:length], IDENTITY, KEY)


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_a_missing_chunk_is_refused(dropped: int) -> None:
    step = CHUNK_BYTES + 16
    plaintext = b"".join(__import__("hashlib").sha256(b"%d" % i).digest() for i in range(2 * CHUNK_BYTES // 32 + 9))
    data = seal(plaintext)
    start = HEADER_BYTES + dropped * step
    with pytest.raises(IntegrityError):
        unseal(data[:start] + data[start + step :], IDENTITY, KEY)


def test_what_follows_the_last_chunk_is_refused() -> None:
    data = seal(b"x")
    for extra in (b"\0", data[HEADER_BYTES:], b"\0" * CHUNK_BYTES):
        with pytest.raises(IntegrityError):
            unseal(data + extra, IDENTITY, KEY)


@given(st.data())
def test_an_object_opens_only_in_its_own_place(data: st.DataObject) -> None:
    other = data.draw(
        st.sampled_from(
            [
                replace(IDENTITY, archive=UUID(int=9)),
                replace(IDENTITY, system_identifier=1),
                replace(IDENTITY, kind=Kind.SNAPSHOT),
                replace(IDENTITY, seq=43),
                replace(IDENTITY, writer=UUID(int=3)),
                replace(IDENTITY, start=Lsn(17)),
                replace(IDENTITY, end=Lsn(33)),
                replace(IDENTITY, key_id="changes-2026-11-23"),
            ]
        )
    )
    with pytest.raises(IntegrityError):
        unseal(seal(b"x"), other, KEY)


def test_another_key_is_refused_before_anything_is_decrypted() -> None:
    with pytest.raises(IntegrityError, match="another key"):
        unseal(seal(b"x"), IDENTITY, bytes(32))


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        unseal(data, IDENTITY, KEY)


def test_a_bomb_is_stopped_at_the_size_its_manifest_allows() -> None:
    data = seal(b"\0" * 50_000_000)
    body = unseal(data, IDENTITY, KEY)
    produced = 0
    with pytest.raises(IntegrityError, match="or more"):
        for piece in inflate(body, 1000):
            produced += len(piece)
    assert produced <= 1000


@pytest.mark.parametrize("claimed", [0, 1, 99, 101, 10_000])
def test_a_length_other_than_the_manifest_says_is_refused(claimed: int) -> None:
    body = unseal(seal(b"x" * 100), IDENTITY, KEY)
    with pytest.raises(IntegrityError):
        list(inflate(body, claimed))
