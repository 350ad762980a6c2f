"""Whether the end of the log was cut off: objects beyond it may still tell, and so does the replication slot.

In: an archive whose log was read for writing. Out: nothing, or IntegrityError. A daemon that dies between an object and
its manifest leaves a few objects beyond the log's end, but it never confirms them: what the slot has confirmed, a
manifest named once. A slot that somebody else moved leaves nothing beyond the end. Nothing is ever written here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from archiver.archive import OpenArchive
from archiver.errors import ArchiverError, IntegrityError, ObjectNotFound
from archiver.format import layout, seal
from archiver.format.manifest import Signed
from archiver.format.seal import Identity, Kind
from archiver.lsn import Lsn
from archiver.store.base import Entry, Store

AT_MOST_UNNAMED = 4
"""Change segments that a daemon which dies may leave without a manifest: more than capture.IN_FLIGHT."""
_LOOKED_AT = 16  # objects of a region, each of them read whole: who hides ours behind more could delete them as well
_LARGEST = 1 << 28

Beyond = Mapping[str, Sequence[str]]
"""Objects beyond the log's end, by region."""


async def require_uncut(archive: OpenArchive, confirmed: Lsn | None = None) -> None:
    """Raise IntegrityError where the log must have gone on beyond the end that is there.

    `confirmed` is the slot's position, where there is a slot, and it belongs to the history that is archived.
    """
    beyond = await find_beyond(archive, confirmed)
    if beyond:
        raise was_cut(archive.log.state.head, beyond, confirmed)


async def find_beyond(archive: OpenArchive, confirmed: Lsn | None = None) -> Beyond:
    """What no daemon can have left without a manifest."""
    answers = await archive.store.each(lambda region: _names_beyond(archive, region, confirmed))
    head = archive.log.state.head
    if any(answers.values()) and await archive.log.reader.following(head.seq if head else 0):
        return {}  # a daemon that runs went on meanwhile
    return {region.name: names for region, names in answers.items() if names and not isinstance(names, ArchiverError)}


async def _names_beyond(archive: OpenArchive, region: Store, confirmed: Lsn | None) -> list[str]:
    last = _next(archive) + AT_MOST_UNNAMED
    far = [
        entry
        async for (ordinal, start, end), entry in _segments(archive, region)
        # One that was never named starts where the log ends, or later: what begins before that was confirmed.
        if (ordinal > last if confirmed is None else start < confirmed and end <= confirmed)
    ]
    if confirmed is not None:
        far += [entry async for entry in _snapshots(archive, region, confirmed)]
    readable = [entry.key for entry in far if seal.HEADER_BYTES < entry.size <= _LARGEST]
    return [name for name in readable[-_LOOKED_AT:] if await _is_ours(archive, region, name)]


async def _is_ours(archive: OpenArchive, region: Store, name: str) -> bool:
    """Whether this archive sealed it for this place. Raises ArchiverError where nobody can tell now."""
    try:
        data = await region.get(name)
        found = Identity.decode(data)
        is_meant = found.archive == archive.identity.archive and _stands_at(found, name)
        if not is_meant or not layout.is_ours(layout.key(found.key_id)):
            return False
        return seal.is_key_of(data, await archive.keys.secret(found.key_id))
    except (IntegrityError, ObjectNotFound):
        return False


def _stands_at(found: Identity, name: str) -> bool:
    if (place := layout.segment_place(name)) is not None:
        return found.kind is Kind.CHANGES and place == (found.seq, found.start, found.end)
    return found.kind is Kind.SNAPSHOT and layout.snapshot_lsn(name) == found.start


async def _segments(archive: OpenArchive, region: Store) -> AsyncIterator[tuple[tuple[int, Lsn, Lsn], Entry]]:
    """Change segments that come after the log's last one, by ordinal, with that, their start and their end."""
    end = archive.log.state.end
    async for entry in region.list(layout.SEGMENTS, start_after=layout.segments_before(_next(archive))):
        place = layout.segment_place(entry.key)
        if place is not None and (end is None or place[2] > end):
            yield place, entry


async def _snapshots(archive: OpenArchive, region: Store, confirmed: Lsn) -> AsyncIterator[Entry]:
    """Parts of base snapshots between the log's end and what was confirmed."""
    end = archive.log.state.end
    if end is None:
        return
    async for entry in region.list(layout.SNAPSHOTS, start_after=layout.snapshots_before(end)):
        if (lsn := layout.snapshot_lsn(entry.key)) is not None and end < lsn <= confirmed:
            yield entry


def _next(archive: OpenArchive) -> int:
    changes = archive.log.state.changes
    return changes.ordinal + 1 if changes else 1


def was_cut(head: Signed | None, beyond: Beyond, confirmed: Lsn | None) -> IntegrityError:
    """What was seen, and what to do about it."""
    seen = [f"{len(names)} objects in {region}, up to {names[-1]}" for region, names in beyond.items()]
    slot = [f"the slot is at {confirmed}"] if confirmed is not None else []
    return IntegrityError(
        "the end of the log was cut off: what it named lies beyond it",
        where=f"the log ends at manifest {head.seq if head else 0}; " + "; ".join([*seen, *slot]),
        hint="Bring the manifests back from the bucket's older versions, then: archiver verify. To go on without "
        "them, and record a gap: archiver run --accept-gap",
    )
