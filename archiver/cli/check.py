"""`archiver check`: every prerequisite, one line each, with what to do about it. It changes nothing.

The exit code is that of the worst failure: the highest among 2 configuration, 3 source, 4 store, 5 key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import typer

from archiver.archive import open_archive
from archiver.cli.options import ConfigOption, JsonOption, load, run_async
from archiver.cli.output import print_json, say
from archiver.config import Config
from archiver.errors import ArchiverError, ObjectExists, ObjectNotFound
from archiver.format import layout
from archiver.keys import Kek
from archiver.postgres.preflight import Check, check_source
from archiver.postgres.session import connect
from archiver.regions import open_keks, open_regions
from archiver.restore import read_history
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
    try:
        mirror = open_regions(config)
    except ArchiverError as exc:
        return [*found, (CONFIG, failed("regions", exc))]
    try:
        found += [(STORE, each) for each in await _regions(mirror)]
        found += [(SOURCE, each) for each in await _source(config)]
        found += [each async for each in _archive(config, mirror, keks)]
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


async def _archive(config: Config, mirror: Mirror, keks: Sequence[Kek]) -> AsyncIterator[Found]:
    """What the regions hold, read with our keys, and compared with the slot."""
    if not keks:
        return
    try:
        if await mirror.size(layout.ARCHIVE) is None:
            yield STORE, Check("archive", "warn", f"there is no archive {config.archive.name}", "archiver init makes it.")
            return
        archive = await open_archive(mirror, config.archive.name, keks)
        history = await read_history(archive)
        yield STORE, Check("archive", "ok", f"{archive.identity.archive}, the log ends at {history.end}")
        yield await _snapshots(len(history.snapshots))
    except ArchiverError as exc:
        yield exc.exit_code, failed("archive", exc)
        return
    if config.source is not None:
        yield await _against_source(config, archive, history.end)
