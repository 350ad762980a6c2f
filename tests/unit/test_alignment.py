"""Where a daemon goes on, from what the source and the log say at that moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from archiver.alignment import Alignment
from archiver.archive import OpenArchive
from archiver.capture import Position
from archiver.config import SourceSection
from archiver.errors import PostgresError
from archiver.format.manifest import Changes
from archiver.lsn import Lsn
from archiver.postgres.replication_slot import SlotInfo, SystemIdentity
from tests.unit.test_archive_log import changes


class Source(Alignment):
    """A source that stands at `reached`, with a slot that has confirmed nothing of it."""

    reached = Lsn(0)

    async def check_identity(self, archive: OpenArchive) -> SystemIdentity:  # noqa: ARG002
        return SystemIdentity("7", 1, self.reached, "shop")

    async def slot(self) -> SlotInfo | None:
        lsn = Lsn(1)
        return SlotInfo("s", "pgoutput", "shop", False, False, None, lsn, lsn, "reserved", None, None)


def archive_up_to(entry: Changes) -> OpenArchive:
    state = SimpleNamespace(changes=entry, gap=None, snapshot=None)
    return cast(Any, SimpleNamespace(log=SimpleNamespace(state=state)))


async def test_a_source_that_went_on_while_the_log_was_read_was_not_set_back() -> None:
    """Reading the log takes its time, and a daemon that is being replaced goes on meanwhile."""
    source = Source(SourceSection(dsn="", slot="s", publication="p"), lambda: None)
    await source.check_identity(archive_up_to(changes(1)))
    source.reached = Lsn(40)
    assert await source.align(archive_up_to(changes(3))) == Position(4, Lsn(40))
    with pytest.raises(PostgresError, match="set back"):
        await source.align(archive_up_to(changes(4)))
