"""An archive as its users see it: who it is, its keys, its objects, and the manifest log.

In: a store that spans the regions, and the configured keys. Objects are sealed and stored here; only the log
(archiver.manifest_log) makes them part of the archive.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID, uuid4

from archiver.errors import ConfigError, IntegrityError, ObjectExists, ObjectNotFound
from archiver.format import layout, manifest, seal
from archiver.format import wrap as wrapping
from archiver.format.journal import Point
from archiver.format.manifest import Archive, Changes, Entry, Fence, ObjectRef, RestorePoint
from archiver.format.names import open_name, seal_name
from archiver.format.seal import Kind, Sealer, unseal
from archiver.format.wrap import Purpose
from archiver.identity import Identity, NoArchive, find_identity
from archiver.keys import SIGNING, Kek, Keyring
from archiver.lsn import Lsn
from archiver.manifest_log import ManifestLog
from archiver.store.base import Store
from archiver.store.mirror import Mirror

Names = dict[str, str]
"""Of restore points, by how they are sealed."""


class OpenArchive:
    """An archive that exists: its identity, keys, log and store."""

    def __init__(self, identity: Identity, store: Mirror, keks: Sequence[Kek]) -> None:
        self.identity = identity.archive
        self.identity_data = identity.data
        self.store = store
        self.keys = Keyring(identity.archive.archive, keks, store)
        self.log = ManifestLog(identity.archive, store)
        self.log.damaged = identity.damaged
        store.replicas.is_foreign = self.is_foreign
        self.keys.is_used = lambda key_id: key_id in self.log.state.key_ids
        self.beside: tuple[Store, ...] = ()
        """Regions that are not read, since another one is trusted, and whose end of the log is compared with it."""

    async def follow(self, *, going_on: bool = False) -> None:
        """Become able to append beside a daemon: see ManifestLog.follow."""
        await self.log.follow(await self.keys.signing_key(self.identity), going_on=going_on)

    async def is_foreign(self, name: str, data: bytes) -> bool:
        """Whether these bytes, in the place of archive.json, a key or a manifest, are none of this archive's."""
        if name == layout.ARCHIVE:
            return data != self.identity_data
        try:
            if name.startswith(layout.KEYS):
                await self.keys.open(layout.key_id(name), data)
            elif name.startswith(layout.MANIFESTS):
                return not self.log.reader.belongs(name, data)
        except IntegrityError:
            return True
        return False

    async def take_over(self, fence: Fence) -> None:
        """Become the one writer of changes: see ManifestLog.take_over."""
        await self.log.take_over(await self.keys.signing_key(self.identity), fence)

    async def sealer(self, place: Place) -> Sealer:
        """Begin a sealed object at its place in the archive."""
        key_id = await self.keys.data_key(_PURPOSES[place.kind], datetime.now(UTC))
        return Sealer(self._identity(place, self.log.writer, key_id), await self.keys.secret(key_id))

    async def store_sealed(self, key: str, sealer: Sealer) -> ObjectRef:
        """Finish a sealed object and make it durable in every region; nothing refers to it yet."""
        data, digest = await asyncio.to_thread(_finish, sealer)
        await self.store.put(key, data)
        identity = sealer.identity
        return ObjectRef(
            key=key,
            writer=identity.writer,
            size=len(data),
            sha256=digest,
            key_id=identity.key_id,
            raw_bytes=sealer.raw_bytes,
        )

    async def fetch(self, ref: ObjectRef, place: Place) -> bytes:
        """The compressed body of a sealed object, verified as a whole, from whichever region holds it whole."""
        try:
            data = await self.store.get_verified(ref.key, ref.matches, most=ref.size)
        except ObjectNotFound as exc:
            raise IntegrityError("an object of the archive is missing in every region", where=ref.key) from exc
        secret = await self.keys.secret(ref.key_id)
        return await asyncio.to_thread(unseal, data, self._identity(place, ref.writer, ref.key_id), secret)

    async def seal_point(self, point: Point, time: datetime) -> RestorePoint:
        """A restore point as a manifest may show it."""
        key_id = await self.keys.data_key("changes", datetime.now(UTC))
        sealed = seal_name(await self.keys.secret(key_id), self.identity.archive, point.lsn, point.name)
        return RestorePoint(lsn=point.lsn, time=time, key_id=key_id, sealed=sealed)

    async def names_of(self, entries: Iterable[Entry]) -> Names:
        """The names of the restore points that the log tells of. Raises IntegrityError, WrongKey."""
        points = [point for entry in entries if isinstance(entry, Changes) for point in entry.restore_points]
        archive = self.identity.archive
        return {
            point.sealed: open_name(await self.keys.secret(point.key_id), archive, point.lsn, point.sealed)
            for point in points
        }

    def _identity(self, place: Place, writer: UUID, key_id: str) -> seal.Identity:
        return seal.Identity(
            archive=self.identity.archive,
            system_identifier=int(self.identity.system_identifier),
            kind=place.kind,
            seq=place.seq,
            writer=writer,
            start=place.start,
            end=place.end,
            key_id=key_id,
        )


class Place(NamedTuple):
    """Where a sealed object belongs in the archive; its header is bound to it."""

    kind: Kind
    seq: int
    start: Lsn
    end: Lsn


def drill_place(snapshot_lsn: Lsn, target_lsn: Lsn) -> Place:
    """Where the record of a drill belongs: it speaks of the changes between the two."""
    return Place(Kind.DRILL, 0, snapshot_lsn, target_lsn)


_PURPOSES: dict[Kind, Purpose] = {Kind.CHANGES: "changes", Kind.SNAPSHOT: "snapshots", Kind.DRILL: "snapshots"}


def _finish(sealer: Sealer) -> tuple[bytes, str]:
    data = sealer.finish()
    return data, hashlib.sha256(data).hexdigest()


async def open_archive(store: Mirror, name: str, keks: Sequence[Kek], *, public_key: str | None = None) -> OpenArchive:
    """Open what `create_archive` made; `public_key` pins it. Raises NoArchive, ConfigError, IntegrityError."""
    identity = await find_identity(store, name, keks, public_key)
    if identity.archive.name != name:
        raise ConfigError(
            f"the regions hold the archive {identity.archive.name!r}, not {name!r}",
            hint="Give each archive its own prefix.",
        )
    archive = OpenArchive(identity, store, keks)
    await archive.keys.signing_key(identity.archive)
    return archive


async def create_archive(
    store: Mirror,
    name: str,
    keks: Sequence[Kek],
    *,
    system_identifier: str,
    database: str,
    public_key: str | None = None,
) -> OpenArchive:
    """Make the archive in every region, or finish making it. Raises ConfigError if it is another database's."""
    strict = Mirror(store.stores)  # whatever the durability policy: an archive begins whole
    try:
        identity = await find_identity(strict, name, keks, public_key)
    except NoArchive:
        with suppress(ObjectExists):  # another one was quicker
            await strict.put(
                layout.ARCHIVE, await _new_identity(strict, name, keks, system_identifier, database), if_absent=True
            )
        identity = await find_identity(strict, name, keks, public_key)
    require_same_database(identity.archive, database)
    for region in strict.stores:
        if await region.size(layout.ARCHIVE) is None:
            await region.put(layout.ARCHIVE, identity.data, if_absent=True)
    return await open_archive(store, name, keks, public_key=public_key)


async def _new_identity(store: Mirror, name: str, keks: Sequence[Kek], system_identifier: str, database: str) -> bytes:
    archive_id = await _interrupted(store) or uuid4()
    key = await Keyring(archive_id, keks, store).create_signing_key()
    identity = Archive(
        archive=archive_id,
        name=name,
        system_identifier=system_identifier,
        database=database,
        public_key=key.public_key().public_bytes_raw().hex(),
        created=datetime.now(UTC),
    )
    return manifest.sign_archive(identity, key)


async def _interrupted(store: Mirror) -> UUID | None:
    """The id of an archive whose making ended between its signing key and archive.json."""
    try:
        return wrapping.parse_wrapped(await store.get(layout.key(SIGNING)), None, SIGNING).archive
    except ObjectNotFound:
        return None


def require_same_database(identity: Archive, database: str) -> None:
    """Raise ConfigError unless the archive was made for a database of this name."""
    if identity.database != database:
        raise ConfigError(
            f"this archive belongs to database {identity.database!r}, the source is {database!r}",
            hint="Give each database an archive of its own: another [archive] name and prefix.",
        )


def require_same_server(known: str, found: str) -> None:
    """Raise ConfigError unless the source is the server whose changes are archived: system identifiers."""
    if known != found:
        raise ConfigError(
            f"the source is another server than the one that is archived: system {found}, not {known}",
            hint="To go on with this one: archiver init, then archiver run records a gap. Otherwise "
            "correct [source] dsn.",
        )
