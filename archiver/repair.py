"""Bringing one region up to the others: ciphertext is copied, and every hash is checked on the way.

In: the region, and a Mirror of those that hold everything. Objects go before the manifest that names them, manifests in
their order, so that the region's log is a beginning of the others' at every moment, and a crash anywhere leaves only
work to go on with. Nothing that is the archive's is overwritten: where that differs it is an IntegrityError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from os.path import commonpath

import structlog

from archiver.errors import (
    ForeignObject,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    RegionsDisagree,
    StoreUnavailable,
)
from archiver.format import layout, manifest
from archiver.format.manifest import Archive, Entry, ObjectRef, Signed, refs
from archiver.log_reader import LogReader
from archiver.store.base import Entry as StoreEntry
from archiver.store.base import Store
from archiver.store.mirror import Mirror
from archiver.tasks import task_group

AT_ONCE = 2  # objects in memory at a time
IsForeign = Callable[[str, bytes], Awaitable[bool]]
"""Whether bytes in the place of an object are none of the archive's: then they may be written over."""

log = structlog.get_logger()


class Repair:
    """Copies to `region` what the archive holds elsewhere and it does not."""

    def __init__(self, archive: Archive, source: Mirror, region: Store, is_foreign: IsForeign) -> None:
        self._archive = archive
        self._source = source
        self._region = region
        self._reader = LogReader(archive, source)
        self._is_foreign = is_foreign
        self._keys: set[str] = set()

    async def copy_log(self) -> AsyncIterator[Signed]:
        """Copy keys, objects and manifests in the log's order; yields each manifest that the region now holds.

        Raises StoreError, and IntegrityError when the region disagrees about what it has.
        """
        await self._copy_small()
        seq = await self._reader.newest(self._region)
        if seq:
            await self.compare(layout.manifest(seq))
        for following in await self._reader.following(seq):
            signed = await self._reader.read(following)
            await self.copy_named(signed.entry)
            await self._put_same(layout.manifest(following), signed.data)
            yield signed
        async for entry in self._source.list(layout.CATALOG):
            if layout.rollup_range(entry.key) and await self._region.size(entry.key) is None:
                await self._region.put(entry.key, await self._source.get(entry.key))

    async def copy_named(self, entry: Entry) -> None:
        """Copy the objects that the region lacks, or holds in another size, behind the keys that open all of them."""
        await self._copy_keys(manifest.key_ids(entry) - self._keys)
        objects = refs(entry)
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
                await self._put_same(name, await self._right(name))
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
        await self._region.put(ref.key, await self._source.get_verified(ref.key, ref.matches, most=ref.size))

    async def copy_unnamed(self, key: str) -> None:
        """Copy an object that no manifest names yet, if it is there at all."""
        try:
            data = await self._source.get(key)
        except ObjectNotFound:
            return
        await self._region.put(key, data)

    async def _copy_small(self) -> None:
        """archive.json and the wrapped keys, without which nothing can be read."""
        await self._require_ours()
        keys = [entry.key async for entry in self._source.list(layout.KEYS) if layout.is_ours(entry.key)]
        for name in [layout.ARCHIVE, *keys]:
            try:
                right = await self._right(name)
            except ForeignObject:
                continue  # it has the name of a key, and is none anywhere
            if await self._region.size(name) is None:
                await self._region.put(name, right, if_absent=True)
            elif await self._is_damaged(name, right):
                await self._region.put(name, right)

    async def _require_ours(self) -> None:
        """Raise IntegrityError where another archive stands: nothing of it is written over.

        An archive.json that was replaced before our own log is another matter, and written again.
        """
        try:
            held = await self._region.get(layout.ARCHIVE)
        except (ObjectNotFound, ForeignObject):
            held = b""
        if held == await self._right(layout.ARCHIVE) or await self._reader.newest(self._region):
            return
        if _is_archive(held) or await self._has_manifests():
            raise IntegrityError(
                "the region holds another archive, of which nothing is written over",
                where=self._region.name,
                hint="Correct the region's url, or empty the place: then it is filled from the others.",
            )

    async def _has_manifests(self) -> bool:
        seqs = [layout.manifest_seq(entry.key) async for entry in self._region.list(layout.MANIFESTS)]
        return any(seqs)

    async def compare(self, name: str) -> None:
        """What the region holds must be what the others hold. Raises RegionsDisagree."""
        try:
            right = await self._right(name)
        except ObjectNotFound:
            raise self._disagreement(name) from None
        if await self._is_damaged(name, right):
            raise self._disagreement(name)

    async def _right(self, name: str) -> bytes:
        """The object from a region that holds what belongs there. Raises ForeignObject if none does."""

        async def read(store: Store) -> bytes:
            data = await store.get(name)
            if await self._is_foreign(name, data):
                raise ForeignObject("this is no object of the archive", where=f"{store.name}: {name}")
            return data

        return await self._source.first(read)

    async def _is_damaged(self, name: str, right: bytes) -> bool:
        """Whether the region holds, in this place, what is none of the archive's. Raises RegionsDisagree."""
        try:
            held = await self._own(name)
        except ForeignObject:
            return True
        if held != right and not await self._is_foreign(name, held):
            raise self._disagreement(name)
        return held != right

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
            if await self._is_damaged(name, data):
                log.error(
                    "what stands in the place of an object is written over", object=name, region=self._region.name
                )
                await self._region.put(name, data)

    def _disagreement(self, name: str) -> RegionsDisagree:
        return RegionsDisagree(name, self._source.name, self._region.name)


def _is_archive(data: bytes) -> bool:
    try:
        manifest.parse_archive(data)
    except IntegrityError:
        return False
    return True
