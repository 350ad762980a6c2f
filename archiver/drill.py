"""Drills: a restore into a disposable PostgreSQL, proven equal to what the source was, and recorded as evidence.

In: an archive to read, and a place for the copy. Base snapshot N is restored and replayed to the LSN of base snapshot
N+1, whose digests the copy must then have; with a target of its own, or only one base snapshot, less can be proven.
Out: a record, of success or failure. `store_record` commits it to the archive. The source is never asked.
"""

from __future__ import annotations

import asyncio
import getpass
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from archiver import __version__
from archiver.archive import OpenArchive, drill_place
from archiver.config import DrillSection
from archiver.cut_log import require_uncut
from archiver.drill_copy import Place
from archiver.drill_proof import Findings, Proof
from archiver.errors import ArchiverError, DrillFailed, TargetUnreachable, UsageError
from archiver.format import layout
from archiver.format.drill import Check, Copy, Phase, Purpose, Record
from archiver.format.manifest import Drill, Signed, Snapshot
from archiver.format.seal import inflate
from archiver.policy import drill as policy
from archiver.policy.history import History
from archiver.policy.target import Plan, Target, ToLatest, ToLsn
from archiver.recovery_plan import make_plan
from archiver.restore import Progress, Summary, run_restore
from archiver.snapshots import read_index
from archiver.survey import survey

Hook = Callable[[str], Awaitable[None]]
"""Called with the copy's connection string, between the restore and the proof."""


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """What is restored, and the base snapshot that the copy is compared with; None if there is none to compare with.

    `head` is the newest manifest, `recovery_point` how old the newest restorable moment was when the log was read.
    """

    plan: Plan
    compared: Snapshot | None
    head: Signed
    recovery_point: timedelta | None
    deviations: tuple[str, ...]
    phase: Phase


async def plan_drill(archive: OpenArchive, target: Target | None = None) -> DrillPlan:
    """Choose what to prove: without a target, the newest two base snapshots that prove each other.

    Raises TargetUnreachable, IntegrityError; writes nothing.
    """
    started = datetime.now(UTC)
    found = await survey(archive)
    log, history = found.log, found.history
    if target is not None:
        found.require_answers(target)
    if not history.snapshots:
        raise TargetUnreachable("there is no base snapshot to restore", hint="archiver run takes the first one.")
    plan, compared, deviations = await _choose(archive, history, target)
    if target is None and compared is None:
        found.require_answers(plan.target)
    deviations += found.warnings
    latest = history.window.latest  # by the source's clock, which may be ahead of ours
    age = max(timedelta(), started - latest) if latest else None
    phase = Phase(name="plan", purpose="recovery", started_at=started, finished_at=datetime.now(UTC))
    return DrillPlan(plan, compared, log[-1], age, tuple(deviations), phase)


async def _choose(
    archive: OpenArchive, history: History, target: Target | None
) -> tuple[Plan, Snapshot | None, list[str]]:
    deviations = []
    if target is None:
        for lower, upper in policy.pairs(history):
            try:
                plan = await make_plan(archive, ToLsn(upper.lsn), policy.up_to(lower, history))
            except TargetUnreachable as exc:
                deviations.append(f"base snapshot {lower.lsn} cannot be replayed to {upper.lsn}: {exc}")
            else:
                return plan, upper, deviations
        deviations.append("there are no two base snapshots that prove each other: the latest state is restored")
    plan = await make_plan(archive, target or ToLatest(), history)
    return plan, plan.snapshot if policy.replays_nothing(plan) else None, deviations


async def run_drill(
    archive: OpenArchive,
    plan: DrillPlan,
    settings: DrillSection,
    place: Place,
    *,
    jobs: int = 2,
    regions: Mapping[str, int] | None = None,
    progress: Progress | None = None,
    before_proof: Hook | None = None,
) -> Record:
    """Restore into `place`, prove, destroy the copy; the record tells of failure too.

    `regions` are the bytes read from each region, counted by whoever opened the archive. Raises UsageError for what
    is not the archive's fault.
    """
    found = _Found(phases=[plan.phase], deviations=[*plan.deviations])
    silent: Progress = lambda _phase, _done, _total: None  # noqa: E731
    work = _Drill(archive, plan, settings, place, jobs, progress or silent, found)
    await work.run(before_proof)
    return await work.record(regions or {})


@dataclass
class _Found(Findings):
    """What a drill finds on its way."""

    summary: Summary | None = None
    error: str | None = None
    phases: list[Phase] = field(default_factory=list)


@dataclass
class _Drill:
    archive: OpenArchive
    drill: DrillPlan
    settings: DrillSection
    place: Place
    jobs: int
    progress: Progress
    found: _Found

    async def run(self, before_proof: Hook | None) -> None:
        """Every step; what goes wrong on the way is what the drill found."""
        try:
            await self._attempt(before_proof)
        except UsageError:
            raise
        except ArchiverError as exc:
            self.found.error = str(exc)

    async def _attempt(self, before_proof: Hook | None) -> None:
        with self._phase("index", "recovery"):
            base = await read_index(self.archive, self.drill.plan.snapshot)
            later = await read_index(self.archive, self.drill.compared) if self.drill.compared else None
        try:
            with self._phase("server", "preparation"):
                dsn = await self.place.start(base.database, base.roles)
            await self._restore(dsn)
            if before_proof is not None:
                await before_proof(dsn)
            proof = Proof(dsn, base, later, self.settings, self.jobs, self.progress, self.found)
            with self._phase("digests", "proof"):
                await proof.check_tables()
            with self._phase("checks", "proof"):
                await proof.check_others()
        finally:
            with self._phase("destroy", "preparation"):
                await self.place.destroy()

    @contextmanager
    def _phase(self, name: str, purpose: Purpose) -> Iterator[None]:
        started = datetime.now(UTC)
        try:
            yield
        finally:
            ended = datetime.now(UTC)
            self.found.phases.append(Phase(name=name, purpose=purpose, started_at=started, finished_at=ended))

    async def _restore(self, dsn: str) -> None:
        started = datetime.now(UTC)
        try:
            summary = await run_restore(self.archive, self.drill.plan, dsn, jobs=self.jobs, progress=self.progress)
        except ArchiverError:
            ended = datetime.now(UTC)
            self.found.phases.append(Phase(name="restore", purpose="recovery", started_at=started, finished_at=ended))
            raise
        self.found.summary = summary
        self.found.deviations += summary.warnings
        self.found.phases += _restore_phases(summary, started, datetime.now(UTC))

    # --- the record ---

    async def record(self, regions: Mapping[str, int]) -> Record:
        """Everything, once the copy is gone."""
        found, plan, summary = self.found, self.drill.plan, self.found.summary or Summary()
        copy = await self._describe_copy()
        if copy.destroyed is not None:
            expected = "nothing is left of it"
            found.checks.append(
                Check(name="destruction of the copy", expected=expected, found=copy.evidence, passed=copy.destroyed)
            )
        recovery_time = sum((each.duration for each in found.phases if each.purpose == "recovery"), timedelta())
        found.checks += self._objectives(recovery_time)
        identity, keys = self.archive.identity, self._data_keys()
        return Record(
            drill_id=uuid4(),
            started_at=found.phases[0].started_at,
            finished_at=datetime.now(UTC),
            by=f"{getpass.getuser()}@{socket.gethostname()} pid {os.getpid()}",
            tool_version=__version__,
            archive=identity.archive,
            archive_name=identity.name,
            database=identity.database,
            system_identifier=identity.system_identifier,
            source_version=plan.snapshot.server_version,
            head_seq=self.drill.head.seq,
            head_hash=self.drill.head.hash,
            regions=dict(regions),
            data_keys=tuple(keys),
            keks=tuple(sorted(await self.archive.keys.wrapped_by(keys))),
            target=str(plan.target),
            target_lsn=plan.stop,
            last_commit=plan.last_commit,
            snapshot_id=plan.snapshot.snapshot_id,
            snapshot_lsn=plan.snapshot.lsn,
            compared_lsn=self.drill.compared.lsn if self.drill.compared else None,
            stored_bytes=plan.stored_bytes,
            rows_loaded=summary.rows_loaded,
            transactions_replayed=summary.transactions_replayed,
            recovery_time=recovery_time.total_seconds(),
            recovery_time_objective=_seconds(self.settings.recovery_time_objective),
            recovery_point=_seconds(self.drill.recovery_point),
            recovery_point_objective=_seconds(self.settings.recovery_point_objective),
            phases=tuple(found.phases),
            checks=tuple(found.checks),
            deviations=tuple(found.deviations + self.place.deviations),
            restored=copy,
            error=found.error,
        )

    async def _describe_copy(self) -> Copy:
        try:
            return await self.place.describe()
        except ArchiverError as exc:
            return Copy(where="unknown", server_version=None, destroyed=False, evidence=f"cannot be looked for: {exc}")

    def _objectives(self, recovery_time: timedelta) -> list[Check]:
        settings, point = self.settings, self.drill.recovery_point
        measured = recovery_time if self.found.error is None else None
        return [
            *policy.check_objective("recovery time", measured, settings.recovery_time_objective),
            *policy.check_objective("recovery point", point, settings.recovery_point_objective),
        ]

    def _data_keys(self) -> list[str]:
        refs = [*self.drill.plan.snapshot.parts, *(each.object for each in self.drill.plan.segments if each.object)]
        return sorted({ref.key_id for ref in refs})


def _seconds(duration: timedelta | None) -> float | None:
    return duration.total_seconds() if duration is not None else None


def _restore_phases(summary: Summary, started: datetime, ended: datetime) -> Iterator[Phase]:
    """The phases of a restore follow each other to its end; what precedes them is connecting and reading again."""
    at = max(started, ended - sum(summary.phases.values(), timedelta()))
    for name, duration in summary.phases.items():
        yield Phase(name=name, purpose="recovery", started_at=at, finished_at=at + duration)
        at += duration


# --- the archive ----------------------------------------------------------------------------------------


async def store_record(archive: OpenArchive, record: Record) -> Drill:
    """Seal the record and commit it in every region, beside a running daemon. Raises StoreError."""
    await archive.follow()
    await require_uncut(archive)
    sealer = await archive.sealer(drill_place(record.snapshot_lsn, record.target_lsn))
    sealer.write(record.encode())
    ref = await archive.store_sealed(layout.drill(record.drill_id), sealer)
    entry = Drill(
        drill_id=record.drill_id,
        started_at=record.started_at,
        finished_at=record.finished_at,
        verdict=record.verdict,
        target_lsn=record.target_lsn,
        snapshot_lsn=record.snapshot_lsn,
        compared_lsn=record.compared_lsn,
        recovery_time_seconds=math.ceil(record.recovery_time),
        checks=len(record.checks),
        failed_checks=len(record.failed),
        object=ref,
    )
    await archive.log.append(entry)
    return entry


async def read_record(archive: OpenArchive, entry: Drill) -> Record:
    """The record that a manifest names. Raises IntegrityError."""
    body = await archive.fetch(entry.object, drill_place(entry.snapshot_lsn, entry.target_lsn))
    return Record.decode(await asyncio.to_thread(lambda: b"".join(inflate(body, entry.object.raw_bytes))))


def require_passed(record: Record) -> None:
    """Raise DrillFailed unless the drill passed."""
    if record.verdict == "passed":
        return
    failed = record.failed
    what = record.error or f"{len(failed)} of {len(record.checks)} checks"
    raise DrillFailed(
        f"the drill failed: {what}",
        where=failed[0].name if failed and record.error is None else None,
        hint="archiver verify --read-data tells whether the archive is whole; docs/operations.md says what else to do.",
    )
