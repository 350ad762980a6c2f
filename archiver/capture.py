"""Capture: from the replication stream to change segments that are durable in every region, in order.

In: an archive that this process has taken over, and the source. What it promises: the flush LSN that it reports is
never past the end of the manifest log, so that nothing is confirmed before it is durable. The server gets its status
messages from a task of their own, whatever the uploads do. At most `IN_FLIGHT` segments are held in memory;
then reading stops, and the source keeps what has not been read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self
from uuid import uuid4

import structlog

from archiver.archive import OpenArchive, Place
from archiver.config import SegmentSection, SourceSection
from archiver.errors import PostgresError, SlotLost, StreamBroken
from archiver.format import layout, pgoutput, segment
from archiver.format.journal import words_for
from archiver.format.manifest import Catalog, Changes, Lost, ObjectRef
from archiver.format.seal import Kind
from archiver.lsn import Lsn
from archiver.metrics import Metrics
from archiver.policy import rotation, schema_watch
from archiver.policy.breaks import Breaks
from archiver.policy.cut import Cut
from archiver.policy.schema_watch import SchemaWatch
from archiver.policy.sequence_log import SequenceLog
from archiver.policy.stream import ChangeStream
from archiver.postgres.install import trusted_journal
from archiver.postgres.replication import ReplicationStream
from archiver.postgres.replication_slot import SystemIdentity, slot_info
from archiver.postgres.sequences import read_sequences
from archiver.postgres.source import Sample, Source
from archiver.tasks import loop_time, task_group

IN_FLIGHT = 3
STATUS_SECONDS = 1.0  # a fifth of the smallest wal_sender_timeout that we promise to live with
DRAIN_SECONDS = 25.0
DEAD_AFTER = 3  # samples in a row in which nobody reads the slot, while we believe that we do
SLOT_SECONDS = 3.0  # no status is sent meanwhile
LOOKS = 5  # times that the catalog is asked for, a second apart, before a segment goes without
_SAMPLES = 100_000  # a day of samples: more than any outage that a slot survives

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Position:
    """Where the log ends: the next ordinal, and the LSN up to which every commit is durable."""

    ordinal: int
    lsn: Lsn


class Capture:
    """One daemon's capture. `run` returns when `stop` is set and everything read has been made durable.

    `catalog` is how the source's was seen before the log first speaks of it. `breaks` hears of transactions that the
    server could not send.
    """

    def __init__(
        self,
        *,
        archive: OpenArchive,
        source: SourceSection,
        settings: SegmentSection,
        monitor: Source,
        metrics: Metrics,
        start: Position,
        system: SystemIdentity,
        catalog: Catalog | None = None,
        breaks: Breaks | None = None,
    ) -> None:
        self.breaks = breaks or Breaks()
        self._archive = archive
        self._source = source
        self._settings = settings
        self._monitor = monitor
        self._metrics = metrics
        self._durable = start
        self._system = system
        self._connection = 0
        self._journal: int | None = None
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._sequences = SequenceLog()
        self._catalog = catalog
        self._watch = SchemaWatch(catalog, start.lsn)
        self._in_order = asyncio.Lock()
        self._confirmed = asyncio.Event()
        self._committing: asyncio.Task[None] | None = None
        self.covered_until: datetime | None = None
        self.age: timedelta | None = None
        """Of the recovery point, by the source's clock."""
        self.streaming = False
        self._progressed = False
        self._stream: ReplicationStream | None = None
        self._unread = 0
        self._unarchived = 0

    @property
    def durable(self) -> Lsn:
        """Every commit up to here is in the manifest log of every region."""
        return self._durable.lsn

    async def run(self, stop: asyncio.Event) -> None:
        """Stream until `stop`. Raises what ends the connection; calling again goes on where the log ends."""
        if self._committing is not None:
            await asyncio.shield(self._committing)
        self._connection += 1
        self._sequences = SequenceLog()
        # What the last connection saw, and did not get into the log, must be seen again.
        state = self._archive.log.state
        told = state.lost.lsn if state.lost else self._catalog.lsn if self._catalog else Lsn(0)
        self._watch = SchemaWatch(state.catalog or self._catalog, self.durable, told)
        stream = await ReplicationStream.start(
            self._source.dsn,
            self._source.slot,
            self._source.publication,
            self.durable,
            in_progress=not self.breaks.times,
        )
        self._stream, self._unread = stream, 0
        try:
            await self._require_unmoved(stream)
            self._journal = await self._monitor.ask(trusted_journal, SLOT_SECONDS)
            self.streaming = True
            log.info("capturing", slot=self._source.slot, lsn=str(self.durable))
            async with task_group() as tasks:
                status = tasks.create_task(self._report_status(stream), name="status")
                await self._capture(stream, stop)
                status.cancel()
            await stream.send_status(self.durable, self.durable)
        finally:
            self.streaming = False
            self._stream = None
            await stream.close()

    async def _require_unmoved(self, stream: ReplicationStream) -> None:
        """Raise SlotLost when the server is another one, or skips what we lack: the next start records the gap.

        Asked while we hold the slot: nobody can move it now. It comes before the first status: a confirmation of an
        earlier position would hide the move.
        """
        if not stream.system.is_one_with(self._system):
            raise SlotLost(f"the source is system {stream.system.system_id}, timeline {stream.system.timeline} now")
        slot = await self._monitor.ask(lambda conn: slot_info(conn, self._source.slot), SLOT_SECONDS)
        if slot is None or (slot.confirmed_flush_lsn or 0) > self.durable:
            what = "the replication slot was moved before streaming began"
            raise SlotLost(what, where=f"archive at {self.durable}")

    async def abandon(self) -> None:
        """End what outlives a connection: a manifest on its way. Who opens the log next sees whether it got there."""
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.wait([self._committing])

    def take_progress(self) -> bool:
        """Whether anything was committed since the last call: then a lost connection is a new misfortune."""
        progressed, self._progressed = self._progressed, False
        return progressed

    def tell_unarchived(self, count: int) -> None:
        """How many tables nobody excluded are not archived, or not wholly: the next segments say so."""
        self._unarchived = count

    def observe(self, sample: Sample) -> None:
        """Learn where the source stands; the next segments use it to say until when they are complete."""
        self._samples.append(sample)
        self._check_alive(sample)
        self._metrics.lag_bytes.set(max(0, sample.lsn - self.durable))
        self._metrics.slot_retained_bytes.set(sample.retained)
        self._set_age(sample.time, caught_up=sample.lsn <= self.durable)

    def _check_alive(self, sample: Sample) -> None:
        """A network may lose everything and close nothing: the server then knows first that nobody is there."""
        self._unread = 0 if sample.active else self._unread + 1
        if self._unread >= DEAD_AFTER:
            self.leave("the connection is dead: the server says that nobody reads the slot")

    def leave(self, why: str) -> None:
        """End the stream, so that the server need not wait for us: what is not durable it sends again."""
        if self._stream is not None:
            self._stream.give_up(why)

    def observe_silence(self, now: datetime) -> None:
        """The source does not answer: what is not archived grows older all the same, by our own clock."""
        self._set_age(now, caught_up=False)

    def _set_age(self, now: datetime, *, caught_up: bool) -> None:
        if self.covered_until:
            self.age = max(timedelta(0), now - self.covered_until)
            self._metrics.recovery_point_age_seconds.set(self.age.total_seconds())
            self._metrics.lag_seconds.set(0 if caught_up else self.age.total_seconds())

    # --- reading ---

    async def _capture(self, stream: ReplicationStream, stop: asyncio.Event) -> None:
        changes = ChangeStream(self.durable, self._durable.ordinal)
        limits = self._settings
        broken: StreamBroken | None = None
        async with _Pipeline(self._seal_and_store, self._commit) as pipeline:
            cut_at = loop_time()
            while not stop.is_set() and broken is None:
                changes.journal = self._journal
                try:
                    frames = await stream.receive(min(0.25, limits.max_age.total_seconds() / 4))
                    if changes.takes_long(frames):  # the server must hear of us meanwhile
                        await asyncio.to_thread(changes.feed, frames)
                    else:
                        changes.feed(frames)
                except StreamBroken as exc:
                    broken = exc
                self._count(changes)
                age = timedelta(seconds=loop_time() - cut_at)
                if rotation.is_due(changes.size, age, max_bytes=limits.max_bytes, max_age=limits.max_age):
                    await pipeline.submit(changes.cut())
                    cut_at = loop_time()
                else:
                    await asyncio.sleep(0)
            await pipeline.submit(changes.cut())
            # What came before is durable before the next attempt: where a gap must be, it is no longer than it must be.
            async with asyncio.timeout(DRAIN_SECONDS if broken is None else None):
                await pipeline.drain()
        if broken is not None:
            self.breaks.observe(broken, changes.sending, changes.position)
            raise broken

    def _count(self, changes: ChangeStream) -> None:
        messages, commits, received = changes.take_counts()
        self._metrics.messages_total.inc(messages)
        self._metrics.transactions_total.inc(commits)
        self._metrics.received_bytes_total.inc(received)

    async def _report_status(self, stream: ReplicationStream) -> None:
        """Confirm what is durable as soon as it is, and otherwise say every second that we live."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    await self._confirmed.wait()
            self._confirmed.clear()
            await stream.send_status(self.durable, self.durable)
            self._metrics.confirmed_flush_lsn.set(self.durable)

    # --- sealing and storing: several at once ---

    async def _seal_and_store(self, cut: Cut) -> Changes:
        sample = self._last_sample(cut.end)
        size = len(cut.body)
        async with self._in_order:
            told = await self._add_sequences(cut)
            await self._watch_schema(cut)
            catalog = self._watch.catalog
        points = [await self._archive.seal_point(point, time) for point, time in cut.points]
        worth_storing = cut.messages > 0 or len(cut.body) > size
        return cut.entry(
            self._connection,
            self._system.timeline,
            covered_until=sample.time if sample else self.covered_until,
            sequences=told,
            catalog=catalog,
            unarchived=self._unarchived,
            restore_points=points,
            stored=await self._store(cut) if worth_storing else None,
        )

    async def _add_sequences(self, cut: Cut) -> bool:
        """Add the sequences that moved. Read after the segment's last commit, they are never below it."""
        try:
            sequences = await self._monitor.ask(partial(read_sequences, skip_held=True))
            read_at = (await self._monitor.sample()).lsn
        except PostgresError as exc:
            log.warning("sequences not read", error=str(exc))
            return False
        changed = self._sequences.changed([state.to_json() for state in sequences.states], read_at, cut.end)
        if changed:
            cut.body += segment.encode(segment.Sequences(changed))
        return sequences.complete

    async def _watch_schema(self, cut: Cut) -> None:
        """Look at the catalog after the segment's last commit: no segment is committed that hides a change."""
        for attempt in range(1, LOOKS + 1):
            try:
                look = await self._monitor.look(_described(cut), cut.announced, cut.named)
            except PostgresError as exc:
                log.warning("catalog not read", error=str(exc), attempt=attempt)
                await asyncio.sleep(1)
            else:
                self._journal = look.journal
                lost = self._watch.judge(look, cut.start)
                if look.strangers:
                    log.warning("the catalog does not show what the stream described", tables=look.strangers)
                cut.lost += [lost] if lost else []
                return
        if cut.end > cut.start and not self._watch.is_captured:
            cut.lost.append(Lost(lsn=cut.end, since=cut.start, reason=schema_watch.NOT_SEEN))

    async def _store(self, cut: Cut) -> ObjectRef:
        sealer = await self._archive.sealer(Place(Kind.CHANGES, cut.ordinal, cut.start, cut.end))
        with self._metrics.seal_seconds.time():
            await asyncio.to_thread(sealer.write, cut.body)
        cut.body = bytearray()  # sealed: the bodies in flight are most of the daemon's memory
        name = layout.segment(cut.ordinal, cut.start, cut.end, uuid4())
        return await self._archive.store_sealed(name, sealer)

    # --- committing: one after the other ---

    async def _commit(self, entry: Changes) -> None:
        """A lost connection must not leave a manifest of ours in some regions, unknown to us."""
        self._committing = asyncio.create_task(self._append(entry), name=f"manifest of segment {entry.ordinal}")
        await asyncio.shield(self._committing)

    async def _append(self, entry: Changes) -> None:
        await self._archive.log.append(entry)
        for lost in entry.lost:
            log.error(
                "a schema change was not captured: a base snapshot follows",
                lsn=str(lost.lsn),
                since=str(lost.since) if lost.since is not None else None,
                reason=words_for(lost.reason),
            )
        self._durable = Position(entry.ordinal + 1, entry.end_lsn)
        self.covered_until = entry.covered_until
        self.breaks.passed(entry.end_lsn)
        self._progressed = True
        self._metrics.segments_total.inc()
        self._confirmed.set()

    def _last_sample(self, lsn: Lsn) -> Sample | None:
        """The newest sample at or before `lsn`; older ones are of no more use."""
        found = None
        while self._samples and self._samples[0].lsn <= lsn:
            found = self._samples.popleft()
        if found:
            self._samples.appendleft(found)
        return found


def _described(cut: Cut) -> list[pgoutput.Relation]:
    relations = map(pgoutput.decode, cut.described)
    return [relation for relation in relations if isinstance(relation, pgoutput.Relation)]


class _Pipeline:
    """Prepares up to IN_FLIGHT cuts at once and commits them strictly in their order."""

    def __init__(
        self, prepare: Callable[[Cut], Coroutine[Any, Any, Changes]], commit: Callable[[Changes], Awaitable[None]]
    ) -> None:
        self._prepare = prepare
        self._commit = commit
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._queue: asyncio.Queue[asyncio.Task[Changes]] = asyncio.Queue()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._committer = self._tasks.create_task(self._commit_in_order(), name="commit")
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self._committer.cancel()
        await self._tasks.__aexit__(*exc)

    async def submit(self, cut: Cut) -> None:
        """Take a cut over; waits while too many are in flight, and that is the backpressure."""
        await self._room.acquire()
        self._queue.put_nowait(self._tasks.create_task(self._prepare(cut), name=f"segment {cut.ordinal}"))

    async def drain(self) -> None:
        """Wait until all that was submitted is committed."""
        await self._queue.join()

    async def _commit_in_order(self) -> None:
        while True:
            await self._commit(await (await self._queue.get()))
            self._queue.task_done()
            self._room.release()
