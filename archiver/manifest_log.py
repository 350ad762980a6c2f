"""The manifest log in all regions: what it holds, and the only way anything becomes part of an archive.

In: a store that spans the regions. `ManifestLog.append` is a conditional write, so that two writers can never both take
one place in the log. A region that falls behind is repaired from the others, and then written again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from uuid import UUID, uuid4

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archiver.errors import (
    Fenced,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    PostgresError,
    RegionsDisagree,
    StoreError,
    StoreUnavailable,
)
from archiver.format import layout, manifest
from archiver.format.manifest import (
    Archive,
    Changes,
    Entry,
    Fence,
    Gap,
    Manifest,
    Signed,
    Snapshot,
)
from archiver.log_reader import LogReader
from archiver.policy import catalog
from archiver.policy.log_state import LogState
from archiver.repair import Repair
from archiver.store.base import Store
from archiver.store.mirror import Mirror
from archiver.tasks import Stopwatch

log = structlog.get_logger()

_OWNED_BY_DAEMON = (Changes, Fence, Gap)


class ManifestLog:
    """The manifest log in all regions. Read it with `scan`; a writer calls `take_over` or `follow` first."""

    def __init__(self, archive: Archive, store: Mirror) -> None:
        self._archive = archive
        self._store = store
        self.reader = LogReader(archive, store)
        self._lock = asyncio.Lock()
        self._writer = uuid4()
        self._key: Ed25519PrivateKey | None = None
        self._exclusive = False
        self._unrolled: list[Signed] = []
        self._replicated: dict[str, int] = {}
        self._set_aside: set[str] = set()
        self._asleep = Stopwatch(_SLEEP_SECONDS)
        self.unseen: set[str] = set()
        self.damaged: Mapping[str, str] = {}
        """Regions to be mended before they are written again, and why."""
        self.state = LogState()
        store.replicas.on_behind = self._fell_behind

    @property
    def writer(self) -> UUID:
        """This process's identity in the archive."""
        return self._writer

    def scan(self) -> AsyncIterator[Signed]:
        """All manifests from the first to the newest, signatures and chain verified. Raises IntegrityError."""
        return self.reader.scan()

    async def follow(self, key: Ed25519PrivateKey, *, going_on: bool = False) -> None:
        """Become able to append beside a running daemon: for base snapshots and drills, never for changes.

        Regions that lack the end of the log are behind: where the policy waits for every region, they are repaired
        at once. Those that cannot be asked, where the policy goes on without them, are `unseen`. `going_on`: a region
        that holds another archive is set aside, and not an error.
        """
        self._key = key
        async for signed in self.scan():
            self._observe(signed)
        newest = {region.name: await self._ask_newest(region) for region in self._store.stores}
        for region in self._store.replicas.in_step:
            if newest[region.name] is None:  # the last one: it is waited for, as long as it takes
                newest[region.name] = await self._newest(region)
        await self._read_on(max(filter(None, newest.values()), default=0))
        for region in self._store.stores:
            await self._find_standing(region, newest[region.name])
        for name, what in self.damaged.items():
            self._store.replicas.fall_behind(name, what)
        if self._store.replicas.policy.patience is None:
            for region in self._store.replicas.behind:
                await self._rejoin_or_set_aside(region, going_on=going_on)

    async def _rejoin_or_set_aside(self, region: Store, *, going_on: bool) -> None:
        """A daemon goes on without a region that holds another archive; a command, beside it, would part from it."""
        try:
            await self.rejoin(region)
        except RegionsDisagree:
            raise
        except IntegrityError as exc:
            if not going_on:
                raise
            self._set_aside.add(region.name)
            log.error("a region is set aside", region=region.name, error=str(exc), hint=exc.hint)

    async def take_over(self, key: Ed25519PrivateKey, fence: Fence) -> None:
        """Become the archive's one writer of changes; a daemon that wrote before stops at its next append."""
        if self._key is None:
            await self.follow(key)
        await self.append(fence)
        self._exclusive = True

    async def append(self, entry: Entry) -> Signed:
        """Commit one entry in every region. Raises Fenced when another daemon has taken over."""
        async with self._lock:
            while True:
                signed = self._next(entry)
                if self._asleep.is_long():
                    await self._require_no_hole(signed)
                try:
                    await self._store.put(layout.manifest(signed.seq), signed.data, if_absent=True)
                except ObjectExists:
                    await self._accept_other(signed.seq, entry)
                    continue
                except RegionsDisagree:
                    if not self._exclusive:
                        await self._take_back(signed)
                    raise
                if self._asleep.is_long():
                    await self._take_back_from_hole(signed)
                self._asleep.restart()
                self._observe(signed)
                await self._heal()
                await self._roll_up()
                return signed

    async def require_nothing_beyond(self) -> None:
        """Ask every region again. Raises StoreUnavailable where one may hold what a daemon wrote, RegionsDisagree."""
        for region in self._store.stores:
            newest = await self._ask_newest(region)
            if newest is None or await self._daemon_wrote(newest):
                raise StoreUnavailable(
                    "a region may hold the changes that the replication slot no longer has",
                    where=region.name,
                    hint="Bring that region back. Once it is out of the configuration, a gap is recorded.",
                )

    async def _daemon_wrote(self, newest: int) -> bool:
        """Whether a daemon wrote any of the manifests up to `newest` that we have not seen; commands write beside."""
        head = self.state.head.seq if self.state.head else 0
        for seq in range(head + 1, newest + 1):
            if isinstance((await self.reader.read(seq)).entry, _OWNED_BY_DAEMON):
                return True
        return False

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

    # --- regions that are behind ---

    def unreplicated(self, region: str) -> int:
        """Change segments of the log that a region does not hold."""
        newest = self.state.changes.ordinal if self.state.changes else 0
        return newest - self._replicated.get(region, newest)

    async def rejoin(self, region: Store) -> None:
        """Copy to a region what it lacks, and write it again from then on. Raises StoreError, RegionsDisagree."""
        log.info("a region is being repaired", region=region.name, segments=self.unreplicated(region.name))
        replicas = self._store.replicas
        repair = self._repair_of(region, Mirror(replicas.in_step))
        while await self._copy_log(repair, region) > _CLOSE:
            pass
        await self._copy_missed(repair, region)
        async with self._lock, asyncio.timeout(_REJOIN_SECONDS if replicas.policy.patience else None):
            await self._finish(repair, region)
        log.info("a region is in step again", region=region.name)

    async def _finish(self, repair: Repair, region: Store) -> None:
        """The last of what a region lacks, while nothing is appended."""
        await self._copy_log(repair, region)
        await self._copy_missed(repair, region)
        self._store.replicas.rejoin(region.name)  # nothing may happen between the last copy and this
        self._store.damaged.pop(region.name, None)
        self._replicated.pop(region.name, None)

    async def _heal(self) -> None:
        """Where every region must have what counts, one that fell behind (over what was not ours) gets it at once."""
        if self._store.replicas.policy.patience is not None or self._store.replicas.policy.first:
            return
        for region in self._store.replicas.behind:
            if region.name not in self._set_aside:
                await self._finish(self._repair_of(region, Mirror(self._store.replicas.in_step)), region)

    def _repair_of(self, region: Store, source: Mirror) -> Repair:
        return Repair(self._archive, source, region, self._store.replicas.is_foreign)

    async def _copy_log(self, repair: Repair, region: Store) -> int:
        copied = 0
        async for signed in repair.copy_log():
            copied += 1
            if isinstance(signed.entry, Changes):
                self._replicated[region.name] = signed.entry.ordinal
        return copied

    async def _copy_missed(self, repair: Repair, region: Store) -> None:
        while missed := self._store.replicas.missed(region.name):
            key = min(missed)
            if not key.startswith(_IN_ORDER):
                await repair.copy_unnamed(key)
            missed.discard(key)

    async def _newest(self, region: Store) -> int:
        """The newest manifest of a region, 0 if it holds none.

        Its number says little: another daemon may have written another manifest in that place. Raises RegionsDisagree.
        """
        newest = await self.reader.newest(region)
        if newest:
            await self._repair_of(region, self._store).compare(layout.manifest(newest))
        return newest

    async def _ask_newest(self, region: Store) -> int | None:
        """The same; None where it does not answer soon and the policy goes on without it."""
        patience = self._store.replicas.policy.patience
        try:
            async with asyncio.timeout(max(_ANSWER_SECONDS, patience.total_seconds()) if patience else None):
                return await self._newest(region)
        except (StoreError, TimeoutError) as exc:
            if patience is None:
                raise
            self.unseen.add(region.name)
            self._store.replicas.fall_behind(region.name, str(exc) or "it does not answer")
            return None

    async def _read_on(self, newest: int) -> None:
        """A region that did not answer the scan, and answers now, may hold more than was seen."""
        seen = self.state.head.seq if self.state.head else 0
        for seq in range(seen + 1, newest + 1):
            signed = await self.reader.read(seq)
            manifest.check_chain(self.state.head, signed, self._archive.archive)
            self._observe(signed)

    async def _find_standing(self, region: Store, newest: int | None) -> None:
        """Whether a region holds the log's end. A daemon that runs may just be writing the newest manifest there."""
        head = self.state.head.seq if self.state.head else 0
        if newest is None:
            return
        for _ in range(_ASK_AGAIN):
            if newest >= head:
                return
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
            newest = max(newest, await self._ask_newest(region) or 0)
        if newest < head:
            self._replicated[region.name] = await self._ordinal_at(newest)
            lacks = f"it lacks manifests {newest + 1} to {head}"
            self._store.replicas.fall_behind(region.name, lacks)
            if region in self._store.replicas.in_step:  # the last one: ours would stand behind a hole
                raise StoreUnavailable(
                    "the regions that hold the end of the log do not answer",
                    where=f"{region.name}: {lacks}",
                    hint="Bring them back.",
                )

    def _fell_behind(self, region: str, why: str) -> None:
        """From here on a region gets nothing: what it lacks is counted."""
        self._replicated.setdefault(region, self.state.changes.ordinal if self.state.changes else 0)
        log.error("a region is behind: it is repaired from the others when it answers", region=region, reason=why)

    async def _ordinal_at(self, seq: int) -> int:
        """The newest change segment that the log holds up to a place."""
        for earlier in range(seq, self.reader.begins_at - 1, -1):
            entry = (await self.reader.read(earlier)).entry
            if isinstance(entry, Changes):
                return entry.ordinal
        return 0

    @property
    def system_identifier(self) -> str:
        """The source's, which may have changed since the archive was made."""
        return self.state.system_identifier or self._archive.system_identifier

    # --- others ---

    async def _require_no_hole(self, signed: Signed) -> None:
        """After a long sleep the log may have gone on, and our place in it have been expired: then it looks free."""
        newer = await self.reader.following(signed.seq)
        if newer and await self._store.size(layout.manifest(signed.seq)) is None:
            raise Fenced(
                "the log has gone on without this process, and its place in it has been expired",
                where=f"manifest {signed.seq}; the newest is {newer[-1]}",
                hint="Start it again; this one has confirmed nothing since.",
            )

    async def _take_back(self, ours: Signed) -> None:
        """A daemon that goes on without a region has our place in another: it repairs the first, if we make room."""
        name = layout.manifest(ours.seq)
        for region in self._store.stores:
            with contextlib.suppress(ObjectNotFound):
                if await region.get(name) == ours.data:
                    await region.delete(name)
        raise StoreUnavailable(
            "a region fell behind meanwhile, and the daemon goes on without it",
            where=f"manifest {ours.seq}",
            hint="Nothing was recorded. Run it again when the regions are in step (archiver info).",
        )

    async def _take_back_from_hole(self, signed: Signed) -> None:
        """The sleep may have been between the look and the write: what stands next must follow ours."""
        newer = await self.reader.following(signed.seq)
        if newer and (newer[0] != signed.seq + 1 or (await self.reader.read(newer[0])).manifest.prev != signed.hash):
            await self._store.delete(layout.manifest(signed.seq))
            raise Fenced(
                "the log had gone on without this process, whose place in it had been expired",
                where=f"manifest {signed.seq} was written and taken back",
                hint="Start it again; this one has confirmed nothing since.",
            )

    async def _accept_other(self, seq: int, ours: Entry) -> None:
        """Another writer took our place in the log: go on behind it, unless it took over the archive."""
        name = layout.manifest(seq)
        other = self.reader.parse(await self._store.get(name))
        manifest.check_chain(self.state.head, other, self._archive.archive)
        if self._exclusive and isinstance(other.entry, _OWNED_BY_DAEMON):
            raise Fenced(
                "another archiver has taken over this archive",
                where=f"manifest {seq}, {_describe(other)}",
                hint="Run one daemon for an archive; this one has confirmed nothing since.",
            )
        if isinstance(ours, Snapshot) and isinstance(other.entry, Gap) and other.entry.new_history:
            raise PostgresError(
                "the source's history began anew meanwhile: this belongs to the one before",
                where=f"manifest {seq}",
                hint="Run it again.",
            )
        # It may have died between two regions, or not have reached one of them: ours must not stand behind a hole.
        for region in self._store.replicas.in_step:
            await self._repair_of(region, self._store).copy_named(other.entry)
        await self._store.put(name, other.data, if_absent=True)
        self._observe(other)
        self._asleep.restart()  # what was just read stands behind no hole

    def _observe(self, signed: Signed) -> None:
        self.state.observe(signed)
        if signed.seq > self.reader.rolled_up_to:
            self._unrolled.append(signed)

    async def _roll_up(self) -> None:
        """Every thousand manifests become one object, so that a restore reads few. Losing one costs only time."""
        while self._exclusive and len(self._unrolled) >= catalog.ROLLUP:
            block = self._unrolled[: catalog.ROLLUP]
            name = layout.rollup(block[0].seq, block[-1].seq)
            await self._store.put(name, catalog.pack([signed.data for signed in block]))
            del self._unrolled[: catalog.ROLLUP]
            self.reader.rolled_up_to = block[-1].seq


_SLEEP_SECONDS = 300.0  # manifests live for days before they are expired; to look costs a listing
_IN_ORDER = (layout.MANIFESTS, layout.CATALOG)  # the log is copied in its order, each manifest behind its objects
_CLOSE = 8  # manifests that are copied while appending waits
_REJOIN_SECONDS = 30.0  # how long appending may wait for that
_ANSWER_SECONDS = 10.0  # a region may take so long to list its manifests, however soon the policy goes on without it
_ASK_AGAIN = 3
_ASK_AGAIN_SECONDS = 0.3


def _describe(signed: Signed) -> str:
    entry = signed.entry
    who = f"{entry.host} pid {entry.pid}" if isinstance(entry, Fence) else f"writer {signed.manifest.writer}"
    return f"{who} at {manifest.format_time(signed.manifest.created)}"
