"""Where a daemon goes on: the replication slot and the manifest log are compared before anything is streamed.

In: the source and an archive. Out: the position to stream from. What the slot no longer has becomes a gap in the log,
and never anything else; whatever does not fit together is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar

import structlog

from archiver.archive import OpenArchive, require_same_database
from archiver.capture import Position
from archiver.config import SourceSection
from archiver.cut_log import require_uncut, was_cut
from archiver.errors import (
    ConfigError,
    Fenced,
    IntegrityError,
    PostgresError,
    PostgresUnavailable,
    StoreUnavailable,
)
from archiver.format.manifest import Gap
from archiver.lsn import Lsn
from archiver.manifest_log import ManifestLog
from archiver.policy.breaks import LeftOut
from archiver.postgres.replication_slot import (
    Blocker,
    SlotInfo,
    SystemIdentity,
    create_slot,
    drop_lost_slot,
    drop_when_idle,
    each_once,
    identify_system,
    slot_info,
)
from archiver.postgres.session import connect
from archiver.postgres.timeline import left_at
from archiver.tasks import ask_until_answered

SLOT_PATIENCE = timedelta(seconds=10)  # a killed daemon's walsender is gone by then

log = structlog.get_logger()
T = TypeVar("T")


class Alignment:
    """What a daemon asks of the source before it streams.

    `accept_gap`: go on, once, where the end of the log was cut off. `given_up`: why the slot is no more, if we dropped
    it. `left_out`: a transaction that the source cannot send. `system`: who the source was when it was last aligned.
    """

    def __init__(self, source: SourceSection, on_gap: Callable[[], None], *, accept_gap: bool = False) -> None:
        self._source = source
        self._accept_gap = accept_gap
        self._before: ManifestLog | None = None
        self._on_gap = on_gap
        self.given_up: str | None = None
        self.left_out: LeftOut | None = None
        self.system: SystemIdentity | None = None

    async def check_identity(self, archive: OpenArchive) -> SystemIdentity:
        """Who the source is, and where it stands.

        Raises ConfigError when the archive is another database's, PostgresUnavailable while it is a standby: that may
        be promoted at any time, and a slot that follows a primary cannot be read there.
        """
        conn = await connect(self._source.dsn, purpose="start", replication=True)
        try:
            system = await identify_system(conn)
            require_same_database(archive.identity, system.database)
            if system.standby:
                raise PostgresUnavailable(
                    "the source is a standby: it is waited for until it is promoted",
                    hint="Give the primary in [source] dsn, or all hosts and target_session_attrs=read-write.",
                )
            return system
        finally:
            await conn.close()

    async def slot(self) -> SlotInfo | None:
        conn = await connect(self._source.dsn, purpose="start")
        try:
            return await slot_info(conn, self._source.slot)
        finally:
            await conn.close()

    async def wait_for_slot(self) -> None:
        """Give a walsender that nobody listens to any more time to notice; then somebody else reads this slot."""
        deadline = asyncio.get_running_loop().time() + SLOT_PATIENCE.total_seconds()
        while (slot := await patiently(self.slot)) and slot.active:
            if asyncio.get_running_loop().time() > deadline:
                raise second_reader(slot)
            await asyncio.sleep(0.25)

    async def require_all_seen(self, archive: OpenArchive) -> None:
        """What must hold before anything is written, a fence included.

        A region that cannot be asked may hold what seems to be missing: nothing is written over its head. And another
        server is meant only where `init` made the slot: a publication may come with any dump.
        """
        system = await patiently(lambda: self.check_identity(archive))
        slot, end = await patiently(self.slot), _end_of_log(archive)
        if system.system_id != archive.log.system_identifier and slot is None:
            raise ConfigError(
                "the source is another server than the one that the archive was made of",
                where=f"it has no replication slot {self._source.slot}",
                hint="To go on with this one: archiver init, then archiver run records a gap. Otherwise correct "
                "[source] dsn.",
            )
        timeline = archive.log.state.timeline
        is_same = system.system_id == archive.log.system_identifier and timeline in {None, system.timeline}
        continues = is_same and slot and not slot.is_lost and end and (slot.confirmed_flush_lsn or 0) <= end.lsn
        if archive.log.unseen and not continues:
            raise StoreUnavailable(
                "the replication slot is ahead of what the regions that answer hold",
                where=", ".join(sorted(archive.log.unseen)) + " not seen",
                hint="Bring that region back. Once it is out of the configuration, a gap is recorded.",
            )
        if not archive.log.unseen:
            await self._require_uncut(archive, slot if is_same else None)

    async def _require_uncut(self, archive: OpenArchive, slot: SlotInfo | None) -> None:
        """Raise IntegrityError where the log ended later once: its numbers are not to be taken by others."""
        head = archive.log.state.head
        confirmed = slot.confirmed_flush_lsn if slot and not slot.is_lost else None
        try:
            known = self._before.state.head if self._before else None
            if known is None:
                await require_uncut(archive, confirmed)
            elif head is None or head.seq < known.seq:
                raise was_cut(head, {"this daemon's memory": [f"manifest {known.seq}"]}, confirmed)
        except IntegrityError as exc:
            if not self._accept_gap:
                raise
            log.error("gone on with, as --accept-gap says", error=str(exc))
        self._accept_gap = False
        self._before = archive.log

    async def align(self, archive: OpenArchive) -> Position:
        """Compare slot and log, and decide where to go on. What the slot no longer has becomes a gap."""
        # Asked now, and not before the log was read: another daemon may have gone on meanwhile.
        system = await patiently(lambda: self.check_identity(archive))
        self.system = system
        slot = await patiently(self.slot)
        state = archive.log.state
        position = _end_of_log(archive)
        began_anew = await self._began_anew(archive, system, position)
        if slot is None or slot.is_lost:
            await archive.log.require_nothing_beyond()  # one that was superseded meanwhile makes no slot
        if slot is None and not began_anew and state.changes is None and state.snapshot is None:
            raise ConfigError(f"there is no replication slot {self._source.slot!r}", hint="Make it with: archiver init")
        bridge = partial(self._bridge, archive, system, position, new_history=began_anew is not None)
        if slot is None or slot.is_lost:
            how = f"was invalidated: {slot.invalidation}" if slot else self.given_up or "was dropped"
            self.given_up = how  # dropped now, it must be told from one that was not there
            return await bridge(await self._new_slot(slot), began_anew or f"the replication slot {how}")
        confirmed = slot.confirmed_flush_lsn
        if confirmed is None:
            raise PostgresError("the replication slot is not a logical one that is ready", where=slot.name)
        if began_anew:
            return await bridge(confirmed, began_anew)
        if position is None:  # no daemon ran yet: changes are wanted from the first base snapshot on
            position = Position(1, min(confirmed, state.snapshot.lsn) if state.snapshot else confirmed)
        if confirmed > position.lsn:
            return await bridge(confirmed, "the replication slot was moved by someone else")
        if self.left_out is not None and self.left_out.resume > position.lsn:
            return await bridge(self.left_out.resume, self.left_out.reason)
        return position

    async def _began_anew(self, archive: OpenArchive, system: SystemIdentity, position: Position | None) -> str | None:
        """Why the source is not the continuation of what is archived; None if it is, as far as anybody can tell."""
        known = archive.log.system_identifier
        if system.system_id != known:
            return f"the source is another server now: system {system.system_id}, before {known}"
        if position is None:
            return None
        if (left := await self._left_at(archive, system)) is not None and left < position.lsn:
            now = f"the source went on from {left} on timeline {system.timeline}"
            return f"{now}, before the archive's end: a standby took over, or it was set back"
        if system.position < position.lsn:
            return f"the source stands at {system.position}, before the archive's end: it was set back"
        return None

    async def _left_at(self, archive: OpenArchive, system: SystemIdentity) -> Lsn | None:
        """Where the source's history left that of the archive; None if it has not, or nobody can know."""
        archived = archive.log.state.timeline
        if archived is None or archived == system.timeline:
            return None
        conn = await connect(self._source.dsn, purpose="start", replication=True)
        try:
            return await left_at(conn, system.timeline, archived)
        finally:
            await conn.close()

    async def drop_slot(self) -> None:
        """Give the slot up: what it kept is free again, and the next `align` records the gap."""
        async with await connect(self._source.dsn, purpose="start") as conn:
            await drop_when_idle(conn, self._source.slot)

    async def _new_slot(self, lost: SlotInfo | None) -> Lsn:
        watch = await connect(self._source.dsn, purpose="start")
        conn = await connect(self._source.dsn, purpose="start", replication=True)
        try:
            if lost is not None:
                await drop_lost_slot(watch, lost.name)
            blocked = each_once(tell_blocker)
            created = await create_slot(conn, self._source.slot, export=False, watch=watch, on_blocked=blocked)
            return created.lsn
        finally:
            await conn.close()
            await watch.close()

    async def _bridge(
        self,
        archive: OpenArchive,
        system: SystemIdentity,
        position: Position | None,
        resume: Lsn,
        reason: str,
        *,
        new_history: bool,
    ) -> Position:
        """Record that the changes up to `resume` are not in the archive; a base snapshot must follow.

        Another daemon may have archived them meanwhile, in a region that we did not see when we read the log.
        """
        after = position or Position(1, Lsn(0))
        await archive.log.require_nothing_beyond()
        log.error("gap: changes are missing from the archive", after=str(after.lsn), before=str(resume), reason=reason)
        gap = Gap(
            after_lsn=after.lsn,
            before_lsn=resume,
            timeline=system.timeline,
            new_history=new_history,
            system_identifier=None if system.system_id == archive.log.system_identifier else system.system_id,
            reason=reason,
        )
        await archive.log.append(gap)
        self._on_gap()
        self.given_up = self.left_out = None
        return Position(after.ordinal, resume)


def _end_of_log(archive: OpenArchive) -> Position | None:
    state = archive.log.state
    ordinal = state.changes.ordinal + 1 if state.changes else 1
    return None if state.end is None else Position(ordinal, state.end)


async def patiently(action: Callable[[], Awaitable[T]]) -> T:
    """Ask the source until it answers: at start, as later, the daemon waits for it."""
    return await ask_until_answered(action, PostgresUnavailable, "the source is not available")


def tell_blocker(blocker: Blocker) -> None:
    log.warning("a new replication slot waits for a transaction to end", transaction=str(blocker))


def second_reader(slot: SlotInfo) -> Fenced:
    """What to say when somebody else reads the slot."""
    return Fenced(
        "another archiver is reading the replication slot",
        where=f"slot {slot.name}, walsender pid {slot.active_pid}",
        hint="Run one daemon for an archive. If it is gone for good, end its walsender: "
        f"SELECT pg_terminate_backend({slot.active_pid});",
    )
