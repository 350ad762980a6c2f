"""Manifests: small signed JSON objects, chained by hash, each of which commits one thing to the archive.

In: models; out: canonical bytes, and back. A stored manifest is byte for byte the canonical JSON of its fields
and its signature, so that every changed bit is refused. No I/O; all damage is an IntegrityError.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
)

from archiver.errors import IntegrityError
from archiver.lsn import Lsn

MAX_BYTES = 64 << 20  # a manifest lists at most every part of one base snapshot
_MANIFEST_CONTEXT = b"archiver manifest v2\0"
_ARCHIVE_CONTEXT = b"archiver archive v2\0"
_SIGNATURE = b',"signature":"'  # never the first key, and in no string: there its quotes would be escaped
_SIGNATURE_DIGITS = 128
M = TypeVar("M", bound="Model")


def _read_lsn(value: object) -> Lsn:
    return value if isinstance(value, Lsn) else Lsn.parse(str(value))


def _read_time(value: object) -> datetime:
    return value if isinstance(value, datetime) else datetime.strptime(str(value), "%Y-%m-%dT%H:%M:%S.%f%z")


def format_time(value: datetime) -> str:
    """UTC with microseconds, the one spelling of a time in the archive: 2026-11-22T03:00:00.000000Z."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


LsnField = Annotated[Lsn, BeforeValidator(_read_lsn), PlainSerializer(str)]
TimeField = Annotated[datetime, BeforeValidator(_read_time), PlainSerializer(format_time)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _is_empty(value: object) -> bool:
    """Fields that came later are left out where they say nothing: what was signed before stays what it was."""
    return value is None or value == 0


class ObjectRef(Model):
    """A sealed object: its key below the prefix, stored size and hash, data key, and size before compression.

    `writer` is the process that sealed it, as its header says.
    """

    key: str
    writer: UUID
    size: int
    sha256: Sha256
    key_id: str
    raw_bytes: int

    def matches(self, data: bytes) -> bool:
        """True when these are the bytes that were stored."""
        return len(data) == self.size and hashlib.sha256(data).hexdigest() == self.sha256


class CommitRef(Model):
    """A source transaction: its xid, where its commit record starts and ends, and its commit time.

    The time is by the source's clock, unless the commit is `foreign`: another server's, which the source replicates.
    """

    xid: int
    lsn: LsnField
    end_lsn: LsnField
    time: TimeField
    foreign: bool = Field(default=False, exclude_if=_is_empty)


class RestorePoint(Model):
    """A named LSN. `sealed` is the name, under the data key `key_id` (format/names.py); `time` is its commit's."""

    lsn: LsnField
    time: TimeField
    key_id: str
    sealed: Annotated[str, Field(pattern=r"^[0-9a-f]{224}$")]


class Lost(Model):
    """Something that the stream could not carry, committed at `lsn`: what comes after needs a new base snapshot.

    With `since`, it was committed somewhere after that and at or before `lsn`. `reason` is a code of format/journal.py:
    what it was, and its name, stand in the change segment alone.
    """

    lsn: LsnField
    reason: Annotated[str, Field(pattern=r"^[a-z-]{1,40}$")]
    since: LsnField | None = Field(default=None, exclude_if=_is_empty)


class Catalog(Model):
    """What the source's catalog was seen to be: every commit at or before `lsn` is in its digest.

    `digest` is null where event triggers capture schema changes. `losses` counts how often they failed altogether.
    """

    digest: str | None
    lsn: LsnField
    losses: int | None = None


class Changes(Model):
    """A change segment, or with `object` null a proof that nothing was committed between two LSNs.

    Every commit that ends after `start_lsn` and at or before `end_lsn` is in this segment. `covered_until`:
    no later segment holds a commit of an earlier time (source clock). `open_from` is the ordinal of the segment
    in which the oldest transaction begins that is still open at the end of this one. `sequences`: their states were
    read after the last commit, and those that had moved are in the object. `timeline` is the server's that sent it.
    `catalog` was seen after the last commit; null where none was ever seen. `unarchived` tables had nobody excluded and
    the publication did not carry, when the daemon last looked. `first_commit_time` and `max_commit_time`
    are of commits by the source's clock: of the `foreign` ones nobody knows when they came.
    """

    kind: Literal["changes"] = "changes"
    ordinal: int
    connection: int
    timeline: int | None = Field(default=None, exclude_if=_is_empty)
    start_lsn: LsnField
    end_lsn: LsnField
    covered_until: TimeField | None
    messages: int = 0
    commits: int = 0
    foreign: int = 0
    first_commit_time: TimeField | None = None
    max_commit_time: TimeField | None = None
    last_commit: CommitRef | None = None
    open_from: int | None = None
    restore_points: tuple[RestorePoint, ...] = ()
    sequences: bool = False
    lost: tuple[Lost, ...] = ()
    catalog: Catalog | None = Field(default=None, exclude_if=_is_empty)
    unarchived: int = Field(default=0, ge=0, exclude_if=_is_empty)
    object: ObjectRef | None = None


class Snapshot(Model):
    """A complete base snapshot. Part 0 is the sealed index, which names the tables; the others are in its order.

    Of the `tables`, those `without_rows` hold some that the server could not send.
    """

    kind: Literal["snapshot"] = "snapshot"
    snapshot_id: UUID
    lsn: LsnField
    consistent_at: TimeField
    finished_at: TimeField
    server_version: int
    tables: int
    without_rows: int = Field(default=0, ge=0, exclude_if=_is_empty)
    rows: int
    parts: tuple[ObjectRef, ...]


class Gap(Model):
    """A span of LSNs that the archive does not hold: commits that end after `after_lsn` and up to `before_lsn`.

    `timeline` is that of the server at `before_lsn`. With `new_history` the source is not the continuation of what was
    archived (another server, a standby that had not all of it, a server that was set back): positions behind this gap
    are not to be compared with those before, and `before_lsn` may be the lower one. `system_identifier` is given where
    it changed.
    """

    kind: Literal["gap"] = "gap"
    timeline: int | None = Field(default=None, exclude_if=_is_empty)
    new_history: bool = Field(default=False, exclude_if=_is_empty)
    system_identifier: str | None = Field(default=None, exclude_if=_is_empty)
    after_lsn: LsnField
    before_lsn: LsnField
    reason: str


class Fence(Model):
    """A daemon takes over; whoever wrote before it may write no more."""

    kind: Literal["fence"] = "fence"
    host: str
    pid: int
    version: str


class Drill(Model):
    """A drill took place: `snapshot_lsn` was restored and replayed to `target_lsn`; the sealed record says all else.

    `compared_lsn` is the base snapshot whose digests the copy had to have, null where there was none to compare with.
    `recovery_time_seconds` is rounded up.
    """

    kind: Literal["drill"] = "drill"
    drill_id: UUID
    started_at: TimeField
    finished_at: TimeField
    verdict: Literal["passed", "failed"]
    target_lsn: LsnField
    snapshot_lsn: LsnField
    compared_lsn: LsnField | None
    recovery_time_seconds: int
    checks: int
    failed_checks: int
    object: ObjectRef


Entry = Changes | Snapshot | Gap | Fence | Drill


def refs(entry: Entry) -> tuple[ObjectRef, ...]:
    """The objects that a manifest names."""
    match entry:
        case Changes():
            return (entry.object,) if entry.object else ()
        case Snapshot():
            return entry.parts
        case Drill():
            return (entry.object,)
        case _:
            return ()


def key_ids(entry: Entry) -> set[str]:
    """The data keys under which anything is sealed that a manifest holds or names."""
    points = entry.restore_points if isinstance(entry, Changes) else ()
    return {ref.key_id for ref in refs(entry)} | {point.key_id for point in points}


class Manifest(Model):
    """One entry of the manifest log. `prev` is the SHA-256 of the stored bytes of the manifest before it."""

    format: Literal[2] = 2
    archive: UUID
    seq: int
    prev: Sha256 | None
    writer: UUID
    created: TimeField
    entry: Entry = Field(discriminator="kind")


class Archive(Model):
    """archive.json: what this archive is, and the key that signs it. Written once."""

    format: Literal[2] = 2
    archive: UUID
    name: str
    system_identifier: str
    database: str
    public_key: str
    created: TimeField

    @property
    def verifier(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key))


@dataclass(frozen=True, slots=True)
class Signed:
    """A manifest together with the bytes in which it is stored."""

    manifest: Manifest
    data: bytes

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def seq(self) -> int:
        return self.manifest.seq

    @property
    def entry(self) -> Entry:
        return self.manifest.entry


def canonical(fields: dict[str, Any]) -> bytes:
    """Sorted keys, no spaces, UTF-8: one byte string for one value."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sign(model: Model, context: bytes, key: Ed25519PrivateKey) -> bytes:
    fields = model.model_dump(mode="json")
    signature = key.sign(context + canonical(fields)).hex()
    return canonical(fields | {"signature": signature})


def sign(manifest: Manifest, key: Ed25519PrivateKey) -> Signed:
    """Raises IntegrityError for what no reader would accept: it must not be stored."""
    data = _sign(manifest, _MANIFEST_CONTEXT, key)
    parse(data, key.public_key())
    return Signed(manifest, data)


def sign_archive(archive: Archive, key: Ed25519PrivateKey) -> bytes:
    return _sign(archive, _ARCHIVE_CONTEXT, key)


def parse(data: bytes, verifier: Ed25519PublicKey) -> Signed:
    """A stored manifest whose signature holds. Raises IntegrityError."""
    return Signed(_Stored(data, "manifest").verified(Manifest, _MANIFEST_CONTEXT, verifier), data)


def parse_archive(data: bytes) -> Archive:
    """archive.json, signed by the key that it names: keys.py says whether that key is ours."""
    stored = _Stored(data, "archive.json")
    try:
        verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(stored.fields().get("public_key"))))
    except ValueError:
        raise stored.damaged("has no public key") from None
    return stored.verified(Archive, _ARCHIVE_CONTEXT, verifier)


class _Stored:
    def __init__(self, data: bytes, what: str) -> None:
        self._what = what
        self._data = data
        if len(data) > MAX_BYTES:
            raise self.damaged("is larger than any that archiver writes")

    def fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self._data)
        except (ValueError, RecursionError):
            raise self.damaged("is not JSON") from None
        return fields if isinstance(fields, dict) else {}

    def damaged(self, how: str) -> IntegrityError:
        return IntegrityError(f"the {self._what} {how}", hint="Run archiver verify; another region may hold it whole.")

    def verified(self, model: type[M], context: bytes, verifier: Ed25519PublicKey) -> M:
        """Nothing is parsed before its signature holds: what anybody may have written can take any memory."""
        before, found, rest = self._data.rpartition(_SIGNATURE)
        if not found:
            raise self.damaged("bears no signature")
        body = before + rest[_SIGNATURE_DIGITS + 1 :]
        try:
            signature = bytes.fromhex(rest[:_SIGNATURE_DIGITS].decode("ascii"))
            verifier.verify(signature, context + body)
            parsed = model.model_validate_json(body)
        except (InvalidSignature, ValueError):
            raise self.damaged("does not bear the archive's signature") from None
        if self._data != canonical(json.loads(body) | {"signature": signature.hex()}):
            raise self.damaged("is not spelled as it was signed")
        return parsed


def check_chain(previous: Signed | None, following: Signed, archive: UUID, *, begins: bool = False) -> None:
    """Raise IntegrityError unless `following` comes right after `previous` (None: is the first; any if it `begins`)."""
    manifest = following.manifest
    is_begin = begins and previous is None
    expected_seq = previous.seq + 1 if previous else manifest.seq if is_begin else 1
    expected_prev = previous.hash if previous else manifest.prev if is_begin else None
    if manifest.archive != archive:
        raise IntegrityError(f"manifest {manifest.seq} belongs to another archive", where=str(manifest.archive))
    if manifest.seq != expected_seq:
        raise IntegrityError(f"manifest {expected_seq} is missing: {manifest.seq} stands in its place")
    if manifest.prev != expected_prev:
        raise IntegrityError(f"manifest {manifest.seq} does not follow the manifest before it: the log was altered")
