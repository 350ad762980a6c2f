"""Options that several commands share, and what every command begins with.

In: what typer read. Out: a loaded configuration, or ConfigError. `--config` may stand before or after the command.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from archiver import config as configuration
from archiver.archive import OpenArchive
from archiver.cli.output import configure_logs, note
from archiver.config import Config
from archiver.errors import UsageError
from archiver.lsn import Lsn
from archiver.policy.target import Target, ToLatest, ToLsn, ToName, ToTime, parse_time
from archiver.postgres.session import holds_password
from archiver.regions import only, open_configured, open_regions
from archiver.secret import Secret

T = TypeVar("T")


def _or_global(ctx: typer.Context, path: Path | None) -> Path | None:
    return path or ctx.find_root().obj


def _duration(text: str) -> timedelta:
    try:
        return configuration.parse_duration(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", callback=_or_global, help="The configuration file (or ARCHIVER_CONFIG).", metavar="FILE"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
RegionOption = Annotated[str | None, typer.Option("--region", metavar="NAME", help="Use this region alone.")]
JobsOption = Annotated[int, typer.Option("--jobs", min=1, max=64, help="Connections that load tables at once.")]
TargetTimeOption = Annotated[
    str | None,
    typer.Option(
        "--target-time", metavar="T", help="Up to this time: ISO 8601 with offset, such as 2026-11-22T03:00:00Z."
    ),
]
TargetLsnOption = Annotated[
    str | None, typer.Option("--target-lsn", metavar="L", help="Up to this LSN, such as 16/B374D848.")
]
TargetNameOption = Annotated[str | None, typer.Option("--target-name", metavar="N", help="Up to this restore point.")]
LatestOption = Annotated[bool, typer.Option("--latest", help="Up to the end of the archive.")]
ExpectHeadOption = Annotated[
    str | None,
    typer.Option(
        "--expect-head",
        metavar="SEQ:HASH",
        help="Refuse a log that ends before this manifest, or holds another one in its place (noted from info or "
        "verify). Example: --expect-head 1042:9f86d081884c7d65…",
    ),
]
WaitOption = Annotated[
    timedelta,
    typer.Option(
        "--wait",
        parser=_duration,
        metavar="DURATION",
        help="How long to wait for transactions that keep a replication slot from being made.",
    ),
]


def given_targets(time: str | None, lsn: str | None, name: str | None, *, latest: bool) -> list[Target]:
    """The recovery targets that were given. Raises UsageError for one that cannot be read."""
    targets: list[Target] = []
    targets += [ToTime(parse_time(time))] if time is not None else []
    targets += [ToLsn(Lsn.parse(lsn))] if lsn is not None else []
    targets += [ToName(name)] if name is not None else []
    targets += [ToLatest()] if latest else []
    return targets


def one_target(targets: list[Target]) -> Target:
    """The one that was given. Raises UsageError."""
    if len(targets) != 1:
        raise UsageError(
            "give exactly one recovery target",
            hint="Give one of --target-time, --target-lsn, --target-name and --latest.",
        )
    return targets[0]


def target_of(into: str) -> Secret:
    """What --into says, with a word about a password in it: every user of the machine sees the list of processes."""
    if holds_password(into):
        note("warning: the password in --into is shown to every user of this machine, in its list of processes")
        note(
            "hint: Give it by PGPASSWORD, in ~/.pgpass or by a service file, and change it if others may have seen it."
        )
    return Secret(into)


def load(path: Path | None) -> Config:
    """The configuration; logs are set up from here on. Raises ConfigError."""
    configure_logs()
    return configuration.load(path)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C and SIGTERM cancel it, so that it cleans up."""
    try:
        return asyncio.run(_cancelled_by_sigterm(work))
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None


async def _cancelled_by_sigterm(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


@asynccontextmanager
async def opened(config: Config, region: str | None = None) -> AsyncIterator[OpenArchive]:
    """The archive, over all regions or over one alone."""
    mirror = open_regions(config, prefer=region)
    try:
        archive = await open_configured(config, only(mirror, region) if region else mirror)
        archive.beside = tuple(store for store in mirror.stores if region and store.name != region)
        yield archive
    finally:
        await mirror.close()
