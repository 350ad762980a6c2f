"""Mending an archive at rest: what `verify` found in one region is written again from another one that holds it whole.

In: an archive, and findings. Out: nothing but the writes; verify again to see what is left. Only what the signed log
vouches for is written, and only over bytes that cannot be it. A signed manifest that differs is another history: it is
replaced only when all of its changes are in the log that goes on. Of two keys of one name the right one is that under
which the log's objects were sealed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime

import structlog

from archiver.archive import OpenArchive
from archiver.errors import ArchiverError, IntegrityError, ObjectNotFound, TargetUnreachable, WrongKey
from archiver.format import layout, manifest
from archiver.format.manifest import Changes, Drill, Gap, ObjectRef, Signed, Snapshot, refs
from archiver.format.seal import is_key_of
from archiver.keys import SIGNING
from archiver.lsn import Lsn
from archiver.policy import catalog
from archiver.policy.history import History
from archiver.policy.target import ToLsn
from archiver.repair import Repair
from archiver.store.base import Store
from archiver.store.mirror import Mirror

log = structlog.get_logger()


class Mending:
    """Mends one region from the others. `history` is the log that all regions should hold."""

    def __init__(self, archive: OpenArchive, region: Store, history: Sequence[Signed]) -> None:
        others = Mirror([store for store in archive.store.stores if store is not region])
        self._identity = archive.identity
        self._identity_data = archive.identity_data
        self._everywhere = archive.store
        self._keys = archive.keys
        self._region = region
        self._others = others
        self._repair = Repair(archive.identity, others, region, archive.is_foreign)
        self._reader = archive.log.reader
        self._history = history

    async def mend(self, damaged: Iterable[str]) -> None:
        """Write again each of the damaged objects, and every manifest that is not what it should be."""
        damaged = set(damaged)
        await self._mend_small(damaged)
        await self._mend_objects([ref for signed in self._history for ref in refs(signed.entry) if ref.key in damaged])
        await self._mend_manifests()
        await self._mend_rollups(name for name in damaged if name.startswith(layout.CATALOG))

    async def _mend_objects(self, objects: Iterable[ObjectRef]) -> None:
        for ref in objects:
            try:
                await self._repair.replace(ref)
            except (IntegrityError, ObjectNotFound) as exc:
                log.error("no region holds this object whole", object=ref.key, error=str(exc))

    async def _mend_small(self, damaged: set[str]) -> None:
        for name in damaged:
            if not (name == layout.ARCHIVE or name.startswith(layout.KEYS)) or await self._is_right(self._region, name):
                continue
            for store in self._others.stores:
                if await self._is_right(store, name):
                    await self._region.put(name, await store.get(name))
                    break

    async def _is_right(self, store: Store, name: str) -> bool:
        """Whether a region holds the identity, or the key, that all regions should hold."""
        if not await self._is_sound(store, name):
            return False
        key_id = layout.key_id(name)
        if name == layout.ARCHIVE or key_id == SIGNING:
            return True
        sealed = next((ref for signed in self._history for ref in refs(signed.entry) if ref.key_id == key_id), None)
        if sealed is None:  # nothing needs it: any of them will do, if it is the same everywhere
            return await store.get(name) == min([data async for data in self._copies(name)])
        try:
            data = await self._everywhere.get_verified(sealed.key, sealed.matches, most=sealed.size)
            return is_key_of(data, await self._keys.open_copy(store, key_id))
        except (IntegrityError, ObjectNotFound):
            return True  # nobody can say

    async def _copies(self, name: str) -> AsyncIterator[bytes]:
        for store in self._everywhere.stores:
            if await self._is_sound(store, name):
                yield await store.get(name)

    async def _is_sound(self, store: Store, name: str) -> bool:
        """Whether a region holds an identity that is signed, or a key that opens."""
        try:
            if name == layout.ARCHIVE:
                return await store.get(name) == self._identity_data
            await self._keys.open_copy(store, layout.key_id(name))
        except WrongKey:
            return True  # whole, as far as anyone without its KEK can say
        except (IntegrityError, ObjectNotFound):
            return False
        return True

    # --- the log ---

    async def _mend_manifests(self) -> None:
        """From the first that differs on, each after all that it names."""
        held = {signed.seq: await self._held(signed.seq) for signed in self._history}
        wrong = [signed for signed in self._history if (other := held[signed.seq]) is None or other.data != signed.data]
        fork = [other for signed in wrong if (other := held[signed.seq]) is not None]
        if fork and not (self._is_covered(fork) and await self._reader.newest(self._region) <= self._history[-1].seq):
            log.error("the region holds another history, which is left as it is", region=self._region.name,
                      object=layout.manifest(fork[0].seq),
                      hint="If it is the one that ended, let the other go on alone until it holds more.")  # fmt: skip
            return
        for signed in wrong:
            await self._repair.copy_named(signed.entry)
            await self._region.put(layout.manifest(signed.seq), signed.data)

    async def _held(self, seq: int) -> Signed | None:
        """The manifest that a region holds in this place, if it is one of this place."""
        try:
            signed = manifest.parse(await self._region.get(layout.manifest(seq)), self._identity.verifier)
        except (IntegrityError, ObjectNotFound):
            return None
        return signed if signed.seq == seq and signed.manifest.archive == self._identity.archive else None

    def _is_covered(self, fork: Sequence[Signed]) -> bool:
        """Whether the log that goes on holds all changes of one that ended, and reaches its base snapshots."""
        entries = [signed.entry for signed in fork]
        if any(isinstance(entry, Drill) for entry in entries):
            return False  # evidence is not thrown away
        since = [signed for signed in self._history if signed.seq >= fork[0].seq]
        if not _are_one_history(fork, since):
            return False
        end = _reach(fork)
        if any(isinstance(signed.entry, Gap) and signed.entry.after_lsn < end for signed in since):
            return False
        snapshots = [entry.lsn for entry in entries if isinstance(entry, Snapshot)]
        return end <= _reach(since) and all(map(self._can_restore_to, snapshots))

    def _can_restore_to(self, lsn: Lsn) -> bool:
        try:
            History([signed.entry for signed in self._history]).plan(ToLsn(lsn), (), datetime.now(UTC))
        except (TargetUnreachable, IntegrityError):
            return False
        return True

    async def _mend_rollups(self, names: Iterable[str]) -> None:
        lines = {signed.seq: signed.data for signed in self._history}
        for name in names:
            first, last = layout.rollup_range(name) or (1, 0)
            block = [lines[seq] for seq in range(first, last + 1) if seq in lines]
            if block and len(block) == last - first + 1:
                await self._region.put(name, catalog.pack(block))


async def history(archive: OpenArchive, logs: Sequence[Sequence[Signed]]) -> Sequence[Signed]:
    """The log that all regions together hold; where they disagree, the one that holds the most changes."""
    best = max(logs, key=lambda log: (_reach(log), len(log)))
    if any(mine.data != other.data for log in logs for mine, other in zip(best, log, strict=False)):
        return best
    try:
        return [signed async for signed in archive.log.scan()]
    except ArchiverError:
        return best


def _reach(log: Sequence[Signed]) -> Lsn:
    """The end of the last change segment; 0/0 without any."""
    ends = (signed.entry.end_lsn for signed in reversed(log) if isinstance(signed.entry, Changes))
    return next(ends, Lsn(0))


def _are_one_history(fork: Sequence[Signed], since: Sequence[Signed]) -> bool:
    """Whether the positions of both mean the same: none began anew, and all came from the same timelines."""
    entries = [signed.entry for signed in (*fork, *since)]
    if any(isinstance(entry, Gap) and entry.new_history for entry in entries):
        return False
    here, there = ({s.entry.timeline for s in log if isinstance(s.entry, Changes)} for log in (fork, since))
    return here <= there
