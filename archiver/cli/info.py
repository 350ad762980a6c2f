"""`archiver info`: what the archive holds, and how far it is behind.

It works as long as one region answers; what does not answer is shown as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from archiver.archive import OpenArchive
from archiver.cli.options import ConfigOption, JsonOption, load, opened, run_async
from archiver.cli.output import print_json, say, size, table
from archiver.cli.snapshot import to_json
from archiver.config import Config, SourceSection
from archiver.errors import ArchiverError
from archiver.format.manifest import Drill, Entry, ObjectRef, format_time
from archiver.policy.history import History
from archiver.policy.target import Window
from archiver.postgres.checks import listed
from archiver.postgres.replication_slot import slot_info
from archiver.postgres.session import connect
from archiver.postgres.setup import unpublished_tables
from archiver.postgres.source import Source
from archiver.survey import Standing, Survey, survey

Facts = dict[str, Any]


def info(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the recovery window, the lag, the regions, base snapshots, gaps and restore points.

    Example: archiver info -c archiver.toml --json
    """
    facts = run_async(_gather(load(config)))
    if as_json:
        print_json(facts)
    else:
        _show(facts)


async def _gather(config: Config) -> Facts:
    async with opened(config) as archive:
        found = await survey(archive)
        urls = {region.name: region.url for region in config.region}
        source = await _source(config.source) if config.source else None
        return _describe(archive, found) | {
            "regions": [_region(each) | {"url": urls[each.region]} for each in found.standings],
            "complete": found.is_complete,
            "warnings": [
                *found.warnings,
                *(f"{name} is damaged: {what}" for name, what in archive.store.damaged.items()),
            ],
            "source": source,
            "unarchived_tables": _unarchived(source, found.history),
        }


def _unarchived(source: Facts | None, history: History) -> list[str]:
    """By name where the source can be asked; otherwise how many there were, as the log says."""
    without_rows = history.snapshots[-1].without_rows if history.snapshots else 0
    told = [f"{without_rows} whose rows the source could not send"] if without_rows else []
    if source is not None:
        return [*source["unarchived_tables"], *told]
    count = history.changes[-1].unarchived if history.changes else 0
    return [f"{count} tables"] if count else told


def _describe(archive: OpenArchive, found: Survey) -> Facts:
    history = found.history
    identity = archive.identity
    window = history.window
    objects = _objects(history)
    return {
        "archive": {
            "name": identity.name,
            "id": str(identity.archive),
            "database": identity.database,
            "system_identifier": history.system_identifier or identity.system_identifier,
            "created": format_time(identity.created),
            "head_seq": found.head.seq if found.head else 0,
            "head": str(found.head) if found.head else None,
        },
        "window": {
            "earliest": _time(window.earliest),
            "latest": _latest(window),
            "end_lsn": str(window.end),
        },
        "snapshots": [to_json(snapshot) for snapshot in history.snapshots],
        "gaps": [
            {
                "after_lsn": str(gap.after_lsn),
                "before_lsn": str(gap.before_lsn),
                "new_history": gap.new_history,
                "reason": gap.reason,
            }
            for gap in history.gaps
        ],
        "restore_points": [
            {"name": point.name, "lsn": str(point.lsn), "time": format_time(point.time)}
            for point in history.restore_points
        ],
        "holds": [],
        "last_drill": _last_drill([signed.entry for signed in found.log]),
        "segments": sum(1 for changes in history.changes if changes.object),
        "stored_bytes": sum(ref.size for ref in objects),
        "raw_bytes": sum(ref.raw_bytes for ref in objects),
    }


def _last_drill(entries: Sequence[Entry]) -> Facts | None:
    drill = next((entry for entry in reversed(entries) if isinstance(entry, Drill)), None)
    return drill.model_dump(mode="json", exclude={"kind", "object"}) if drill else None


def _latest(window: Window) -> str | None:
    """None as long as only the base snapshot can be restored, right after it was taken."""
    if window.earliest is None or window.latest is None or window.latest < window.earliest:
        return None
    return format_time(window.latest)


def _objects(history: History) -> list[ObjectRef]:
    changes = [each.object for each in history.changes if each.object]
    return changes + [part for snapshot in history.snapshots for part in snapshot.parts]


def _time(time: datetime | None) -> str | None:
    return format_time(time) if time else None


def _region(standing: Standing) -> Facts:
    """Whether the region answers, and the newest manifest in it."""
    reachable = standing.newest is not None
    return {"name": standing.region, "reachable": reachable, "newest_seq": standing.newest, "error": standing.error}


async def _source(section: SourceSection) -> Facts | None:
    """Where the source and the slot stand; None when the source cannot be reached."""
    source = Source(section.dsn, section.slot)
    try:
        sample = await source.sample()
        async with await connect(section.dsn, purpose="info") as conn:
            slot = await slot_info(conn, section.slot)
            left_out = await unpublished_tables(conn, section.publication, section.exclude)
    except ArchiverError:
        return None
    finally:
        await source.close()
    confirmed = slot.confirmed_flush_lsn if slot else None
    return {
        "lsn": str(sample.lsn),
        "time": format_time(sample.time),
        "slot": section.slot if slot else None,
        "slot_active": bool(slot and slot.active),
        "confirmed_flush_lsn": str(confirmed) if confirmed is not None else None,
        "lag_bytes": max(0, sample.lsn - confirmed) if confirmed is not None else None,
        "retained_bytes": sample.retained,
        "unarchived_tables": [str(table) for table in left_out],
    }


# --- as text ---


def _show(facts: Facts) -> None:
    archive, window = facts["archive"], facts["window"]
    say(f"archive          {archive['name']}, database {archive['database']}, id {archive['id']}")
    say(f"recovery window  {_window(window)}")
    say(f"log              {archive['head_seq']} manifests, ends at LSN {window['end_lsn']}")
    say(f"end of the log   {archive['head'] or 'none: it is empty'}")
    stored, raw = facts["stored_bytes"], facts["raw_bytes"]
    say(f"stored           {facts['segments']} change segments, {size(stored)} in each region, {size(raw)} unpacked")
    say(f"source           {_lag(facts['source'])}")
    if left_out := facts["unarchived_tables"]:
        say(f"NOT ARCHIVED     {listed(left_out)}: changes of their rows")
    for region in facts["regions"]:
        state = f"newest manifest {region['newest_seq']}" if region["reachable"] else f"DOWN: {region['error']}"
        say(f"region           {region['name']}: {state}")
    for warning in facts["warnings"]:
        say(f"WARNING          {warning}")
    say("holds            none")
    say(f"last drill       {_drilled(facts['last_drill'])}")
    _show_lists(facts)


def _window(window: Facts) -> str:
    if window["earliest"] is None:
        return "nothing can be restored yet: there is no base snapshot"
    return f"{window['earliest']} to {window['latest'] or 'the same base snapshot'}"


def _drilled(drill: Facts | None) -> str:
    if drill is None:
        return "none"
    failed = f", {drill['failed_checks']} of {drill['checks']} checks" if drill["verdict"] == "failed" else ""
    return f"{drill['verdict']}{failed} at {drill['finished_at']}, to LSN {drill['target_lsn']}"


def _lag(source: Facts | None) -> str:
    if source is None:
        return "not reachable"
    if source["lag_bytes"] is None:
        return f"at LSN {source['lsn']}; there is no slot"
    reading = "being read" if source["slot_active"] else "NOT being read"
    return f"at LSN {source['lsn']}, lag {size(source['lag_bytes'])}, slot {source['slot']} {reading}"


def _show_lists(facts: Facts) -> None:
    snapshots = [
        (each["lsn"], each["consistent_at"], each["tables"], each["rows"], size(each["bytes"]))
        for each in facts["snapshots"]
    ]
    gaps = [(each["after_lsn"], each["before_lsn"], each["reason"]) for each in facts["gaps"]]
    points = [(each["name"], each["lsn"], each["time"]) for each in facts["restore_points"]]
    _section("base snapshots", ("LSN", "time", "tables", "rows", "stored"), snapshots, (2, 3, 4))
    _section("gaps", ("after LSN", "before LSN", "reason"), gaps)
    _section("restore points", ("name", "LSN", "time"), points)


def _section(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()
) -> None:
    if not rows:
        say(f"{title:<17}none")
        return
    say("")
    say(f"{title}:")
    table(headings, rows, numbers=numbers)
