"""`archiver drill`: a restore into a disposable PostgreSQL, proven and recorded. A failed one ends with exit code 7.

The plan is shown and nothing is asked: a drill touches neither the source nor anything that is not its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from archiver import drill as drills
from archiver.archive import OpenArchive
from archiver.cli import drill_report
from archiver.cli.options import (
    ConfigOption,
    JobsOption,
    JsonOption,
    LatestOption,
    RegionOption,
    TargetLsnOption,
    TargetNameOption,
    TargetTimeOption,
    given_targets,
    load,
    one_target,
    run_async,
    target_of,
)
from archiver.cli.output import note, print_json, progress, say, seconds, size
from archiver.config import Config
from archiver.drill import DrillPlan
from archiver.drill_copy import choose
from archiver.errors import ArchiverError, ConfigError, TargetUnreachable
from archiver.format.drill import Record
from archiver.format.manifest import Drill, format_time
from archiver.policy.target import Target
from archiver.regions import only, open_configured, open_regions
from archiver.store.mirror import Mirror


def drill(
    config: ConfigOption = None,
    *,
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="DSN", help="Restore into this empty database, which is left as it then is."),
    ] = None,
    target_time: TargetTimeOption = None,
    target_lsn: TargetLsnOption = None,
    target_name: TargetNameOption = None,
    latest: LatestOption = False,
    region: RegionOption = None,
    jobs: JobsOption = 2,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", dir_okay=False, help="Write the record as a page to read."),
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Show the newest recorded drill instead of running another.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove that the archive can be restored, and record the proof in the archive.

    Restores a base snapshot into a disposable PostgreSQL, replays to the next base snapshot, and compares every table
    with what that one says. With a target, or only one base snapshot, it checks counts, constraints, sequences and the
    query in [drill]. The copy is destroyed at the end. Exits 7 if the drill failed; that is recorded too.

    Example: archiver drill -c archiver.toml --report drill.html
    """
    targets = given_targets(target_time, target_lsn, target_name, latest=latest)
    order = Order(
        load(config),
        one_target(targets) if targets else None,
        target_of(into) if into else None,
        region,
        jobs,
        as_json=as_json,
    )
    outcome = run_async(_read_last(order) if last else _drill(order))
    if report is not None:
        _write(report, outcome.record)
    if as_json:
        print_json(outcome.to_json())
    else:
        _show(outcome, report)
    outcome.end()


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for; `reads` counts the bytes that each region sent."""

    config: Config
    target: Target | None
    into: str | None
    region: str | None
    jobs: int
    as_json: bool
    reads: Counter[str] = field(default_factory=Counter)

    def count(self, region: str, size: int) -> None:
        self.reads[region] += size


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record, and whether the archive has it."""

    record: Record
    stored: Drill | None
    refused: ArchiverError | None = None

    def to_json(self) -> dict[str, Any]:
        fields = self.record.model_dump(mode="json")
        return {"verdict": self.record.verdict, "recorded": self.stored is not None, **fields}

    def end(self) -> None:
        """Raise DrillFailed if the drill failed, and otherwise what kept the record out of the archive."""
        if self.refused is not None:
            note("the record could not be stored in every region: keep what --report and --json wrote")
        drills.require_passed(self.record)
        if self.refused is not None:
            raise self.refused


async def _drill(order: Order) -> Outcome:
    try:
        async with _mirror(order) as mirror:
            record = await _run(order, await _open(order, mirror))
            return await _store(order, mirror, record)
    except asyncio.CancelledError:
        note("interrupted: nothing was recorded, and of a disposable copy nothing is left")
        raise


async def _run(order: Order, archive: OpenArchive) -> Record:
    plan = await drills.plan_drill(archive, order.target)
    place = await choose(order.into, order.config.drill, plan.plan.snapshot.server_version)
    await place.check()
    if not order.as_json:
        _show_plan(plan, archive)
    with progress() as report:
        return await drills.run_drill(
            archive, plan, order.config.drill, place, jobs=order.jobs, regions=order.reads, progress=report
        )


async def _store(order: Order, mirror: Mirror, record: Record) -> Outcome:
    """Into every region, also where only one was read: the log must stay the same everywhere."""
    try:
        archive = await open_configured(order.config, mirror)
        return Outcome(record, await drills.store_record(archive, record))
    except ArchiverError as exc:
        return Outcome(record, None, exc)


async def _read_last(order: Order) -> Outcome:
    async with _mirror(order) as mirror:
        archive = await _open(order, mirror)
        entries = [signed.entry async for signed in archive.log.scan()]
        newest = next((entry for entry in reversed(entries) if isinstance(entry, Drill)), None)
        if newest is None:
            raise TargetUnreachable("no drill was recorded yet", hint="Run one: archiver drill")
        return Outcome(await drills.read_record(archive, newest), newest)


@asynccontextmanager
async def _mirror(order: Order) -> AsyncIterator[Mirror]:
    mirror = open_regions(order.config, prefer=order.region, on_read=order.count)
    try:
        yield mirror
    finally:
        await mirror.close()


async def _open(order: Order, mirror: Mirror) -> OpenArchive:
    store = only(mirror, order.region) if order.region else mirror
    archive = await open_configured(order.config, store)
    archive.beside = tuple(each for each in mirror.stores if each not in store.stores)
    return archive


def _write(path: Path, record: Record) -> None:
    try:
        path.write_text(drill_report.render(record), encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"cannot write the report: {exc.strerror}", where=str(path), hint="Check --report.") from None


# --- as text ---


def _show_plan(drill: DrillPlan, archive: OpenArchive) -> None:
    plan, compared = drill.plan, drill.compared
    snapshot = plan.snapshot
    regions = ", ".join(store.name for store in archive.store.stores)
    say("plan:")
    say(f"  base snapshot    {snapshot.lsn} of {format_time(snapshot.consistent_at)}: {snapshot.rows} rows")
    say(f"  replayed to      LSN {plan.stop}, at most {plan.commits} commits")
    say(f"  compared with    {f'base snapshot {compared.lsn}' if compared else 'no base snapshot: counts only'}")
    say(f"  to read          {size(plan.stored_bytes)} from {regions}")
    say(f"  estimate         {plan.estimate.total_seconds():.0f} s, and as long again to compare")


def _show(outcome: Outcome, report: Path | None) -> None:
    record = outcome.record
    failed = len(record.failed)
    say(f"drill {record.drill_id} {record.verdict.upper()}:")
    say(f"  checks           {len(record.checks)}, {failed or 'none'} failed")
    say(f"  recovery time    {_against(record.recovery_time, record.recovery_time_objective)}")
    say(f"  recovery point   {_against(record.recovery_point, record.recovery_point_objective)}")
    say(f"  restored         {record.rows_loaded} rows, {record.transactions_replayed} transactions replayed")
    say(f"  copy             {record.restored.where}: {record.restored.evidence}")
    for check in record.failed:
        say(f"  FAILED           {check.name}: expected {check.expected}, found {check.found}")
    if record.error:
        say(f"  FAILED           {record.error}")
    for deviation in record.deviations:
        say(f"  deviation        {deviation}")
    say(f"  recorded         {'in every region' if outcome.stored else 'NO'}")
    if report is not None:
        say(f"  report           {report}")


def _against(measured: float | None, objective: float | None) -> str:
    if measured is None:
        return "unknown"
    wanted = f", objective {seconds(timedelta(seconds=objective))}" if objective is not None else ""
    return seconds(timedelta(seconds=measured)) + wanted
