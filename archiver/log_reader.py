"""Reading the manifest log out of the regions, whatever else lies there.

In: an archive's identity and a store that spans the regions. Out: manifests whose signature and place are right, in
their order. Whoever may write into a region can put anything anywhere in it: names that are not ours are passed over,
and so is what stands behind the log's end and is no manifest of ours. What is missing or altered inside of the log is
an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import structlog

from archiver.errors import ArchiverError, ForeignObject, IntegrityError, ObjectNotFound
from archiver.format import layout, manifest
from archiver.format.manifest import Archive, Signed
from archiver.policy import catalog
from archiver.store.base import Store
from archiver.store.mirror import Mirror

_READ_AHEAD = 16
_ORDINARY_BYTES = 1 << 20  # all but those of base snapshots of thousands of parts

log = structlog.get_logger()


class LogReader:
    """Reads the log of one archive.

    `rolled_up_to`: the seq up to which the last scan found roll-ups. `begins_at`: the seq at which the log begins; more
    than 1 where its oldest manifests are gone.
    """

    def __init__(self, archive: Archive, store: Mirror) -> None:
        self._archive = archive
        self._store = store
        self._passed_over: set[str] = set()
        self._large = asyncio.Lock()
        self.rolled_up_to = 0
        self.begins_at = 1

    async def scan(self) -> AsyncIterator[Signed]:
        """All manifests from the first to the newest, signatures and chain verified. Raises IntegrityError."""
        previous: Signed | None = None
        async for signed in self._stored():
            manifest.check_chain(previous, signed, self._archive.archive, begins=True)
            if previous is None:
                self._begin(signed)
            yield signed
            previous = signed

    def _begin(self, first: Signed) -> None:
        """What an expiry rule took, oldest first, does not keep anybody from what is whole."""
        if first.seq > 1 and self.begins_at != first.seq:
            log.error("the beginning of the log is missing", missing=f"manifests 1 to {first.seq - 1}",
                      hint="archiver verify; archiver check names the buckets' expiry rules")  # fmt: skip
        self.begins_at = first.seq

    async def read(self, seq: int) -> Signed:
        """A manifest from the first region that holds the one that belongs there."""
        name = layout.manifest(seq)

        async def read(store: Store) -> Signed:
            signed = await self.held(store, name)
            if (signed.seq, signed.manifest.archive) != (seq, self._archive.archive):
                raise IntegrityError("the object is not what it should be", where=f"{store.name}: {name}")
            return signed

        return await self._store.first(read)

    async def held(self, store: Store, name: str) -> Signed:
        """A manifest as one region holds it. However many are read at once, only one of them is large.

        Raises StoreError, IntegrityError.
        """
        try:
            return self.parse(await store.get(name, most=_ORDINARY_BYTES))
        except ForeignObject:
            async with self._large:
                return self.parse(await store.get(name))

    def parse(self, data: bytes) -> Signed:
        """A manifest that this archive's key has signed. Raises IntegrityError."""
        return manifest.parse(data, self._archive.verifier)

    def belongs(self, name: str, data: bytes) -> bool:
        """Whether these bytes are a manifest of this archive, and of this name. Raises IntegrityError if of none."""
        signed = self.parse(data)
        return layout.manifest(signed.seq) == name and signed.manifest.archive == self._archive.archive

    async def newest(self, region: Store) -> int:
        """The seq of the newest manifest of ours that a region holds, 0 if it holds none.

        Roll-ups spare listing most of them. One may have come before the last of its manifests, and then says nothing.
        """
        spans = [layout.rollup_range(entry.key) async for entry in region.list(layout.CATALOG)]
        ends = sorted((span[1] for span in spans if span), reverse=True)
        start = await self._first_held(region, ends)
        seqs = [seq async for seq in _named(region, start)]
        return await self._first_held(region, reversed(seqs)) or start

    async def _first_held(self, region: Store, seqs: Iterable[int]) -> int:
        for seq in seqs:
            if await self.is_held(region, seq):
                return seq
        return 0

    async def is_held(self, region: Store, seq: int) -> bool:
        """Whether a region holds the manifest of this place, or at least one of ours."""
        name = layout.manifest(seq)
        with suppress(ObjectNotFound, IntegrityError):
            return self.belongs(name, await region.get(name))
        return False

    async def following(self, seq: int) -> list[int]:
        """The places behind one that are taken by manifests of ours, in any region that answers."""
        found = [(each, await self._try(each)) async for each in _named(self._store, seq)]
        return [each for each, held in found if isinstance(held, Signed)]

    async def _stored(self) -> AsyncIterator[Signed]:
        """Stored manifests in order: from roll-ups as far as they reach without a hole, then one by one.

        Whoever can write to a region can put roll-ups there that overlap, or hold less than their names say: what
        reaches furthest is tried first, and what is not whole is left out.
        """
        listed = [layout.rollup_range(entry.key) async for entry in self._store.list(layout.CATALOG)]
        seq, spans = 0, catalog.Spans(filter(None, listed))
        while span := spans.following(seq) or await self._begins_later(seq, spans):
            if block := await self._rolled_up(*span, behind=seq):
                seq = self.rolled_up_to = span[1]  # first: what is yielded now need not be rolled up again
                for signed in block:
                    yield signed
        async for signed in self._one_by_one(seq):
            yield signed

    async def _begins_later(self, seq: int, spans: catalog.Spans) -> tuple[int, int] | None:
        """The first roll-up of a log whose first manifest is in no region."""
        return spans.ahead() if seq == 0 and not isinstance(await self._try(1), Signed) else None

    async def _one_by_one(self, seq: int) -> AsyncIterator[Signed]:
        """What is no manifest of ours is damage where the log goes on behind it, and foreign where it does not."""
        names = [each async for each in _named(self._store, seq)]
        foreign: dict[int, ArchiverError] = {}
        for start in range(0, len(names), _READ_AHEAD):
            batch = names[start : start + _READ_AHEAD]
            for number, found in zip(batch, await asyncio.gather(*map(self._try, batch)), strict=True):
                if isinstance(found, ArchiverError):
                    foreign[number] = found
                    continue
                for error in foreign.values():
                    raise error
                yield found
                seq = number
        if foreign:
            await self._pass_over(seq, foreign)

    async def _try(self, seq: int) -> Signed | ArchiverError:
        try:
            return await self.read(seq)
        except (IntegrityError, ObjectNotFound) as exc:
            return exc

    async def _pass_over(self, head: int, foreign: dict[int, ArchiverError]) -> None:
        """Raise where it may be the log's own end that was altered: it stands next, in every region that answers."""
        for seq, error in foreign.items():
            if seq == head + 1:
                sizes = await self._store.each(lambda store: store.size(layout.manifest(head + 1)))
                if None not in sizes.values() and not isinstance(await self._try(seq), Signed):  # written meanwhile
                    raise error
            name = layout.manifest(seq)
            if name not in self._passed_over:
                log.error("passed over: this is no manifest of the archive", object=name, error=str(error))
            self._passed_over.add(name)

    async def _rolled_up(self, first: int, last: int, *, behind: int) -> list[Signed]:
        """A roll-up's manifests behind a place; none if no region has it whole: manifests/ says the same."""

        async def read(store: Store) -> list[Signed]:
            lines = catalog.unpack(await store.get(layout.rollup(first, last)), last - first + 1)
            return await asyncio.to_thread(self._verified, enumerate(lines, first), behind)

        try:
            return await self._store.first(read)
        except (IntegrityError, ObjectNotFound):
            return []

    def _verified(self, lines: Iterable[tuple[int, bytes]], behind: int) -> list[Signed]:
        """Raises IntegrityError at the first line that is not the manifest of its place."""
        block = []
        for seq, line in lines:
            if seq > behind:
                block.append(self.parse(line))
                if block[-1].seq != seq:
                    raise IntegrityError("a roll-up holds another manifest than its name says", where=f"seq {seq}")
        return block


async def _named(store: Store, after: int) -> AsyncIterator[int]:
    """The places, behind one, of what has a manifest's name."""
    async for entry in store.list(layout.MANIFESTS, start_after=layout.manifest(after)):
        if (seq := layout.manifest_seq(entry.key)) is not None:
            yield seq
