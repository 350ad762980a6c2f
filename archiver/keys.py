"""The three levels of keys at work: KEKs from their sources, the archive's wrapped keys in the regions.

In: the configured key sources and a store; out: data keys by id and the signing key. Secrets stay in memory;
what is written is wrapped. Without a usable KEK every call raises: no key, no upload.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archiver.errors import (
    ArchiverError,
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

log = structlog.get_logger()
Found = Mapping[Store, bytes | ArchiverError]
"""A wrapped key that opens, or why there is none, by region."""


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
        self._of_day: dict[str, str] = {}
        self._wrapped: dict[str, bytes] = {}
        self.is_used: Callable[[str], bool] = lambda _key_id: False
        """Whether the log names anything that was sealed under this key."""
        self._lock = asyncio.Lock()

    async def data_key(self, purpose: wrapping.Purpose, at: datetime) -> str:
        """The id of a data key for one purpose and UTC day; made on its first use.

        It is the name of the day. A key that may come back under that name gets no other beside it: then the new one
        has a longer name. Raises WrongKey where a region holds one that a KEK which we lack may open.
        """
        day = f"{purpose}-{at:%Y-%m-%d}"
        async with self._lock:
            if day not in self._of_day:
                self._of_day[day] = await self._key_of_day(day, purpose)
        return self._of_day[day]

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
        self._of_day.clear()

    async def open_copy(self, store: Store, key_id: str) -> bytes:
        """The key, as one region holds it. Raises WrongKey, IntegrityError."""
        return await self.open(key_id, await store.get(layout.key(key_id)))

    async def wrapped_by(self, key_ids: Iterable[str]) -> set[str]:
        """The ids of those KEKs of ours that open these keys."""
        records = [wrapping.parse_wrapped(await self._read(key_id), self._archive, key_id) for key_id in key_ids]
        return {wrap.kek for record in records for wrap in record.wraps for kek in self._keks if kek.owns(wrap)}

    async def create_signing_key(self) -> Ed25519PrivateKey:
        """The archive's signing key; the one that is there if there is one."""
        found = await self._find(SIGNING)
        if (stored := _sound(found)) is None and not self._is_free(SIGNING, found):
            raise next(each for each in _errors(found) if not isinstance(each, ObjectNotFound))
        stored = stored or await self._new(SIGNING, "signing")
        return Ed25519PrivateKey.from_private_bytes(await self._complete(SIGNING, stored))

    async def signing_key(self, archive: Archive) -> Ed25519PrivateKey:
        """The signing key, which proves that archive.json is ours: its public half must be the one named there."""
        key = Ed25519PrivateKey.from_private_bytes(await self.secret(SIGNING))
        if key.public_key().public_bytes_raw().hex() != archive.public_key:
            raise IntegrityError("archive.json names a public key that is not ours", hint="Run archiver verify.")
        return key

    async def _key_of_day(self, day: str, purpose: wrapping.Purpose) -> str:
        found, key_id = await self._find(day), day
        if (stored := _sound(found)) is None:
            if not self._is_free(day, found):
                self._tell_lost(day, found)
                key_id = f"{day}-{secrets.token_hex(4)}"
            stored = await self._new(key_id, purpose)
        self._secrets[key_id] = await self._complete(key_id, stored)
        return key_id

    async def _find(self, key_id: str) -> Found:
        """What each region holds under this id, those that are behind included. Waits, or raises, until one answers."""

        async def opened(store: Store) -> bytes:
            return await self._opened(store, key_id)

        while True:
            found = await self._store.each(opened)
            if not all(error.transient for error in _errors(found)) or _sound(found):
                return found
            with suppress(ObjectNotFound, IntegrityError):  # one that answers meanwhile
                await self._store.first(opened)

    def _is_free(self, key_id: str, found: Found) -> bool:
        """Whether a key of this id may be made: there is none in any region, nor one that might come back.

        What does not open is none where another region has nothing. What the log names was there once.
        """
        errors = _errors(found)
        is_seen = all(isinstance(error, ObjectNotFound | IntegrityError) for error in errors)
        return is_seen and any(isinstance(error, ObjectNotFound) for error in errors) and not self.is_used(key_id)

    def _tell_lost(self, day: str, found: Found) -> None:
        """Say which regions lack a key that the log names.

        Raises WrongKey: to give the KEK that opens it is a matter of the configuration.
        """
        for error in _errors(found):
            if isinstance(error, WrongKey):
                raise error
        if not self.is_used(day):
            return  # a region that does not answer may hold one
        name = layout.key(day)
        log.error("the data key of this day is lost, or out of reach: another one is made", key=name,
                  hint="archiver verify --repair, or bring it back from the bucket's older versions")  # fmt: skip
        for region, what in found.items():
            if isinstance(what, ObjectNotFound | IntegrityError):
                self._store.tell_damaged(region.name, f"{name}: {what.message}")

    async def _complete(self, key_id: str, stored: bytes) -> bytes:
        """The key, present in every region: a writer may have died after storing it in the first only."""
        name = layout.key(key_id)
        try:
            await self._store.put(name, stored, if_absent=True)
        except ObjectExists:  # another writer was quicker, and may have died before it reached every region
            stored = _sound(await self._find(key_id)) or stored
            await self._store.put(name, stored, if_absent=True)
        return await self.open(key_id, stored)

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


def _sound(found: Found) -> bytes | None:
    return next((each for each in found.values() if isinstance(each, bytes)), None)


def _errors(found: Found) -> list[ArchiverError]:
    return [each for each in found.values() if isinstance(each, ArchiverError)]
