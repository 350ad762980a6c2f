"""`archiver check`: every prerequisite, one line each, with what to do about it. It changes nothing.

The exit code is that of the worst failure: the highest among 2 configuration, 3 source, 4 store, 5 key.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer

from archiver.archive import OpenArchive, require_same_database, require_same_server
from archiver.cli.options import ConfigOption, JsonOption, load, run_async
from archiver.cli.output import print_json, say
from archiver.config import Config, DrillSection, RegionSection, SourceSection
from archiver.embedded.postgres import require_account
from archiver.errors import ArchiverError, ObjectExists, ObjectNotFound
from archiver.format import layout
from archiver.identity import NoArchive
from archiver.keys import Kek
from archiver.policy.history import History
from archiver.postgres.checks import Check
from archiver.postgres.preflight import check_source
from archiver.postgres.replication_slot import identify, slot_info
from archiver.postgres.session import connect
from archiver.recovery_plan import read_history
from archiver.regions import bucket_hazards, open_configured, open_keks, open_regions
from archiver.store.base import Store
from archiver.store.mirror import Mirror

CONFIG, SOURCE, STORE, KEY = 2, 3, 4, 5
Found = tuple[int, Check]
"""A check, and the exit code if it fails."""


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check every prerequisite: configuration, keys, regions, the source, and the archive if there is one.

    Example: archiver check -c archiver.toml
    """
    found = run_async(_all(config))
    worst = max((code for code, each in found if each.status == "fail"), default=0)
    if as_json:
        print_json({"ok": worst == 0, "exit_code": worst, "checks": [each.to_json() for _, each in found]})
    else:
        _show([each for _, each in found])
    raise typer.Exit(worst)


def _show(checks: Sequence[Check]) -> None:
    width = max(len(each.name) for each in checks)
    for each in checks:
        say(f"{each.status:<4}  {each.name:<{width}}  {each.detail}")
        if each.hint and each.status != "ok":
            say(f"{'':<{width + 8}}-> {each.hint}")


async def _all(path: Path | None) -> list[Found]:
    try:
        config = load(path)
    except ArchiverError as exc:
        return [(CONFIG, failed("configuration", exc))]
    found: list[Found] = [(CONFIG, _describe(config))]
    keks, checked = _keys(config)
    found.append((KEY, checked))
    found.append((CONFIG, check_drills(config.drill)))
    try:
        mirror = open_regions(config)
    except ArchiverError as exc:
        return [*found, (CONFIG, failed("regions", exc))]
    try:
        checked_regions = await _regions(mirror)
        found += [(STORE, each) for each in checked_regions]
        found += [(STORE, each) for each in await _rules(config, checked_regions)]
        found += [(SOURCE, each) for each in await _source(config)]
        found += await _archive(config, mirror, keks)
    finally:
        await mirror.close()
    return found


def failed(name: str, exc: ArchiverError) -> Check:
    """The check that ended with an error."""
    return Check(name, "fail", str(exc), exc.hint)


def _describe(config: Config) -> Check:
    regions = ", ".join(region.name for region in config.region)
    if len(config.region) == 1:
        hint = "Add a second [[region]], elsewhere: an archive in one place can be lost with it."
        return Check("configuration", "warn", f"archive {config.archive.name} in one region, {regions}", hint)
    return Check("configuration", "ok", f"archive {config.archive.name}, regions {regions}")


def _keys(config: Config) -> tuple[list[Kek], Check]:
    try:
        keks = open_keks(config)
    except ArchiverError as exc:
        return [], failed("keys", exc)
    return keks, Check("keys", "ok", f"{len(keks)} of {len(keks)} can be read")


def check_drills(drill: DrillSection) -> Check:
    """Whom a disposable server of a drill would run as: it runs code of the source's roles."""
    if drill.dsn is not None:
        return Check("drills", "ok", "on the server that [drill] dsn names")
    try:
        require_account(drill.user)
    except ArchiverError as exc:  # whoever never drills here needs none of it
        return Check("drills", "warn", str(exc), exc.hint)
    if os.geteuid() == 0:
        return Check("drills", "ok", f"their server runs as {drill.user}")
    hint = "Drill as root, which gives the server to [drill] user, or on a host without the KEK of the daemon."
    return Check("drills", "warn", "their server runs as the same user as archiver, whose files it could read", hint)


# --- regions ---


async def _regions(mirror: Mirror) -> list[Check]:
    return [await _region(store) for store in mirror.stores]


async def _region(store: Store) -> Check:
    """Reachable; and where the archive is, conditional writes are tried by writing archive.json where it stands."""
    name = f"region {store.name}"
    try:
        await store.check()
        identity = await store.get(layout.ARCHIVE)
        await store.put(layout.ARCHIVE, identity, if_absent=True)
    except ObjectNotFound:
        return Check(name, "ok", "it answers; there is no archive in it yet")
    except ObjectExists:
        return Check(name, "ok", "it answers, and honours conditional writes")
    except ArchiverError as exc:
        return failed(name, exc)
    hint = "Use a store that honours If-None-Match: without it, two daemons could overwrite each other."
    return Check(name, "fail", "the store ignores conditional writes", hint)


async def _rules(config: Config, checked: Sequence[Check]) -> list[Check]:
    """Rules of the buckets themselves, which delete or lock without a word; of regions that answer."""
    answering = [region for region, each in zip(config.region, checked, strict=True) if each.status == "ok"]
    return [each for region in answering for each in await _rules_of(config, region)]


async def _rules_of(config: Config, region: RegionSection) -> list[Check]:
    name = f"rules of {region.name}"
    try:
        hazards = await bucket_hazards(config, region)
    except ArchiverError as exc:
        hint = "Allow s3:GetLifecycleConfiguration and s3:GetBucketObjectLockConfiguration, or look there yourself."
        return [Check(name, "warn", f"not checked: {exc}", hint)]
    hint = "Take the archive's prefix out of that rule: archiver itself deletes what has expired."
    found = [Check(name, "warn", each, hint) for each in hazards]
    return found or [Check(name, "ok", "none deletes, moves or locks the archive's objects")]


# --- source ---


async def _source(config: Config) -> list[Check]:
    if config.source is None:
        return [Check("source", "ok", "none is configured: this host can restore, and nothing else")]
    try:
        conn = await connect(config.source.dsn, purpose="check")
    except ArchiverError as exc:
        return [failed("source", exc)]
    try:
        reachable = Check("source", "ok", f"database {conn.info.dbname} on {conn.info.host}:{conn.info.port}")
        return [reachable, *await check_source(conn, config.source, config.snapshot.pg_dump)]
    except ArchiverError as exc:
        return [failed("source", exc)]
    finally:
        await conn.close()


# --- archive ---


async def _archive(config: Config, mirror: Mirror, keks: Sequence[Kek]) -> list[Found]:
    """What the regions hold, read with our keys, and compared with the source."""
    if not keks:
        return []
    try:
        archive = await open_configured(config, mirror, keks)
        history = await read_history(archive)
    except NoArchive as exc:
        return [(STORE, Check("archive", "warn", str(exc), exc.hint))]
    except ArchiverError as exc:
        return [(exc.exit_code, failed("archive", exc))]
    whole = Check("archive", "ok", f"{archive.identity.archive}, its log ends at {history.end}")
    found = [(STORE, whole), *((KEY, each) for each in _damaged(mirror)), (STORE, _snapshots(history))]
    if config.source is None:
        return found
    try:
        return [*found, (SOURCE, await _position(config.source, archive, history))]
    except ArchiverError as exc:
        return [*found, (exc.exit_code, failed("position", exc))]


def _damaged(mirror: Mirror) -> list[Check]:
    """What was found wrong with regions on the way; archiver verify looks at everything."""
    hint = "Look at it: archiver verify. Mend it from the other region: archiver verify --repair"
    return [Check(f"region {region}", "fail", f"damaged: {what}", hint) for region, what in mirror.damaged.items()]


def _snapshots(history: History) -> Check:
    if not history.snapshots:
        hint = "archiver run takes the first one; without it nothing can be restored."
        return Check("base snapshots", "warn", "none", hint)
    newest = history.snapshots[-1]
    return Check("base snapshots", "ok", f"{len(history.snapshots)}, the newest at {newest.lsn}")


async def _position(source: SourceSection, archive: OpenArchive, history: History) -> Check:
    """Whether the slot goes on where the log ends."""
    system = await identify(source.dsn, purpose="check")
    require_same_database(archive.identity, system.database)
    require_same_server(history.system_identifier or archive.identity.system_identifier, system.system_id)
    async with await connect(source.dsn, purpose="check") as conn:
        slot = await slot_info(conn, source.slot)
    if slot is None or slot.confirmed_flush_lsn is None:
        return Check("position", "warn", "no slot to compare the archive with", "archiver run makes one, after a gap.")
    last = history.epochs[-1].changes
    end = last[-1].end_lsn if last else None
    if end is not None and slot.confirmed_flush_lsn > end:
        hint = (
            "Only one archiver may read the slot; archiver run records the gap and takes a base snapshot, unless it "
            "finds that the log was cut."
        )
        detail = f"the slot is at {slot.confirmed_flush_lsn}, past the end of the archive at {end}"
        return Check("position", "warn", detail, hint)
    return Check("position", "ok", f"slot at {slot.confirmed_flush_lsn}, archive at {end or 'its beginning'}")
