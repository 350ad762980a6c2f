"""Which archive the regions hold: the right archive.json, told from whatever else may lie in its place.

In: a store that spans the regions, the configured keys, and the public key if the configuration pins one. Out: the
identity, and the bytes that say so in every region that is whole. Whoever may write into a bucket can put an archive of
his own there: the pin, or else our signing key, says which one is meant, and a region that holds another is damaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from archiver.errors import ArchiverError, ConfigError, IntegrityError, ObjectNotFound, StoreError
from archiver.format import layout, manifest
from archiver.format.manifest import Archive
from archiver.keys import Kek, Keyring
from archiver.store.base import Store
from archiver.store.mirror import Mirror


class NoArchive(ConfigError):
    """There is none yet."""


@dataclass(frozen=True, slots=True)
class Identity:
    """archive.json as it should be, its bytes, and what is wrong with it in which region."""

    archive: Archive
    data: bytes
    damaged: Mapping[str, str] = field(default_factory=dict)


async def find_identity(store: Mirror, name: str, keks: Sequence[Kek], public_key: str | None = None) -> Identity:
    """Ask every region, and choose. A region that lacks it, or holds another, is damaged.

    Raises NoArchive, IntegrityError (WrongKey) where no region holds the right one.
    """
    answers = await _ask(store, name, public_key)
    identities = [identity for data in answers.values() if (identity := _parse(data)) is not None]
    wanted = [each for each in identities if public_key in {None, each.archive.public_key}]
    if not wanted:
        raise _is_another(identities, public_key)
    right = await _openable(store, wanted, keks)
    damaged = {region.name: what for region, data in answers.items() if (what := _wrong_with(data, right))}
    for region_name, what in damaged.items():
        store.tell_damaged(region_name, what)
    return replace(right, damaged=damaged)


def _wrong_with(data: bytes | ArchiverError, right: Identity) -> str | None:
    if data == right.data or (isinstance(data, StoreError) and not isinstance(data, ObjectNotFound)):
        return None  # who is silent may hold anything
    return "archive.json is missing" if isinstance(data, ObjectNotFound) else "archive.json is another one"


async def _ask(store: Mirror, name: str, public_key: str | None) -> dict[Store, bytes | ArchiverError]:
    while True:
        answers = await store.each(lambda region: region.get(layout.ARCHIVE))
        if any(isinstance(data, bytes) for data in answers.values()):
            return answers
        try:
            await store.get(layout.ARCHIVE)  # it waits, or raises, as every read does
        except ObjectNotFound:
            raise await _missing(store, name, public_key) from None


async def _missing(store: Mirror, name: str, public_key: str | None) -> ArchiverError:
    """Lost, or never made: an archive has a log, and one that is pinned was made."""
    is_made = public_key is not None
    async for entry in store.list(layout.MANIFESTS):
        is_made = is_made or layout.manifest_seq(entry.key) is not None
    if not is_made:
        hint = "Make it with: archiver init"
        return NoArchive(f"there is no archive {name!r} in the regions", where=store.name, hint=hint)
    return IntegrityError(
        "archive.json is missing in every region",
        where=store.name,
        hint="A daemon that still runs writes it again. Otherwise bring its older version back from the bucket's "
        "versions, or a copy of your own. An expiry rule may have taken it: archiver check names those.",
    )


def _parse(data: bytes | ArchiverError) -> Identity | None:
    if isinstance(data, ArchiverError):
        return None
    try:
        return Identity(manifest.parse_archive(data), data)
    except IntegrityError:
        return None


def _is_another(identities: Sequence[Identity], public_key: str | None) -> IntegrityError:
    if not identities:
        return IntegrityError("archive.json is damaged in every region that holds it", where=layout.ARCHIVE)
    found = ", ".join(sorted({each.archive.public_key for each in identities}))
    return IntegrityError(
        "the regions hold another archive than the one that the configuration pins",
        where=f"public key {found}, not {public_key}",
        hint="Somebody replaced archive.json, or a region's url leads elsewhere. Nothing was read with it, or written.",
    )


async def _openable(store: Mirror, identities: Sequence[Identity], keks: Sequence[Kek]) -> Identity:
    """The one whose signing key our KEKs open. Raises what is wrong with the first, if there is none."""
    errors: list[IntegrityError] = []
    for identity in identities:
        try:
            await Keyring(identity.archive.archive, keks, store).signing_key(identity.archive)
        except IntegrityError as exc:
            errors.append(exc)
        else:
            return identity
    raise errors[0]
