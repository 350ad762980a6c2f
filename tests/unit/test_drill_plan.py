"""Which drill is planned: the newest two base snapshots that prove each other, and what else is said of the archive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from archiver.archive import OpenArchive
from archiver.drill import plan_drill
from archiver.errors import TargetUnreachable
from archiver.format.manifest import Changes, Entry, Gap
from archiver.lsn import Lsn
from archiver.policy.target import ToLsn
from tests.unit.test_drill_policy import NOON, snapshot


class Log:
    """A manifest log of these entries."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    async def scan(self) -> AsyncIterator[Any]:
        for seq, entry in enumerate(self._entries, start=1):
            yield SimpleNamespace(entry=entry, seq=seq, hash=f"{seq:064x}")


def archive(*entries: Entry) -> OpenArchive:
    async def no_names(_entries: object) -> dict[str, str]:
        return {}

    nowhere = SimpleNamespace(stores=())
    return cast("OpenArchive", SimpleNamespace(log=Log(entries), store=nowhere, beside=(), names_of=no_names))


def idle(start: int, end: int) -> Changes:
    """A proof that nothing was committed between two LSNs."""
    return Changes(ordinal=1, connection=1, start_lsn=Lsn(start), end_lsn=Lsn(end), covered_until=NOON)


async def test_the_newest_two_base_snapshots_are_compared() -> None:
    one, two, three = snapshot(0x10), snapshot(0x20), snapshot(0x30)
    plan = await plan_drill(archive(one, idle(0x10, 0x40), two, three))
    assert (plan.plan.snapshot, plan.plan.stop, plan.compared) == (two, 0x30, three)
    assert plan.deviations == ()
    assert plan.head.seq == 4


async def test_base_snapshots_with_a_gap_between_are_passed_over_and_that_is_told() -> None:
    one, two, three = snapshot(0x10), snapshot(0x20), snapshot(0x30)
    gap = Gap(after_lsn=Lsn(0x20), before_lsn=Lsn(0x30), reason="the replication slot was dropped")
    plan = await plan_drill(archive(one, idle(0x10, 0x20), two, gap, three))
    assert (plan.plan.snapshot, plan.compared) == (one, two)
    (deviation,) = plan.deviations
    assert deviation.startswith("base snapshot 0/20 cannot be replayed to 0/30: ")


async def test_changes_that_do_not_reach_the_newest_base_snapshot_yet_leave_the_one_before() -> None:
    one, two, three = snapshot(0x10), snapshot(0x20), snapshot(0x30)
    plan = await plan_drill(archive(one, idle(0x10, 0x28), two, three))
    assert (plan.plan.snapshot, plan.compared) == (one, two)


async def test_a_quiet_archive_with_one_base_snapshot_is_compared_with_that() -> None:
    one = snapshot(0x10)
    plan = await plan_drill(archive(one, idle(0x10, 0x40)))
    assert (plan.plan.snapshot, plan.compared, plan.plan.stop) == (one, one, 0x40)
    assert "no two base snapshots" in plan.deviations[0]


async def test_the_recovery_point_is_the_age_of_the_newest_restorable_moment() -> None:
    hour = timedelta(hours=1)
    behind, ahead = (
        idle(0x10, 0x40).model_copy(update={"covered_until": datetime.now(UTC) + by}) for by in (-hour, hour)
    )
    plan = await plan_drill(archive(snapshot(0x10), behind))
    assert plan.recovery_point is not None
    assert hour <= plan.recovery_point < 2 * hour
    assert (await plan_drill(archive(snapshot(0x10), ahead))).recovery_point == timedelta()  # the source's clock


async def test_without_a_base_snapshot_or_with_a_target_out_of_reach_there_is_no_drill() -> None:
    with pytest.raises(TargetUnreachable, match="no base snapshot"):
        await plan_drill(archive(idle(0x10, 0x40)))
    with pytest.raises(TargetUnreachable, match="ends before"):
        await plan_drill(archive(snapshot(0x10)), ToLsn(Lsn(0x50)))
