"""Where a daemon goes on, from what the source and the log say at that moment."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from archiver.alignment import Alignment
from archiver.archive import OpenArchive
from archiver.capture import Position
from archiver.config import SourceSection
from archiver.errors import PostgresUnavailable, StoreUnavailable
from archiver.format.manifest import Changes, Gap
from archiver.lsn import Lsn
from archiver.policy.log_state import LogState
from archiver.postgres.replication_slot import SlotInfo, SystemIdentity
from tests.unit.test_archive_log import changes


class Source(Alignment):
    """A source that stands at `reached`, with a slot that has confirmed nothing of it."""

    reached = Lsn(0)

    async def check_identity(self, archive: OpenArchive) -> SystemIdentity:  # noqa: ARG002
        return SystemIdentity("7", 1, self.reached, "shop")

    async def slot(self) -> SlotInfo | None:
        lsn = Lsn(1)
        return SlotInfo("s", "pgoutput", "shop", False, None, lsn, "reserved", None)


class Slotless(Source):
    """A source whose slot was dropped."""

    async def slot(self) -> SlotInfo | None:
        return None

    async def _new_slot(self, lost: SlotInfo | None) -> Lsn:  # noqa: ARG002
        raise AssertionError("a slot is made")


class Log:
    """A manifest log that ends with `entry`."""

    system_identifier = "7"

    def __init__(self, entry: Changes) -> None:
        self.state = LogState()
        self.state.observe(cast(Any, SimpleNamespace(entry=entry, seq=1)))
        self.appended: list[Gap] = []

    async def require_nothing_beyond(self) -> None:
        """No region holds more."""

    async def append(self, entry: Gap) -> None:
        self.appended.append(entry)


def archive_up_to(entry: Changes) -> OpenArchive:
    return cast(Any, SimpleNamespace(log=Log(entry)))


async def test_a_source_that_went_on_while_the_log_was_read_was_not_set_back() -> None:
    """Reading the log takes its time, and a daemon that is being replaced goes on meanwhile."""
    source = Source(SourceSection(dsn="", slot="s", publication="p"), lambda: None)
    await source.check_identity(archive_up_to(changes(1)))
    source.reached = Lsn(40)
    assert await source.align(archive_up_to(changes(3))) == Position(4, Lsn(40))
    behind = archive_up_to(changes(4))
    assert await source.align(behind) == Position(5, Lsn(1))
    [gap] = cast(Any, behind.log).appended
    assert (gap.after_lsn, gap.before_lsn, gap.new_history) == (Lsn(50), Lsn(1), True)
    assert "set back" in gap.reason


async def test_one_that_was_taken_over_from_while_it_slept_makes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    async def beyond(_log: Log) -> None:
        raise StoreUnavailable("a region may hold more")

    monkeypatch.setattr(Log, "require_nothing_beyond", beyond)
    source = Slotless(SourceSection(dsn="", slot="s", publication="p"), lambda: None)
    with pytest.raises(StoreUnavailable):
        await source.align(archive_up_to(changes(1)))


async def test_a_slot_that_was_dropped_for_being_invalid_is_recorded_as_invalid_though_making_another_failed() -> None:
    class Invalidated(Source):
        dropped = False

        async def slot(self) -> SlotInfo | None:
            found = await super().slot()
            return None if self.dropped or found is None else replace(found, invalidation="wal_removed")

        async def _new_slot(self, lost: SlotInfo | None) -> Lsn:  # noqa: ARG002
            self.dropped, before = True, self.dropped
            if not before:
                raise PostgresUnavailable("the connection is gone")
            return Lsn(99)

    source, behind = (
        Invalidated(SourceSection(dsn="", slot="s", publication="p"), lambda: None),
        archive_up_to(changes(1)),
    )
    source.reached = Lsn(99)
    with pytest.raises(PostgresUnavailable):
        await source.align(behind)
    await source.align(behind)
    assert [gap.reason for gap in cast(Any, behind.log).appended] == [
        "the replication slot was invalidated: wal_removed"
    ]


async def test_no_gap_is_appended_while_a_region_may_hold_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def beyond(_log: Log) -> None:
        raise StoreUnavailable("a region may hold more")

    monkeypatch.setattr(Log, "require_nothing_beyond", beyond)
    source, behind = Source(SourceSection(dsn="", slot="s", publication="p"), lambda: None), archive_up_to(changes(4))
    source.reached = Lsn(40)
    with pytest.raises(StoreUnavailable):
        await source.align(behind)
    assert cast(Any, behind.log).appended == []
