"""The three levels of keys at work: KEKs from their sources, the archive's wrapped keys in the regions.

In: the configured key sources and a store; out: data keys by id and the signing key. Secrets stay in memory;
what is written is wrapped. Without a usable KEK every call raises: no key, no upload.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archiver.errors import (
    ConfigError,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    StoreUnavailable,
    WrongKey,
)
from archiver.format import layout
from archiver.format import wrap as wrapping
from archiver.format.manifest import Archive
from archiver.format.seal import KEY_BYTES
from archiver.key_file import read_key_file
from archiver.kms import KmsKek
from archiver.store.base import Store
from archiver.store.mirror import Mirror
from archiver.tasks import ask_until_answered

SIGNING = "signing"
_SHORTEST_KEY = 43  # 32 bytes in base64: a name as long as that may be a key that was pasted
_SILENT = "the key service does not answer"


class Kek(Protocol):
    """A key-encryption key that may be out of our hands (KMS)."""

    async def wrap(self, secret: bytes, context: bytes) -> wrapping.Wrap: ...

    async def unwrap(self, record: wrapping.Wrap, context: bytes) -> bytes: ...

    def owns(self, record: wrapping.Wrap) -> bool: ...


class LocalKek:
    """A KEK from a file or an environment variable."""

    def __init__(self, kek: bytes) -> None:
        self._kek = kek

    def owns(self, record: wrapping.Wrap) -> bool:
        return record.kek == wrapping.kek_id(self._kek)

    async def wrap(self, secret: bytes, context: bytes) -> wrapping.Wrap:
        return wrapping.wrap(secret, self._kek, context)

    async def unwrap(self, record: wrapping.Wrap, context: bytes) -> bytes:
        return wrapping.unwrap(record, self._kek, context)


class PatientKek:
    """A KEK that is asked until it answers, as the daemon does."""

    def __init__(self, kek: Kek) -> None:
        self._kek = kek

    def owns(self, record: wrapping.Wrap) -> bool:
        return self._kek.owns(record)

    async def wrap(self, secret: bytes, context: bytes) -> wrapping.Wrap:
        return await ask_until_answered(lambda: self._kek.wrap(secret, context), StoreUnavailable, _SILENT)

    async def unwrap(self, record: wrapping.Wrap, context: bytes) -> bytes:
        return await ask_until_answered(lambda: self._kek.unwrap(record, context), StoreUnavailable, _SILENT)


def open_kek(source: str, environ: Mapping[str, str] = os.environ, *, where: str = "[encryption] keys") -> Kek:
    """The KEK behind `file:PATH`, `env:NAME` or `aws-kms:ARN`. Raises ConfigError.

    `where` says where the source stands: a name that was wanted may be a key that was pasted.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "aws-kms":
        return KmsKek(rest)
    if scheme == "file":
        return LocalKek(wrapping.parse_kek(read_key_file(Path(rest)), source))
    shown = rest if len(rest) < _SHORTEST_KEY else where
    if (text := environ.get(rest)) is None:
        hint = "Set it, or mend [encryption]."
        raise ConfigError("the key's environment variable is not set", where=shown, hint=hint)
    return LocalKek(wrapping.parse_kek(text, shown))


class Keyring:
    """The keys of one archive. New keys are wrapped under the first configured KEK."""

    def __init__(self, archive: UUID, keks: Sequence[Kek], store: Mirror) -> None:
        self._archive = archive
        self._keks = keks
        self._store = store
        self._secrets: dict[str, bytes] = {}
        self._writable: set[str] = set()
        self._wrapped: dict[str, bytes] = {}
        self.is_used: Callable[[str], bool] = lambda _key_id: False
        """Whether the log names anything that was sealed under this key."""
        self._lock = asyncio.Lock()

    async def data_key(self, purpose: wrapping.Purpose, at: datetime) -> str:
        """The id of the data key for one purpose and UTC day; made on its first use."""
        key_id = f"{purpose}-{at:%Y-%m-%d}"
        async with self._lock:
            if key_id not in self._writable:
                self._secrets[key_id] = await self._get_or_create(key_id, purpose)
                self._writable.add(key_id)
        return key_id

    async def secret(self, key_id: str) -> bytes:
        """The data key with this id. Raises WrongKey, IntegrityError."""
        async with self._lock:
            if key_id not in self._secrets:
                self._secrets[key_id] = await self._store.first(lambda store: self.open_copy(store, key_id))
        return self._secrets[key_id]

    async def copy(self, key_id: str) -> bytes:
        """The wrapped key as it is stored: from a region, or as it was when it was read. Raises as `secret`."""
        try:
            return await self._store.first(lambda store: self._opened(store, key_id))
        except (ObjectNotFound, IntegrityError):
            if key_id not in self._wrapped:
                raise
            return self._wrapped[key_id]

    def forget(self) -> None:
        """Read every key again when it is next wanted: what a region held may have been replaced."""
        self._secrets.clear()
        self._writable.clear()

    async def open_copy(self, store: Store, key_id: str) -> bytes:
        """The key, as one region holds it. Raises WrongKey, IntegrityError."""
        return await self.open(key_id, await store.get(layout.key(key_id)))

    async def wrapped_by(self, key_ids: Iterable[str]) -> set[str]:
        """The ids of those KEKs of ours that open these keys."""
        records = [wrapping.parse_wrapped(await self._read(key_id), self._archive, key_id) for key_id in key_ids]
        return {wrap.kek for record in records for wrap in record.wraps for kek in self._keks if kek.owns(wrap)}

    async def create_signing_key(self) -> Ed25519PrivateKey:
        """The archive's signing key; the one that is there if there is one."""
        return Ed25519PrivateKey.from_private_bytes(await self._get_or_create(SIGNING, "signing"))

    async def signing_key(self, archive: Archive) -> Ed25519PrivateKey:
        """The signing key, which proves that archive.json is ours: its public half must be the one named there."""
        key = Ed25519PrivateKey.from_private_bytes(await self.secret(SIGNING))
        if key.public_key().public_bytes_raw().hex() != archive.public_key:
            raise IntegrityError("archive.json names a public key that is not ours", hint="Run archiver verify.")
        return key

    async def _get_or_create(self, key_id: str, purpose: wrapping.Purpose) -> bytes:
        """The key, present in every region: a writer may have died after storing it in the first only."""
        name = layout.key(key_id)
        stored = await self._stored(key_id) or await self._new(key_id, purpose)
        try:
            await self._store.put(name, stored, if_absent=True)
        except ObjectExists:  # another writer was quicker, and may have died before it reached every region
            stored = await self._stored(key_id) or stored
            await self._store.put(name, stored, if_absent=True)
        return await self.open(key_id, stored)

    async def _stored(self, key_id: str) -> bytes | None:
        """A copy that opens. What does not is no key where another region has none, and nothing was sealed with it."""

        try:
            return await self._store.first(lambda store: self._opened(store, key_id))
        except ObjectNotFound:
            return None
        except IntegrityError:
            sizes = await self._store.each(lambda store: store.size(layout.key(key_id)))
            if self.is_used(key_id) or None not in sizes.values():
                raise
            return None

    async def _opened(self, store: Store, key_id: str) -> bytes:
        """A region's wrapped key, if it opens."""
        data = await store.get(layout.key(key_id))
        await self.open(key_id, data)
        return data

    async def _read(self, key_id: str) -> bytes:
        """A wrapped key from the first region that holds a sound one."""

        def sound(data: bytes) -> bool:
            return wrapping.parse_wrapped(data, self._archive, key_id).key_id == key_id

        return await self._store.get_verified(layout.key(key_id), sound)

    async def _new(self, key_id: str, purpose: wrapping.Purpose) -> bytes:
        context = wrapping.wrap_context(self._archive, key_id, purpose)
        record = await self._keks[0].wrap(os.urandom(KEY_BYTES), context)
        wrapped = wrapping.WrappedKey(archive=self._archive, key_id=key_id, purpose=purpose, wraps=(record,))
        return wrapped.encode()

    async def open(self, key_id: str, stored: bytes) -> bytes:
        """The key in these bytes. Raises WrongKey, IntegrityError."""
        wrapped = wrapping.parse_wrapped(stored, self._archive, key_id)
        for kek in self._keks:
            for record in filter(kek.owns, wrapped.wraps):
                secret = await kek.unwrap(record, wrapped.context())
                if len(secret) != KEY_BYTES:
                    raise IntegrityError("the wrapped key was altered", where=key_id, hint="Run archiver verify.")
                self._wrapped[key_id] = stored
                return secret
        named = ", ".join(record.kek for record in wrapped.wraps)
        raise WrongKey(
            "none of the configured keys opens the archive",
            where=f"{key_id} is wrapped by {named}",
            hint="Give the key that the archive was made with in [encryption] keys.",
        )
