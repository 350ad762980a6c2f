"""Sealed objects: a canonical header, then zstd inside chunked AES-256-GCM. docs/format.md has every byte.

In: an `Identity`, a 32-byte data key and plaintext; out: one object's bytes, and back. `unseal` takes the identity
that it expects from a signed manifest and returns nothing before every chunk of the object has been verified.
No I/O; all damage is an IntegrityError.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from archiver.errors import IntegrityError
from archiver.lsn import Lsn

MAGIC = b"PGARCHIV"
VERSION = 1
SUITE = 1  # HKDF-SHA-512, AES-256-GCM, chunks numbered as in the STREAM construction
ZSTD = 1
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
SALT_BYTES = 32
KEY_BYTES = 32
ZSTD_LEVEL = 1  # faster and smaller than 3 on this kind of data: bench/capture.py
MAX_WINDOW_BYTES = 1 << 27
_OBJECT_CONTEXT = b"archiver object v1"
_HINT = "Run archiver verify; another region may hold it whole."

_IDENTITY = struct.Struct(">8sBBBBI16sQQ16sQQ32s")
HEADER_BYTES = _IDENTITY.size + SALT_BYTES + 32


class Kind(enum.IntEnum):
    """What a sealed object holds."""

    CHANGES = 1
    SNAPSHOT = 2
    DRILL = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """What an object is; every field is bound to its key and to each of its chunks.

    `seq` is the ordinal of a change segment, the number of a part within its base snapshot, or 0 for a drill's record.
    """

    archive: UUID
    system_identifier: int
    kind: Kind
    seq: int
    writer: UUID
    start: Lsn
    end: Lsn
    key_id: str

    def encode(self) -> bytes:
        key_id = self.key_id.encode("ascii")
        if len(key_id) > 32:
            raise ValueError(f"key id longer than 32 bytes: {self.key_id}")
        return _IDENTITY.pack(
            MAGIC, VERSION, SUITE, self.kind, ZSTD, CHUNK_BYTES, self.archive.bytes, self.system_identifier,
            self.seq, self.writer.bytes, self.start, self.end, key_id,
        )  # fmt: skip

    @classmethod
    def decode(cls, header: bytes) -> Self:
        """What an object says of itself, which its key proves. Raises IntegrityError."""
        try:
            *_, kind, _, _, archive, system, seq, writer, start, end, key_id = _IDENTITY.unpack_from(header)
            name = key_id.rstrip(b"\0").decode("ascii")
            found = cls(UUID(bytes=archive), system, Kind(kind), seq, UUID(bytes=writer), Lsn(start), Lsn(end), name)
        except (struct.error, ValueError) as exc:
            raise IntegrityError("the object's header cannot be read", hint=_HINT) from exc
        if found.encode() != header[: _IDENTITY.size]:
            raise IntegrityError("the object's header cannot be read", hint=_HINT)
        return found


def derive(secret: bytes, salt: bytes, context: bytes) -> tuple[bytes, bytes]:
    """An encryption key and the commitment to it (RFC 5869). GCM alone does not commit to its key."""
    okm = HKDF(SHA512(), 2 * KEY_BYTES, salt, context).derive(secret)
    return okm[:KEY_BYTES], okm[KEY_BYTES:]


def _object_key(data_key: bytes, identity: bytes, salt: bytes) -> tuple[bytes, bytes]:
    return derive(data_key, salt, _OBJECT_CONTEXT + hashlib.sha512(identity).digest())


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


class Sealer:
    """Seals one object piece by piece; holds the compressed object, never the whole plaintext."""

    def __init__(self, identity: Identity, data_key: bytes, *, salt: bytes | None = None) -> None:
        self.identity = identity
        salt = salt or os.urandom(SALT_BYTES)
        encoded = identity.encode()
        key, commitment = _object_key(data_key, encoded, salt)
        self._aead = AESGCM(key)
        self._header = encoded + salt + commitment
        self._object = bytearray(self._header)
        self._pending = bytearray()
        self._index = 0
        self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False).compressobj()
        self.raw_bytes = 0

    def __len__(self) -> int:
        """Bytes sealed so far, a chunk's worth less than what was written."""
        return len(self._object) + len(self._pending)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes large data by the chunk: there is no second copy of it."""
        self.raw_bytes += len(data)
        for start in range(0, len(data), CHUNK_BYTES):
            self._take(self._zstd.compress(memoryview(data)[start : start + CHUNK_BYTES]))

    def finish(self) -> bytes:
        """The whole object; nothing can be written after it."""
        self._take(self._zstd.flush())
        self._emit(last=True)
        done, self._object = self._object, bytearray()
        return bytes(done)

    def _take(self, compressed: bytes) -> None:
        self._pending += compressed
        # One byte beyond the chunk: only finish() may seal the last one.
        while len(self._pending) > CHUNK_BYTES:
            self._emit(last=False)

    def _emit(self, *, last: bool) -> None:
        chunk = bytes(self._pending[:CHUNK_BYTES])
        del self._pending[:CHUNK_BYTES]
        self._object += self._aead.encrypt(_nonce(self._index, last), chunk, self._header)
        self._index += 1


def unseal(data: bytes, expected: Identity, data_key: bytes) -> bytes:
    """Verify a whole object and return its compressed body. Raises IntegrityError."""
    identity, salt, commitment, body = _split(data)
    if identity != expected.encode():
        raise IntegrityError("the object's header is not what its manifest says", hint=_HINT)
    key, expected_commitment = _object_key(data_key, identity, salt)
    if not hmac.compare_digest(commitment, expected_commitment):
        raise IntegrityError("the object was altered, or sealed under another key", hint=_HINT)
    return b"".join(_open_chunks(AESGCM(key), data[:HEADER_BYTES], body))


def is_key_of(data: bytes, data_key: bytes) -> bool:
    """Whether an object was sealed under this data key, as its commitment says. Raises IntegrityError if it is cut."""
    identity, salt, commitment, _ = _split(data)
    return hmac.compare_digest(commitment, _object_key(data_key, identity, salt)[1])


def _split(data: bytes) -> tuple[bytes, bytes, bytes, memoryview]:
    if len(data) < HEADER_BYTES + TAG_BYTES:
        raise IntegrityError("the object is cut short", hint=_HINT)
    salt_at = _IDENTITY.size
    commitment_at = salt_at + SALT_BYTES
    return (
        data[:salt_at],
        data[salt_at:commitment_at],
        data[commitment_at:HEADER_BYTES],
        memoryview(data)[HEADER_BYTES:],
    )


def _open_chunks(aead: AESGCM, header: bytes, body: memoryview) -> Iterator[bytes]:
    step = CHUNK_BYTES + TAG_BYTES
    last = (len(body) - 1) // step
    for index in range(last + 1):
        try:
            yield aead.decrypt(_nonce(index, index == last), body[index * step : (index + 1) * step], header)
        except InvalidTag:
            raise IntegrityError(f"chunk {index} of the object was altered or cut", hint=_HINT) from None


def inflate(body: bytes, raw_bytes: int, *, piece: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Decompress an unsealed body in pieces of at most `piece` bytes; exactly `raw_bytes` must come out.

    The bound is the manifest's, so that a hostile body can make neither a large window nor a long output.
    """
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(body)
    total = 0
    try:
        while data := reader.read(min(piece, raw_bytes - total + 1)):
            total += len(data)
            if total > raw_bytes:
                break
            yield data
    except zstandard.ZstdError as exc:
        raise IntegrityError(f"the object does not decompress: {exc}", hint=_HINT) from None
    if total != raw_bytes:
        raise IntegrityError(f"the object holds {total} bytes or more where its manifest says {raw_bytes}", hint=_HINT)
