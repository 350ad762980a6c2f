"""`archiver init`: the archive in every region, the publication, the slot.

Everything that can be refused is refused before anything is changed. Where the slot cannot be made, the publication and
the triggers that were made for it are taken back; the archive in the regions and REPLICA IDENTITY FULL stay. Running it
again finishes or confirms what is there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

import psycopg
import typer

from archiver.archive import OpenArchive, create_archive, require_same_database
from archiver.cli.options import ConfigOption, WaitOption, load, run_async
from archiver.cli.output import note, say
from archiver.config import Config, SourceSection
from archiver.identity import NoArchive
from archiver.keys import Kek
from archiver.postgres import preflight, setup
from archiver.postgres.checks import require
from archiver.postgres.replication_slot import (
    Blocker,
    SystemIdentity,
    create_slot,
    each_once,
    identify,
    slot_info,
)
from archiver.postgres.session import connect
from archiver.recovery_plan import read_history
from archiver.regions import open_configured, open_keks, open_regions
from archiver.store.mirror import Mirror

Conn = psycopg.AsyncConnection[Any]
PROBE = "archiver_init_probe"


class Keyless(StrEnum):
    """What to do with tables that have neither a primary key nor a replica identity."""

    FULL = "full"
    EXCLUDE = "exclude"


def init(
    config: ConfigOption = None,
    keyless: Annotated[
        Keyless | None,
        typer.Option(
            help="Tables without a key: full sets REPLICA IDENTITY FULL, exclude does not archive them.",
            show_choices=True,
        ),
    ] = None,
    wait: WaitOption = timedelta(minutes=5),
) -> None:
    """Create the archive in every region, and the publication and the replication slot at the source.

    It checks everything first and changes nothing if something is missing. It can be repeated.

    Example: archiver init -c archiver.toml --keyless full
    """
    run_async(initialise(load(config), keyless.value if keyless else None, wait))
    say("next: archiver run")


async def initialise(
    config: Config, keyless: setup.Keyless | None, wait: timedelta, tell: Callable[[str], None] = say
) -> None:
    """Do what `archiver init` does. Raises ArchiverError."""
    source = config.require_source()
    keks = open_keks(config)
    mirror = open_regions(config)
    try:
        await mirror.check()
        async with _connections(source) as links:
            await _refuse_foreign_archive(config, links, mirror, keks, tell)
            keyless = keyless or await _earlier_choice(links.ordinary, source)
            await _refuse_unfit_source(config, links.ordinary, keyless)
            await _await_old_transactions(links, source, wait)
            archive = await create_archive(
                mirror,
                config.archive.name,
                keks,
                system_identifier=links.system.system_id,
                database=links.system.database,
                public_key=config.archive.public_key,
            )
            tell(f"archive {archive.identity.name} is in {', '.join(store.name for store in mirror.stores)}")
            _tell_pin(archive, config, tell)
            await _set_up_source(links, source, keyless, wait, tell)
    finally:
        await mirror.close()


def _tell_pin(archive: OpenArchive, config: Config, tell: Callable[[str], None]) -> None:
    key = archive.identity.public_key
    tell(f"its public key is {key}")
    if config.archive.public_key is None:
        tell(f'to have any other archive in its place refused, write under [archive]: public_key = "{key}"')


@dataclass(frozen=True, slots=True)
class _Links:
    """Two connections to the source: an ordinary one, and one that replicates (which may be used up)."""

    dsn: str
    ordinary: Conn
    system: SystemIdentity


@asynccontextmanager
async def _connections(source: SourceSection) -> AsyncIterator[_Links]:
    ordinary = await connect(source.dsn, purpose="init")
    try:
        require(await preflight.check_role(ordinary))
        yield _Links(source.dsn, ordinary, await identify(source.dsn, purpose="init"))
    finally:
        await ordinary.close()


@asynccontextmanager
async def _replication(dsn: str) -> AsyncIterator[Conn]:
    conn = await connect(dsn, purpose="init", replication=True)
    try:
        yield conn
    finally:
        await conn.close()


async def _refuse_foreign_archive(
    config: Config, links: _Links, mirror: Mirror, keks: Sequence[Kek], tell: Callable[[str], None]
) -> None:
    """Raise unless the archive is not there yet, or is this database's and opens with our keys.

    The server may be another one: then it was moved, or upgraded.
    """
    try:
        archive = await open_configured(config, mirror, keks)
    except NoArchive:
        return
    identity = archive.identity
    require_same_database(identity, links.system.database)
    if identity.system_identifier != links.system.system_id:
        known = (await read_history(archive)).system_identifier or identity.system_identifier
        if known != links.system.system_id:
            tell("the source is another server than before: archiver run records a gap and takes a base snapshot")


async def _refuse_unfit_source(config: Config, conn: Conn, keyless: setup.Keyless | None) -> None:
    source = config.require_source()
    require(await preflight.check_before_init(conn, source, config.snapshot.pg_dump))
    setup.require_choice(await setup.publishable_tables(conn, source.exclude), keyless)


async def _earlier_choice(conn: Conn, source: SourceSection) -> setup.Keyless | None:
    """`exclude` when an earlier init listed the tables in the publication and left those without a key out."""
    if await setup.publishes_all(conn, source.publication) is not False:
        return None
    left_out = await setup.unpublished_tables(conn, source.publication, source.exclude)
    keyless = [t for t in await setup.publishable_tables(conn, source.exclude) if not t.keyed]
    return "exclude" if keyless and set(keyless) <= set(left_out) else None


async def _await_old_transactions(links: _Links, source: SourceSection, wait: timedelta) -> None:
    """Wait, with a slot that does not last, for what would hold the real one up: so far nothing was changed."""
    if await slot_info(links.ordinary, source.slot) is not None:
        return
    async with _replication(links.dsn) as conn:
        name = f"{PROBE}_{conn.info.backend_pid}"
        await create_slot(
            conn, name, temporary=True, export=False, watch=links.ordinary, on_blocked=teller(), timeout=wait
        )


async def _set_up_source(
    links: _Links, source: SourceSection, keyless: setup.Keyless | None, wait: timedelta, tell: Callable[[str], None]
) -> None:
    """The publication, then the slot: what a slot decodes must be published already."""
    conn = links.ordinary
    new = await setup.publishes_all(conn, source.publication) is None
    done = await setup.set_up_publication(conn, source.publication, source.exclude, keyless)
    try:
        slot = await _ensure_slot(links, source, wait)
    except BaseException:
        if new:
            await setup.remove_all(conn, source.publication)
        raise
    tell(done)
    tell(slot)


async def _ensure_slot(links: _Links, source: SourceSection, wait: timedelta) -> str:
    there = await slot_info(links.ordinary, source.slot)
    if there is not None:
        return f"replication slot {there.name} is there, at {there.confirmed_flush_lsn}"
    async with _replication(links.dsn) as conn:
        made = await create_slot(
            conn, source.slot, export=False, watch=links.ordinary, on_blocked=teller(), timeout=wait
        )
    return f"replication slot {made.name} starts at {made.lsn}"


def teller() -> Callable[[Sequence[Blocker]], None]:
    """Says who is in the way, once for each."""
    return each_once(lambda blocker: note(f"waiting for a transaction to end: {blocker}"))
