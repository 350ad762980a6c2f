"""Capture without a server: what a change segment is called."""

from __future__ import annotations

from archiver.capture import Capture, Position
from archiver.config import SegmentSection, SourceSection
from archiver.format.segment import encode
from archiver.lsn import Lsn
from archiver.metrics import Metrics
from archiver.policy.cut import Cut
from archiver.postgres.replication_slot import SystemIdentity
from archiver.postgres.source import Source
from tests.unit.test_archive_log import regions, written


async def test_a_segment_that_is_cut_again_after_a_lost_connection_never_replaces_what_was_stored_before() -> None:
    """Nor does what is still on its way replace it, when it arrives late: the manifest names one of them."""
    stores = regions()
    archive = await written(stores)
    capture = Capture(
        archive=archive,
        source=SourceSection(dsn="", slot="s", publication="p"),
        settings=SegmentSection(),
        monitor=Source("", "s"),
        metrics=Metrics(),
        start=Position(1, Lsn(10)),
        system=SystemIdentity("7", 1, Lsn(0), "shop"),
    )
    first, again = (Cut(1, Lsn(10), Lsn(20), bytearray(encode(b"row"))) for _ in range(2))
    refs = [await capture._store(first), await capture._store(again)]
    for store in stores:
        assert [ref.matches(store.objects[ref.key]) for ref in refs] == [True, True]
