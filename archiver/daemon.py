"""The daemon: capture, base snapshots, monitoring and the HTTP port under one roof, until it is told to stop.

In: a configuration. It takes the archive over, compares slot and archive, and goes on from the log's end. Every task
has a name and is owned by one group; one that fails stops the daemon, loudly. It keeps nothing on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import structlog

from archiver import __version__, broken_stream
from archiver.alignment import Alignment, patiently, second_reader, tell_blocker
from archiver.archive import OpenArchive
from archiver.capture import Capture, Position
from archiver.config import Config
from archiver.errors import (
    ConfigError,
    IntegrityError,
    PostgresError,
    PostgresUnavailable,
    RegionsDisagree,
    SlotLost,
    StoreError,
    StreamBroken,
    TransactionLeftOut,
    UsageError,
)
from archiver.format.manifest import Catalog, Fence
from archiver.http import serve
from archiver.inspection import look_regularly
from archiver.keys import PatientKek
from archiver.metrics import Metrics
from archiver.policy.breaks import Breaks
from archiver.policy.schema_watch import SchemaWatch
from archiver.policy.slot_danger import SlotDanger
from archiver.postgres.install import require_own_publication, sweep
from archiver.postgres.replication_slot import each_once
from archiver.postgres.session import is_shutting_down
from archiver.postgres.source import Sample, Source
from archiver.regions import open_configured, open_keks, open_regions
from archiver.snapshots import take_snapshot
from archiver.store.base import Store
from archiver.store.mirror import Mirror
from archiver.table_watch import TableWatch
from archiver.tasks import BACKOFF_CAP, loop_time, task_group

SAMPLE_SECONDS = 1.0
SHUTDOWN_PATIENCE = 3  # samples refused: a walsender has that long to send the rest before the server ends
SLOT_ALARM = 3600.0  # seconds before the slot is lost
SLOT_WARN_EVERY = timedelta(minutes=1)
STOP_SECONDS = 26.0  # SIGTERM promises 30
TRAIL_SECONDS = 2.0  # for what one region has and the others were getting
SNAPSHOT_RETRY = 60.0
REPAIR_RETRY = 60.0
THREADS = 4

log = structlog.get_logger()
T = TypeVar("T")


class Daemon:
    """One run of `archiver run`. `ready` tells why it is not, `metrics` how it does."""

    def __init__(self, config: Config, *, accept_gap: bool = False, skip: int | None = None) -> None:
        self._config = config
        self._skip = skip
        self._source = config.require_source()
        self.metrics = Metrics()
        self._danger = SlotDanger(self._source.drop_slot_at)
        self._alignment = Alignment(self._source, self.metrics.gaps_total.inc, accept_gap=accept_gap)
        self._warned = datetime.min.replace(tzinfo=UTC)
        self._monitor = Source(self._source.dsn, self._source.slot)
        self._tables = TableWatch(self._source, self._monitor, self.metrics)
        self._capture: Capture | None = None
        self._refusals = 0
        self._rest_until = 0.0
        """Schema changes and gaps may follow each other: base snapshots for their sake take half of the time."""

    def not_ready(self) -> str | None:
        """Why this daemon is not ready, None if it is: it must be streaming, and the lag bounded."""
        if self._capture is None or not self._capture.streaming:
            return "not streaming from the source"
        age = self._capture.age
        if age is None or age > self._config.http.ready_lag:
            return f"more than {self._config.http.ready_lag} behind the source"
        return None

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set and what was read is durable. Raises ArchiverError."""
        # Few threads, whatever the machine: each costs the allocator an arena, and memory is promised.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "archiver"))
        mirror = open_regions(self._config, patience=None, metrics=self.metrics)
        try:
            async with self._http():
                if await self._run_to_the_end(mirror, stop):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(TRAIL_SECONDS):
                            await mirror.replicas.finish()
        finally:
            await self._monitor.close()
            await mirror.close()

    async def _run_to_the_end(self, mirror: Mirror, stop: asyncio.Event) -> bool:
        """Start and work; after a lost slot start again, which records the gap. False if nothing was started."""
        while not stop.is_set() and (archive := await _unless_stopped(self._start(mirror), stop)) is not None:
            try:
                await self._work(archive, stop)
            except SlotLost as exc:
                is_whole = isinstance(exc, TransactionLeftOut)
                log.error("a transaction is left out" if is_whole else "the replication slot is lost", error=str(exc))
                await _unless_stopped(self._abandon(), stop)
            else:
                return True
        return False

    async def _abandon(self) -> None:
        if self._capture is not None:
            await self._capture.abandon()
        if self._danger.must_give_up:
            await patiently(self._alignment.drop_slot)
        self._danger = SlotDanger(self._source.drop_slot_at)
        await self._monitor.close()  # it may still be open to a server that is the source no more
        await asyncio.sleep(SAMPLE_SECONDS)

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[None]:
        """The HTTP port. Where it is taken, by a daemon of this very archive, that is what must be said."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(serve(self._config.http, self.metrics, self.not_ready))
            except ConfigError:
                with contextlib.suppress(PostgresError):
                    slot = await self._alignment.slot()
                    if slot is not None and slot.active:
                        raise second_reader(slot) from None
                raise
            yield

    async def _start(self, mirror: Mirror) -> OpenArchive:
        """Open the archive, wait for the source and its slot, take over, and find where to go on."""
        keks = [PatientKek(kek) for kek in open_keks(self._config)]
        archive = await open_configured(self._config, mirror, keks)
        await patiently(lambda: self._alignment.check_identity(archive))
        await patiently(
            lambda: self._monitor.ask(partial(require_own_publication, publication=self._source.publication))
        )
        await self._alignment.wait_for_slot()
        self._show_regions(archive)
        await archive.follow(going_on=True)
        await self._alignment.require_all_seen(archive)
        await archive.take_over(Fence(host=socket.gethostname(), pid=os.getpid(), version=__version__))
        position = await patiently(lambda: self._alignment.align(archive))
        assert self._alignment.system is not None
        state = archive.log.state
        catalog = await self._first_look(position) if state.catalog is None and state.snapshot is None else None
        self._capture = Capture(
            archive=archive,
            source=self._source,
            settings=self._config.segment,
            monitor=self._monitor,
            metrics=self.metrics,
            start=position,
            system=self._alignment.system,
            catalog=catalog,
            breaks=Breaks(self._skip),
        )
        self.metrics.stream_breaks.set_function(self._capture.breaks.times_in_one)
        self._capture.tell_unarchived(state.changes.unarchived if state.changes is not None else 0)
        return archive

    async def _first_look(self, position: Position) -> Catalog | None:
        """The catalog before anything is archived: what changes while the first base snapshot is taken is seen then."""
        watch = SchemaWatch(None, position.lsn)
        watch.judge(await patiently(self._monitor.look), position.lsn)
        return watch.catalog

    async def _work(self, archive: OpenArchive, stop: asyncio.Event) -> None:
        assert self._capture is not None
        async with task_group() as tasks:
            helpers = [
                tasks.create_task(self._watch_source(archive), name="monitor"),
                tasks.create_task(self._take_snapshots(archive), name="snapshots"),
                tasks.create_task(self._tables.count(archive, self._capture.tell_unarchived), name="tables"),
                tasks.create_task(self._repair_regions(archive), name="repair"),
                tasks.create_task(look_regularly(archive, self._tell_missing), name="inspection"),
            ]
            capture = tasks.create_task(self._keep_capturing(archive, self._capture, stop), name="capture")
            await self._until_stopped(capture, stop)
            for helper in helpers:
                helper.cancel()

    async def _until_stopped(self, capture: asyncio.Task[None], stop: asyncio.Event) -> None:
        waiting = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([capture, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.shield(capture)
        if not capture.done():
            log.warning("stopped before everything was durable: PostgreSQL will send the rest again")
            capture.cancel()

    # --- tasks ---

    async def _keep_capturing(self, archive: OpenArchive, capture: Capture, stop: asyncio.Event) -> None:
        """Capture until stopped; when the source goes away, wait for it and go on where the log ends."""
        attempt = 0
        while not stop.is_set():
            try:
                if attempt:
                    await self._check_unmoved(archive, capture)
                await capture.run(stop)
            except PostgresUnavailable as exc:
                attempt = 1 if capture.take_progress() else attempt + 1
                if isinstance(exc, StreamBroken):
                    self._weigh(capture.breaks, exc)
                    attempt = max(attempt, capture.breaks.times)
                pause = random.uniform(0, min(BACKOFF_CAP, 0.5 * 2.0 ** min(attempt, 10)))  # noqa: S311 - jitter
                log.warning("the source is not available", error=str(exc), retry_in=round(pause, 1))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await stop.wait()
                continue
            except TimeoutError:  # of the drain: a region is down
                log.warning("stopped before everything was durable: PostgreSQL will send the rest again")
                await capture.abandon()
                return
        log.info("stopped", lsn=str(capture.durable), seq=archive.log.state.head.seq if archive.log.state.head else 0)

    def _weigh(self, breaks: Breaks, error: StreamBroken) -> None:
        """Raise TransactionLeftOut where the stream will never come past a transaction."""
        if (left_out := broken_stream.weigh(breaks, error)) is not None:
            self._alignment.left_out = left_out
            raise TransactionLeftOut(left_out.reason, where=f"streaming goes on at {left_out.resume}")

    async def _check_unmoved(self, archive: OpenArchive, capture: Capture) -> None:
        """Raise when what we reconnect to is not what we lost: the next start records the gap."""
        system = await self._alignment.check_identity(archive)
        before = self._alignment.system
        if before is None or not system.is_one_with(before):
            raise SlotLost(f"the source is system {system.system_id} on timeline {system.timeline} now")
        slot = await self._alignment.slot()
        if slot is None or slot.is_lost or (slot.confirmed_flush_lsn or 0) > capture.durable:
            what = "the replication slot is gone or was moved while the connection was lost"
            raise SlotLost(what, where=f"archive at {capture.durable}")

    def _observe_drill(self, archive: OpenArchive) -> None:
        """Drills are appended by other processes: the log tells of them as soon as we append behind them."""
        drill = archive.log.state.drill
        if drill is not None:
            self.metrics.last_drill_timestamp_seconds.set(drill.finished_at.timestamp())
            self.metrics.last_drill_success.set(drill.verdict == "passed")

    async def _repair_regions(self, archive: OpenArchive) -> None:
        """Bring regions that are behind up to the others, and write them again."""
        under_way: dict[str, asyncio.Task[None]] = {}
        async with task_group() as tasks:
            while True:
                for region in archive.store.replicas.behind:
                    if region.name not in under_way or under_way[region.name].done():
                        repair = self._repair(archive, region)
                        under_way[region.name] = tasks.create_task(repair, name=f"repair of {region.name}")
                await asyncio.sleep(SAMPLE_SECONDS)

    async def _repair(self, archive: OpenArchive, region: Store) -> None:
        """Returns when it is done, or failed in a way that may pass. One that is down is waited for."""
        try:
            await archive.log.rejoin(region)
        except (StoreError, TimeoutError) as exc:
            log.warning("region not repaired yet", region=region.name, error=str(exc) or "no time left")
        except RegionsDisagree:
            raise
        except IntegrityError as exc:
            log.error("region not repaired", region=region.name, error=str(exc), hint=exc.hint)
            await asyncio.sleep(REPAIR_RETRY)

    def _show_regions(self, archive: OpenArchive) -> None:
        """Let the metrics ask, whenever they are read."""
        self.metrics.degraded.set_function(lambda: bool(archive.store.replicas.behind or archive.store.damaged))
        for region in self._config.region:
            unreplicated = self.metrics.region_unreplicated_segments.labels(region.name)
            unreplicated.set_function(partial(archive.log.unreplicated, region.name))

    def _tell_missing(self, region: str, count: int) -> None:
        self.metrics.missing_objects.labels(region).set(count)

    async def _watch_source(self, archive: OpenArchive) -> None:
        while True:
            self._observe_drill(archive)
            try:
                sample = await self._monitor.sample()
                if self._capture is not None:
                    self._capture.observe(sample)
                self._watch_slot(sample)
            except SlotLost:
                raise
            except PostgresError as exc:
                log.warning("the source does not answer", error=str(exc))
                self._bear_silence(exc)
            await asyncio.sleep(SAMPLE_SECONDS)

    def _bear_silence(self, error: PostgresError) -> None:
        """The recovery point ages; and no shutdown of the source waits for regions that do not answer us."""
        if self._capture is None:
            return
        self._capture.observe_silence(datetime.now(UTC))
        self._refusals = self._refusals + 1 if is_shutting_down(error) else 0
        if self._refusals >= SHUTDOWN_PATIENCE:
            self._refusals = 0
            self._capture.leave("the source is shutting down, and waits for what cannot be confirmed yet")

    def _watch_slot(self, sample: Sample) -> None:
        """Say how near the slot is to being lost. Raises SlotLost where it must be given up to save the source."""
        self._danger.observe(sample.time, sample.retained, sample.room)
        left = self._danger.seconds_left()
        self.metrics.slot_seconds_left.set(left)
        if self._danger.must_give_up:
            reason = f"was given up at {sample.retained} bytes, to save the source's disk"
            self._alignment.given_up = reason
            raise SlotLost(f"the replication slot {reason}", where=f"slot {self._source.slot}")
        if left < SLOT_ALARM and sample.time - self._warned > SLOT_WARN_EVERY:
            self._warned = sample.time
            log.error("the replication slot will be lost", seconds=round(left), retained=sample.retained)

    async def _take_snapshots(self, archive: OpenArchive) -> None:
        """A base snapshot at once if there is none since the last gap, then one every `snapshot.every`."""
        state = archive.log.state
        while True:
            if state.snapshot is not None:
                self.metrics.last_snapshot_timestamp_seconds.set(state.snapshot.finished_at.timestamp())
            seconds = self._seconds_to_snapshot(archive)
            if seconds > 0:  # it may be wanted sooner, if something is lost meanwhile
                await asyncio.sleep(min(seconds, SAMPLE_SECONDS))
                continue
            started = loop_time()
            try:
                of = self._alignment.system
                await self._tables.publish_missing(archive)
                snapshot = await take_snapshot(
                    archive, self._source, self._config.snapshot, of=of, on_blocked=each_once(tell_blocker)
                )
                log.info("base snapshot complete", lsn=str(snapshot.lsn), tables=snapshot.tables, rows=snapshot.rows)
                self._rest_until = loop_time() + (loop_time() - started)
                with contextlib.suppress(PostgresError):  # then after the next one
                    await self._monitor.ask(sweep)
            except (PostgresError, StoreError, UsageError) as exc:
                log.error("base snapshot failed", error=str(exc), hint=exc.hint, retry_in=SNAPSHOT_RETRY)
                await asyncio.sleep(SNAPSHOT_RETRY)

    def _seconds_to_snapshot(self, archive: OpenArchive) -> float:
        state = archive.log.state
        if state.snapshot is None:
            return 0.0
        needed = [*([state.gap.before_lsn] if state.gap else []), *([state.lost.lsn] if state.lost else [])]
        if any(state.snapshot.lsn < lsn for lsn in needed):
            return max(0.0, self._rest_until - loop_time())
        until_due = state.snapshot.finished_at + self._config.snapshot.every - datetime.now(UTC)
        if until_due > 2 * self._config.snapshot.every:
            return 0.0  # it was finished by a clock that was wrong
        return max(0.0, until_due.total_seconds())


async def _unless_stopped(starting: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """The result, or None when `stop` came first: a start may wait for a source that is away."""
    task = asyncio.create_task(starting, name="start")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
