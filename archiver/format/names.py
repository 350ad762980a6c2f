"""Names of the database's in manifests: sealed each for itself, so that a manifest shows none.

In: a name of at most 63 bytes and the data key of the day. Out: 224 hex digits, of equal length for every name, and
back. The key is derived from the data key and a random salt, and bound to the archive and to the LSN that is named.
"""

from __future__ import annotations

import os
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from archiver.errors import IntegrityError
from archiver.lsn import Lsn

_CONTEXT: Final = b"archiver name v2\0"
_SALT: Final = 32
_PADDED: Final = 64  # a name, and zeros
_NONCE: Final = bytes(12)  # the key is used once
# 32 bytes of salt, 64 of the padded name, 16 of the tag: 112


def seal_name(secret: bytes, archive: UUID, lsn: Lsn, name: str, *, salt: bytes | None = None) -> str:
    """`salt`: for frozen vectors only. Raises ValueError for a name that is too long."""
    encoded = name.encode("utf-8", "surrogateescape")
    if not 0 < len(encoded) < _PADDED:
        raise ValueError(f"a name of {len(encoded)} bytes")
    salt = salt or os.urandom(_SALT)
    sealed = AESGCM(_key(secret, salt, archive, lsn)).encrypt(_NONCE, encoded.ljust(_PADDED, b"\0"), None)
    return (salt + sealed).hex()


def open_name(secret: bytes, archive: UUID, lsn: Lsn, sealed: str) -> str:
    """Raises IntegrityError."""
    data = bytes.fromhex(sealed)
    try:
        padded = AESGCM(_key(secret, data[:_SALT], archive, lsn)).decrypt(_NONCE, data[_SALT:], None)
    except (InvalidTag, ValueError):
        hint = "Run archiver verify; another region may hold it whole."
        raise IntegrityError("the name of a restore point was altered", where=str(lsn), hint=hint) from None
    return padded.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _key(secret: bytes, salt: bytes, archive: UUID, lsn: Lsn) -> bytes:
    info = _CONTEXT + archive.bytes + lsn.to_bytes(8, "big")
    return HKDF(algorithm=SHA512(), length=32, salt=salt, info=info).derive(secret)
