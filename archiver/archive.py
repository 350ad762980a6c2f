"""An archive as its users see it: who it is, its keys, and the manifest log.

In: a store that spans the regions, and the configured keys. `ManifestLog.append` is the only way anything becomes
part of an archive; it is a conditional write, so that two writers can never both take one place in the log.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID, uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archiver.errors import ConfigError, Fenced, IntegrityError, ObjectExists, ObjectNotFound
from archiver.format import layout, manifest
from archiver.format import wrap as wrapping
from archiver.format.manifest import (
    Archive,
    Changes,
    Drill,
    Entry,
    Fence,
    Gap,
    Lost,
    Manifest,
    ObjectRef,
    Signed,
    Snapshot,
)
from archiver.format.seal import Identity, Kind, Sealer, unseal
from archiver.format.wrap import Purpose
from archiver.keys import SIGNING, Kek, Keyring
from archiver.lsn import Lsn
from archiver.policy import catalog
from archiver.store.mirror import Mirror

_OWNED_BY_DAEMON = (Changes, Fence, Gap)


@dataclass
class LogState:
    """What a writer must know of the log: its end, and the last of each kind that it continues."""

    head: Signed | None = None
    changes: Changes | None = None
    gap: Gap | None = None
    snapshot: Snapshot | None = None
    drill: Drill | None = None
    lost: Lost | None = None

    def observe(self, signed: Signed) -> None:
        self.head = signed
        match signed.entry:
            case Changes():
                self.changes = signed.entry
                self.lost = signed.entry.lost[-1] if signed.entry.lost else self.lost
            case Gap():
                self.gap = signed.entry
            case Snapshot():
                self.snapshot = signed.entry
            case Drill():
                self.drill = signed.entry
            case Fence():
                pass


class ManifestLog:
    """The manifest log in all regions. Read it with `scan`; a writer calls `take_over` or `follow` first."""

    def __init__(self, archive: Archive, store: Mirror) -> None:
        self._archive = archive
        self._store = store
        self._lock = asyncio.Lock()
        self._writer = uuid4()
        self._key: Ed25519PrivateKey | None = None
        self._exclusive = False
        self._unrolled: list[Signed] = []
        self._rolled_up_to = 0
        self.state = LogState()

    @property
    def writer(self) -> UUID:
        """This process's identity in the archive."""
        return self._writer

    async def scan(self) -> AsyncIterator[Signed]:
        """All manifests from the first to the newest, signatures and chain verified. Raises IntegrityError."""
        previous: Signed | None = None
        async for signed in self._stored():
            manifest.check_chain(previous, signed, self._archive.archive)
            yield signed
            previous = signed

    async def follow(self, key: Ed25519PrivateKey) -> None:
        """Become able to append beside a running daemon: for base snapshots and drills, never for changes."""
        self._key = key
        async for signed in self.scan():
            self._observe(signed)
        if self.state.head is not None:
            # A writer may have died between two regions: whoever appends next first completes its work.
            await self._store.put(layout.manifest(self.state.head.seq), self.state.head.data, if_absent=True)

    async def take_over(self, key: Ed25519PrivateKey, fence: Fence) -> None:
        """Become the archive's one writer of changes; a daemon that wrote before stops at its next append."""
        await self.follow(key)
        await self.append(fence)
        self._exclusive = True

    async def append(self, entry: Entry) -> Signed:
        """Commit one entry in every region. Raises Fenced when another daemon has taken over."""
        async with self._lock:
            while True:
                signed = self._next(entry)
                try:
                    await self._store.put(layout.manifest(signed.seq), signed.data, if_absent=True)
                except ObjectExists:
                    await self._accept_other(signed.seq)
                    continue
                self._observe(signed)
                await self._roll_up()
                return signed

    def _next(self, entry: Entry) -> Signed:
        if self._key is None:
            raise RuntimeError("the log was not opened for writing")
        head = self.state.head
        fields = Manifest(
            archive=self._archive.archive,
            seq=head.seq + 1 if head else 1,
            prev=head.hash if head else None,
            writer=self._writer,
            created=datetime.now(UTC),
            entry=entry,
        )
        return manifest.sign(fields, self._key)

    async def _accept_other(self, seq: int) -> None:
        """Another writer took our place in the log: go on behind it, unless it took over the archive."""
        name = layout.manifest(seq)
        other = self._parse(await self._store.get(name))
        manifest.check_chain(self.state.head, other, self._archive.archive)
        if self._exclusive and isinstance(other.entry, _OWNED_BY_DAEMON):
            raise Fenced(
                "another archiver has taken over this archive",
                where=f"manifest {seq}, {_describe(other)}",
                hint="Run one daemon for an archive; this one has confirmed nothing since.",
            )
        # It may have died between two regions; ours must not stand behind a hole in any of them.
        await self._store.put(name, other.data, if_absent=True)
        self._observe(other)

    def _observe(self, signed: Signed) -> None:
        self.state.observe(signed)
        if signed.seq > self._rolled_up_to:
            self._unrolled.append(signed)

    async def _roll_up(self) -> None:
        """Every thousand manifests become one object, so that a restore reads few. Losing one costs only time."""
        while self._exclusive and len(self._unrolled) >= catalog.ROLLUP:
            block = self._unrolled[: catalog.ROLLUP]
            name = layout.rollup(block[0].seq, block[-1].seq)
            await self._store.put(name, catalog.pack([signed.data for signed in block]))
            del self._unrolled[: catalog.ROLLUP]
            self._rolled_up_to = block[-1].seq

    async def _stored(self) -> AsyncIterator[Signed]:
        """Stored manifests in order: from roll-ups as far as they reach without a hole, then one by one."""
        seq = 0
        async for entry in self._store.list(layout.CATALOG):
            span = layout.rollup_range(entry.key)
            if span is not None and span[0] == seq + 1 and (block := await self._rolled_up(entry.key, *span)):
                seq = self._rolled_up_to = span[1]  # first: what is yielded now need not be rolled up again
                for signed in block:
                    yield signed
        names = [entry.key async for entry in self._store.list(layout.MANIFESTS, start_after=layout.manifest(seq))]
        for start in range(0, len(names), _READ_AHEAD):
            for signed in await asyncio.gather(*map(self._read, names[start : start + _READ_AHEAD])):
                yield signed

    async def _rolled_up(self, name: str, first: int, last: int) -> list[Signed]:
        """The manifests of a roll-up; none if it is not whole, for the manifests themselves say the same."""
        try:
            block = [self._parse(data) for data in catalog.unpack(await self._store.get(name))]
        except (IntegrityError, ObjectNotFound):
            return []
        return block if [signed.seq for signed in block] == [*range(first, last + 1)] else []

    async def _read(self, name: str) -> Signed:
        """A manifest from the first region that holds the one that belongs there."""
        return self._parse(await self._store.get_verified(name, lambda data: self._belongs(name, data)))

    def _belongs(self, name: str, data: bytes) -> bool:
        return layout.manifest(self._parse(data).seq) == name

    def _parse(self, data: bytes) -> Signed:
        return manifest.parse(data, self._archive.verifier)


_READ_AHEAD = 16


def _describe(signed: Signed) -> str:
    entry = signed.entry
    who = f"{entry.host} pid {entry.pid}" if isinstance(entry, Fence) else f"writer {signed.manifest.writer}"
    return f"{who} at {manifest.format_time(signed.manifest.created)}"


class OpenArchive:
    """An archive that exists: its identity, keys, log and store."""

    def __init__(self, identity: Archive, store: Mirror, keks: Sequence[Kek]) -> None:
        self.identity = identity
        self.store = store
        self.keys = Keyring(identity.archive, keks, store)
        self.log = ManifestLog(identity, store)

    async def follow(self) -> None:
        """Become able to append beside a daemon: see ManifestLog.follow."""
        await self.log.follow(await self.keys.signing_key(self.identity))

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
            data = await self.store.get_verified(ref.key, lambda data: is_whole(ref, data))
        except ObjectNotFound as exc:
            raise IntegrityError("an object of the archive is missing in every region", where=ref.key) from exc
        secret = await self.keys.secret(ref.key_id)
        return await asyncio.to_thread(unseal, data, self._identity(place, ref.writer, ref.key_id), secret)

    def _identity(self, place: Place, writer: UUID, key_id: str) -> Identity:
        return Identity(
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


def is_whole(ref: ObjectRef, data: bytes) -> bool:
    """True when these are the bytes that a manifest names."""
    return len(data) == ref.size and hashlib.sha256(data).hexdigest() == ref.sha256


def _finish(sealer: Sealer) -> tuple[bytes, str]:
    data = sealer.finish()
    return data, hashlib.sha256(data).hexdigest()


async def open_archive(store: Mirror, name: str, keks: Sequence[Kek]) -> OpenArchive:
    """Open what `create_archive` made. Raises ConfigError when there is none, WrongKey, IntegrityError."""
    try:
        identity = manifest.parse_archive(await store.get_verified(layout.ARCHIVE, _is_archive))
    except ObjectNotFound:
        hint = "Make it with: archiver init"
        raise ConfigError(f"there is no archive {name!r} in the regions", where=store.name, hint=hint) from None
    if identity.name != name:
        raise ConfigError(
            f"the regions hold the archive {identity.name!r}, not {name!r}", hint="Give each archive its own prefix."
        )
    archive = OpenArchive(identity, store, keks)
    await archive.keys.signing_key(identity)
    return archive


def _is_archive(data: bytes) -> bool:
    try:
        manifest.parse_archive(data)
    except IntegrityError:
        return False
    return True


async def create_archive(
    store: Mirror, name: str, keks: Sequence[Kek], *, system_identifier: str, database: str
) -> OpenArchive:
    """Make the archive in every region, or finish making it. Raises ConfigError if it is another database's."""
    try:
        identity = await _create_identity(store, name, keks, system_identifier, database)
    except ObjectExists:
        identity = manifest.parse_archive(await store.get(layout.ARCHIVE))
    require_same_database(identity, system_identifier, database)
    return await open_archive(store, name, keks)


async def _create_identity(
    store: Mirror, name: str, keks: Sequence[Kek], system_identifier: str, database: str
) -> Archive:
    try:
        data = await store.get(layout.ARCHIVE)
        identity = manifest.parse_archive(data)
    except ObjectNotFound:
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
        data = manifest.sign_archive(identity, key)
    await store.put(layout.ARCHIVE, data, if_absent=True)
    return identity


async def _interrupted(store: Mirror) -> UUID | None:
    """The id of an archive whose making ended between its signing key and archive.json."""
    try:
        return wrapping.parse_wrapped(await store.get(layout.key(SIGNING)), None, SIGNING).archive
    except ObjectNotFound:
        return None


def require_same_database(identity: Archive, system_identifier: str, database: str) -> None:
    """Raise ConfigError unless the archive was made for this very database."""
    if (identity.system_identifier, identity.database) != (system_identifier, database):
        raise ConfigError(
            f"this archive belongs to database {identity.database!r} of system {identity.system_identifier}, "
            f"the source is {database!r} of system {system_identifier}",
            hint="Give each database an archive of its own: another [archive] name and prefix.",
        )
