"""Bringing one region up to the others: ciphertext is copied, and every hash is checked on the way.

In: the region, and a Mirror of those that hold everything. Objects go before the manifest that names them, manifests in
their order, so that the region's log is a beginning of the others' at every moment, and a crash anywhere leaves only
work to go on with. Nothing that the region holds is overwritten: what differs there is an IntegrityError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from os.path import commonpath

from archiver.errors import ObjectExists, ObjectNotFound, RegionsDisagree, StoreUnavailable
from archiver.format import layout, manifest
from archiver.format.manifest import Archive, Changes, Drill, Entry, ObjectRef, Signed, Snapshot
from archiver.log_reader import LogReader
from archiver.store.base import Entry as StoreEntry
from archiver.store.base import Store
from archiver.store.mirror import Mirror
from archiver.tasks import task_group

AT_ONCE = 2  # objects in memory at a time


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


class Repair:
    """Copies to `region` what the archive holds elsewhere and it does not."""

    def __init__(self, archive: Archive, source: Mirror, region: Store) -> None:
        self._archive = archive
        self._source = source
        self._region = region
        self._reader = LogReader(archive, source)
        self._keys: set[str] = set()

    async def copy_log(self) -> AsyncIterator[Signed]:
        """Copy keys, objects and manifests in the log's order; yields each manifest that the region now holds.

        Raises StoreError, and IntegrityError when the region disagrees about what it has.
        """
        await self._copy_small()
        seq = await self._reader.newest(self._region)
        if seq:
            await self.compare(layout.manifest(seq))
        names = [entry.key async for entry in self._source.list(layout.MANIFESTS, start_after=layout.manifest(seq))]
        for name in names:
            signed = manifest.parse(await self._source.get_verified(name, self._is_sound), self._archive.verifier)
            await self.copy_objects(refs(signed.entry))
            await self._put_same(name, signed.data)
            yield signed
        async for entry in self._source.list(layout.CATALOG):
            if await self._region.size(entry.key) is None:
                await self._region.put(entry.key, await self._source.get(entry.key))

    async def copy_objects(self, objects: Sequence[ObjectRef]) -> None:
        """Copy those that the region lacks, or holds in another size, behind the keys that open them."""
        await self._copy_keys({ref.key_id for ref in objects} - self._keys)
        limit = asyncio.Semaphore(AT_ONCE)

        async def copy(ref: ObjectRef) -> None:
            async with limit:
                await self.replace(ref)

        held = {entry.key: entry.size async for entry in self._held(objects)}
        async with task_group() as group:
            for ref in objects:
                if held.get(ref.key) != ref.size:
                    group.create_task(copy(ref), name=f"repair {ref.key}")

    async def _copy_keys(self, key_ids: set[str]) -> None:
        for key_id in sorted(key_ids):
            name = layout.key(key_id)
            if await self._region.size(name) is None:
                await self._put_same(name, await self._source.get(name))
            self._keys.add(key_id)

    async def _held(self, objects: Sequence[ObjectRef]) -> AsyncIterator[StoreEntry]:
        """What the region holds of them: the parts of a base snapshot are many, and asked for at once."""
        if len(objects) == 1 and (size := await self._region.size(objects[0].key)) is not None:
            yield StoreEntry(objects[0].key, size)
        elif len(objects) > 1:
            async for entry in self._region.list(commonpath([ref.key for ref in objects])):
                yield entry

    async def replace(self, ref: ObjectRef) -> None:
        """Write an object from a region that holds it whole."""
        await self._region.put(ref.key, await self._source.get_verified(ref.key, ref.matches))

    async def copy_unnamed(self, key: str) -> None:
        """Copy an object that no manifest names yet, if it is there at all."""
        try:
            data = await self._source.get(key)
        except ObjectNotFound:
            return
        await self._region.put(key, data)

    async def _copy_small(self) -> None:
        """archive.json and the wrapped keys, without which nothing can be read."""
        for name in [layout.ARCHIVE] + [entry.key async for entry in self._source.list(layout.KEYS)]:
            if await self._region.size(name) is None:
                await self._region.put(name, await self._source.get(name), if_absent=True)
            else:
                await self.compare(name)

    async def compare(self, name: str) -> None:
        """What the region holds must be what the others hold. Raises RegionsDisagree."""
        held = await self._own(name)
        try:
            same = held == await self._source.get(name)
        except ObjectNotFound:
            same = False
        if not same:
            raise self._disagreement(name)

    async def _own(self, name: str) -> bytes:
        """What the region lists it must give: one that has just come back may not yet."""
        try:
            return await self._region.get(name)
        except ObjectNotFound as exc:
            raise StoreUnavailable("the region lists an object that it does not give", where=exc.where) from exc

    async def _put_same(self, name: str, data: bytes) -> None:
        try:
            await self._region.put(name, data, if_absent=True)
        except ObjectExists:
            if await self._own(name) != data:
                raise self._disagreement(name) from None

    def _disagreement(self, name: str) -> RegionsDisagree:
        return RegionsDisagree(name, self._source.name, self._region.name)

    def _is_sound(self, data: bytes) -> bool:
        manifest.parse(data, self._archive.verifier)
        return True
