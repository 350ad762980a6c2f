"""Keys that wrap keys: how a data key or the signing key is kept in `keys/`, and the text form of a KEK.

In: 32-byte KEKs and secrets; out: wrapped records, and back. A wrapped key is bound to its archive, its id and its
purpose, and commits to the KEK, so that a wrong KEK is told apart from damage. No I/O.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
from typing import Literal
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from archiver.errors import ConfigError, IntegrityError, WrongKey
from archiver.format.manifest import Model, canonical
from archiver.format.seal import KEY_BYTES, SALT_BYTES, derive

_WRAP_CONTEXT = b"archiver wrap v1\0"
_KEK_ID_CONTEXT = b"archiver kek id v1\0"
_KEK_PREFIX = "archiver-kek-1:"
_NONCE = bytes(12)  # every wrap has a key of its own, by its salt

Purpose = Literal["changes", "snapshots", "signing"]


def new_kek() -> bytes:
    return os.urandom(KEY_BYTES)


def format_kek(kek: bytes) -> str:
    """The one line of a key file: a tag, then base64."""
    return _KEK_PREFIX + base64.b64encode(kek).decode()


def parse_kek(text: str, where: str) -> bytes:
    """Read `format_kek`'s form. Raises ConfigError; the text never appears in the message."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        kek = base64.b64decode(lines[0].strip().removeprefix(_KEK_PREFIX), validate=True)
    except (IndexError, binascii.Error, ValueError):
        kek = b""
    if len(lines) != 1 or len(kek) != KEY_BYTES:
        raise ConfigError("this is not a key", where=where, hint="Make one with: archiver key generate FILE")
    return kek


def kek_id(kek: bytes) -> str:
    """A name for a KEK that says nothing about it: 16 hex digits."""
    return hashlib.sha256(_KEK_ID_CONTEXT + kek).hexdigest()[:16]


class Wrap(Model):
    """One KEK's wrapping of a key. `salt` and `commitment` are empty for AWS KMS, which authenticates by itself."""

    kek: str
    salt: str = ""
    commitment: str = ""
    ciphertext: str


class WrappedKey(Model):
    """keys/<key id>.json"""

    format: Literal[1] = 1
    archive: UUID
    key_id: str
    purpose: Purpose
    wraps: tuple[Wrap, ...]

    def context(self) -> bytes:
        return wrap_context(self.archive, self.key_id, self.purpose)

    def encode(self) -> bytes:
        return canonical(self.model_dump(mode="json"))


def wrap_context(archive: UUID, key_id: str, purpose: Purpose) -> bytes:
    return canonical({"archive": str(archive), "key_id": key_id, "purpose": purpose})


def parse_wrapped(data: bytes, archive: UUID | None, key_id: str) -> WrappedKey:
    """Read keys/<key id>.json; `archive` None accepts any. Raises IntegrityError."""
    try:
        wrapped = WrappedKey.model_validate(json.loads(data))
    except (ValueError, RecursionError):
        raise IntegrityError("the wrapped key is damaged", where=key_id, hint="Run archiver verify.") from None
    if (wrapped.archive, wrapped.key_id) != (archive or wrapped.archive, key_id):
        raise IntegrityError("the wrapped key belongs elsewhere", where=key_id, hint="Run archiver verify.")
    return wrapped


def wrap(secret: bytes, kek: bytes, context: bytes) -> Wrap:
    salt = os.urandom(SALT_BYTES)
    key, commitment = derive(kek, salt, _WRAP_CONTEXT + context)
    ciphertext = AESGCM(key).encrypt(_NONCE, secret, context)
    return Wrap(kek=kek_id(kek), salt=salt.hex(), commitment=commitment.hex(), ciphertext=ciphertext.hex())


def unwrap(record: Wrap, kek: bytes, context: bytes) -> bytes:
    """The secret. Raises WrongKey when `kek` is another key, IntegrityError when the record was altered."""
    try:
        key, commitment = derive(kek, bytes.fromhex(record.salt), _WRAP_CONTEXT + context)
        if not hmac.compare_digest(commitment, bytes.fromhex(record.commitment)):
            raise WrongKey("this key does not open the archive", where=record.kek)
        return AESGCM(key).decrypt(_NONCE, bytes.fromhex(record.ciphertext), context)
    except (InvalidTag, ValueError):
        raise IntegrityError("the wrapped key was altered", where=record.kek, hint="Run archiver verify.") from None
