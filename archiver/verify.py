"""Verification: every manifest, every hash, in every region, and the regions against each other.

In: an archive. Out: a report of findings, each with its exact range. `verify` writes nothing; `repair` writes what
another region holds whole (archiver.mend). Without `read_data` the bytes of every object are compared with their signed
hash; with it everything is also decrypted, decompressed and parsed as a restore would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from archiver import mend
from archiver.archive import OpenArchive, Place, drill_place
from archiver.errors import ArchiverError, IntegrityError, ObjectNotFound, StoreError, StoreUnavailable
from archiver.findings import FOREIGN, FOREIGN_KEY, Finding, Report
from archiver.format import layout, manifest, segment
from archiver.format.drill import Record
from archiver.format.manifest import Changes, Drill, Gap, ObjectRef, Signed, Snapshot, key_ids
from archiver.format.seal import Kind, inflate
from archiver.format.wrap import parse_wrapped
from archiver.keys import SIGNING
from archiver.lsn import Lsn
from archiver.policy import catalog
from archiver.snapshots import Index, part_place
from archiver.store.base import Store
from archiver.survey import head_of

AT_ONCE = 4
CATCH_UP_SECONDS = 0.3  # between the first region and the last one, for a manifest that is just being written

Progress = Callable[[int, int], None]
"""Called with the objects looked at and the objects in all."""


@dataclass(frozen=True, slots=True)
class _Object:
    ref: ObjectRef
    place: Place
    concerns: str


async def verify(archive: OpenArchive, *, read_data: bool = False, progress: Progress | None = None) -> Report:
    """Look at everything. Raises only what keeps it from looking, such as regions that are all down."""
    work = _Verification(archive, Report(read_data=read_data), progress or (lambda _done, _total: None))
    return await work.run()


async def repair(archive: OpenArchive, *, read_data: bool = False, progress: Progress | None = None) -> Report:
    """Look at everything, mend what another region holds whole, and look again: `repaired` and what is left."""
    work = _Verification(archive, Report(read_data=read_data), progress or (lambda _done, _total: None))
    found = (await work.run()).findings
    if not found:
        return work.report
    log = await mend.history(archive, work.logs)
    answering = [store for store in archive.store.stores if store.name not in work.report.silent]
    for store in answering if len(archive.store.stores) > 1 else ():
        damaged = {finding.object for finding in found if finding.region == store.name}
        await mend.Mending(archive, store, log).mend(damaged)  # of two histories either may be the one that ended
    archive.keys.forget()
    left = await verify(archive, read_data=read_data, progress=progress)
    left.repaired = [finding for finding in found if finding not in left.findings]
    return left


class _Verification:
    def __init__(self, archive: OpenArchive, report: Report, progress: Progress) -> None:
        self._archive = archive
        self.report = report
        self._progress = progress
        self._stores = list(archive.store.stores)
        self.logs: Sequence[Sequence[Signed]] = ()
        self._broken: set[str] = set()

    async def run(self) -> Report:
        logs = {store.name: await self._read_log(store) for store in list(self._stores)}
        await self._catch_up(logs)
        self._compare(logs)
        self.logs = list(logs.values())
        best = max(self.logs, key=_standing)
        self.report.manifests = len(best)
        self.report.head = str(head) if (head := head_of(best)) else None
        self._check_positions(best)
        await self._compare_small_objects({SIGNING}.union(*(key_ids(signed.entry) for signed in best)))
        for store in list(self._stores):
            await self._try_on(store, self._find_foreign)
        await self._check_rollups({signed.seq: signed.data for signed in best})
        await self._check_objects(list(_objects(best)))
        if self.report.read_data:
            await self._read_everything(best)
        return self.report

    # --- the log ---

    async def _read_log(self, store: Store) -> list[Signed]:
        """The longest sound log that one region holds by itself."""
        log: list[Signed] = []
        broken = False
        try:
            async for name, signed in self._manifests(store):
                what = (
                    str(signed)
                    if isinstance(signed, IntegrityError)
                    else None
                    if broken
                    else self._unchained(log, signed)
                )
                if what is not None:
                    following = log[-1].seq + 1 if log else 1
                    self._find(store, name, what, f"the log from manifest {following} on")
                    broken = True
                    self._broken.add(store.name)
                elif not broken and isinstance(signed, Signed):
                    if not log and signed.seq > 1:
                        self._find(
                            store, layout.manifest(1), "missing", f"seq 1 to {signed.seq - 1}, and what they named"
                        )
                    log.append(signed)
        except (ObjectNotFound, IntegrityError) as exc:
            self._find(store, layout.MANIFESTS, str(exc), "the log of this region")
            self._broken.add(store.name)
        except StoreError as exc:
            self._set_aside(store, layout.MANIFESTS, exc, "all of this region, which was not looked at")
        return log

    def _unchained(self, log: Sequence[Signed], signed: Signed) -> str | None:
        """Why a manifest does not follow the log; None if it does."""
        try:
            manifest.check_chain(log[-1] if log else None, signed, self._archive.identity.archive, begins=True)
        except IntegrityError as exc:
            return str(exc)
        return None

    async def _catch_up(self, logs: dict[str, list[Signed]]) -> None:
        """A daemon that runs went on writing while we read: what one region had not, it may have by now."""
        longest = max(logs.values(), key=_standing)
        for store in self._stores:
            log = logs[store.name]
            end = log[-1].seq if log else 0
            if store.name in self._broken or any(each not in longest for each in log[-1:]):
                continue
            for signed in (each for each in longest if each.seq > end):
                if not await self._has_come(store, signed):
                    break
                log.append(signed)

    async def _has_come(self, store: Store, signed: Signed) -> bool:
        for _ in range(3):
            if await self._copy(store, layout.manifest(signed.seq)) == signed.data:
                return True
            await asyncio.sleep(CATCH_UP_SECONDS)
        return False

    async def _manifests(self, store: Store) -> AsyncIterator[tuple[str, Signed | IntegrityError]]:
        names = [entry.key async for entry in store.list(layout.MANIFESTS) if layout.manifest_seq(entry.key)]
        for start in range(0, len(names), 16):
            batch = names[start : start + 16]
            found = await asyncio.gather(*(self._held(store, name) for name in batch))
            for name, signed in zip(batch, found, strict=True):
                yield name, signed

    async def _held(self, store: Store, name: str) -> Signed | IntegrityError:
        try:
            return await self._archive.log.reader.held(store, name)
        except IntegrityError as exc:
            return exc

    async def _find_foreign(self, store: Store) -> None:
        """Objects whose name archiver gives to nothing, and keys that are none: readers pass over them."""
        async for entry in store.list(""):
            name = entry.key
            if not layout.is_ours(name):
                shown = name.encode("unicode_escape").decode("ascii")
                self._find(store, shown, FOREIGN, "nothing: readers pass over it")
            elif name.startswith(layout.KEYS) and isinstance(data := await self._copy(store, name), bytes):
                with suppress(IntegrityError):
                    parse_wrapped(data, self._archive.identity.archive, layout.key_id(name))
                    continue
                self._find(store, name, FOREIGN_KEY, "what is sealed with it")

    def _compare(self, logs: dict[str, list[Signed]]) -> None:
        """All logs must be the same; one that is a beginning of another has lost its end, or not got it yet."""
        longest_region, longest = max(logs.items(), key=lambda item: _standing(item[1]))
        right = {signed.seq: signed.hash for signed in longest}
        for region, log in logs.items():
            differing = next((each.seq for each in log if right.get(each.seq, each.hash) != each.hash), None)
            first, last = log[-1].seq + 1 if log else 1, _standing(longest)[0]
            if differing is not None:
                self._note(region, layout.manifest(differing), f"differs from {longest_region}", f"seq {differing} on")
            elif first <= last and region not in self._broken:
                what = f"the region lacks manifests that {longest_region} has"
                self._note(region, layout.manifest(first), what, f"seq {first} to {last}")

    async def _compare_small_objects(self, needed: set[str]) -> None:
        """archive.json and the wrapped keys must be the same in every region, and there, if anything needs them.

        A daemon that died over making a key may have left it in one region, where nothing was sealed with it.
        """
        names = [layout.ARCHIVE] + [entry.key async for entry in self._archive.store.list(layout.KEYS)]
        for name in names:
            copies = {store.name: await self._copy(store, name) for store in self._stores}
            found = {data for data in copies.values() if isinstance(data, bytes)}
            for region, data in copies.items():
                if isinstance(data, ArchiverError):
                    self._note(region, name, str(data), "everything that it opens")
                elif data is None:
                    if name == layout.ARCHIVE or name.removeprefix(layout.KEYS).removesuffix(".json") in needed:
                        self._note(region, name, "missing", "everything that it opens")
                elif len(found) > 1:
                    self._note(region, name, "differs between the regions", "everything that it opens")

    async def _check_rollups(self, log: dict[int, bytes]) -> None:
        """A roll-up must repeat the manifests of its range, line by line."""
        for store in self._stores:
            try:
                names = [entry.key async for entry in store.list(layout.CATALOG)]
            except ArchiverError as exc:
                self._find(store, layout.CATALOG, str(exc), "the roll-ups of this region")
                continue
            for name, (first, last) in ((name, span) for name in names if (span := layout.rollup_range(name))):
                expected = [log.get(seq) for seq in range(first, last + 1)]
                if what := await self._wrong_with(store, name, expected):
                    self._find(store, name, what, f"reading seq {first} to {last}")

    async def _wrong_with(self, store: Store, name: str, expected: Sequence[bytes | None]) -> str | None:
        data = await self._copy(store, name)
        if not isinstance(data, bytes):
            return str(data) if data else "missing"
        try:
            lines = catalog.unpack(data, len(expected))
            return None if await asyncio.to_thread(_repeats, lines, expected) else "does not repeat the log"
        except IntegrityError as exc:
            return str(exc)

    async def _copy(self, store: Store, name: str) -> bytes | ArchiverError | None:
        """What a region holds under a name: None for nothing, an error where that cannot be told."""
        try:
            return await store.get(name)
        except ObjectNotFound:
            return None
        except ArchiverError as exc:
            return exc

    def _check_positions(self, log: Sequence[Signed]) -> None:
        """Change segments must follow each other without a hole but for recorded gaps."""
        position: Lsn | None = None
        for entry in (signed.entry for signed in log):
            if isinstance(entry, Gap):
                position = entry.before_lsn
            elif isinstance(entry, Changes):
                if position is not None and entry.start_lsn != position:
                    concerns = f"LSN {position} to {entry.start_lsn}"
                    self._note("all", layout.MANIFESTS, "a hole that no gap explains", concerns)
                position = entry.end_lsn

    # --- objects ---

    async def _check_objects(self, objects: Sequence[_Object]) -> None:
        """Compare the bytes of every object in every region with the signed hash."""
        total = len(objects) * len(self._stores)
        limit = asyncio.Semaphore(AT_ONCE)
        done = 0

        async def check(store: Store, item: _Object) -> None:
            nonlocal done
            async with limit:
                if store in self._stores:
                    await self._check_object(store, item)
            done += 1
            self._progress(done, total)

        for start in range(0, len(objects), 256):
            batch = objects[start : start + 256]
            await asyncio.gather(*(check(store, item) for store in self._stores for item in batch))
        self.report.objects = len(objects)
        self.report.stored_bytes = sum(item.ref.size for item in objects)

    async def _check_object(self, store: Store, item: _Object) -> None:
        try:
            data = await store.get(item.ref.key, most=item.ref.size)
        except ObjectNotFound:
            self._find(store, item.ref.key, "missing", item.concerns)
            return
        except StoreUnavailable as exc:
            self._set_aside(store, item.ref.key, exc, f"{item.concerns}, and what was to be looked at after it")
            return
        except ArchiverError as exc:
            self._find(store, item.ref.key, str(exc), item.concerns)
            return
        if not await asyncio.to_thread(item.ref.matches, data):
            self._find(store, item.ref.key, "altered or cut", item.concerns)

    async def _read_everything(self, log: Sequence[Signed]) -> None:
        for number, item in enumerate(objects := list(_objects(log)), start=1):
            try:
                await self._read(item)
            except ArchiverError as exc:
                self._note("all", item.ref.key, str(exc), item.concerns)
            self._progress(number, len(objects))

    async def _read(self, item: _Object) -> None:
        body = await self._archive.fetch(item.ref, item.place)
        pieces = inflate(body, item.ref.raw_bytes)
        if item.place.kind is Kind.CHANGES:
            await asyncio.to_thread(_consume, segment.read_records(pieces))
        elif item.place.kind is Kind.DRILL:
            Record.decode(b"".join(pieces))
        elif item.place.seq == 0:
            Index.decode(b"".join(pieces))
        else:
            await asyncio.to_thread(_consume, pieces)

    # --- findings ---

    async def _try_on(self, store: Store, look: Callable[[Store], Awaitable[None]]) -> None:
        try:
            await look(store)
        except StoreError as exc:
            self._set_aside(store, layout.MANIFESTS, exc, "the rest of this region, which was not looked at")

    def _set_aside(self, store: Store, name: str, error: StoreError, concerns: str) -> None:
        """Ask a region that does not answer no more: each object would take the whole patience."""
        if store in self._stores:
            self._stores.remove(store)
            self.report.silent.append(store.name)
            self._broken.add(store.name)
            self._find(store, name, str(error), concerns)

    def _find(self, store: Store, name: str, what: str, concerns: str) -> None:
        self._note(store.name, name, what, concerns)

    def _note(self, region: str, name: str, what: str, concerns: str) -> None:
        self.report.findings.append(Finding(region, name, what, concerns))


def _objects(log: Sequence[Signed]) -> Iterator[_Object]:
    for signed in log:
        entry = signed.entry
        if isinstance(entry, Changes) and entry.object is not None:
            place = Place(Kind.CHANGES, entry.ordinal, entry.start_lsn, entry.end_lsn)
            yield _Object(entry.object, place, f"changes from {entry.start_lsn} to {entry.end_lsn}")
        elif isinstance(entry, Snapshot):
            for number, ref in enumerate(entry.parts):
                yield _Object(ref, part_place(entry.lsn, number), f"part {number} of base snapshot {entry.lsn}")
        elif isinstance(entry, Drill):
            place = drill_place(entry.snapshot_lsn, entry.target_lsn)
            yield _Object(entry.object, place, f"the record of drill {entry.drill_id}")


def _standing(log: Sequence[Signed]) -> tuple[int, int]:
    """How far a log reaches, and how much it holds."""
    return (log[-1].seq if log else 0), len(log)


def _repeats(lines: Iterable[bytes], expected: Sequence[bytes | None]) -> bool:
    """Whether a roll-up says what the log says. It may know more of the log's beginning, where that is missing."""
    known = next((at for at, line in enumerate(expected) if line is not None), None)
    found = enumerate(zip_longest(lines, expected, fillvalue=b""))
    return known is not None and all(at < known or line == right for at, (line, right) in found)


def _consume(items: Iterator[Any]) -> None:
    for _ in items:
        pass
