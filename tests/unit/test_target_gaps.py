"""Planning a restore from a log with gaps, holes, and transactions that were open at the base snapshot."""

from __future__ import annotations

import pytest

from archiver.errors import IntegrityError, TargetUnreachable
from archiver.format.manifest import Changes, Entry, Lost
from archiver.lsn import Lsn
from archiver.policy.history import History
from archiver.policy.target import ToLatest, ToLsn, ToTime
from tests.unit.target_log import COMMITS, LOG, NOW, at, changes, commit, gap, ordinals, plan, snapshot

# --- gaps and holes ---

GAPPED: tuple[Entry, ...] = (
    snapshot(100),
    changes(1, 100, 200, commit(110)),
    gap(200, 300),
    changes(2, 300, 400, commit(350)),
    snapshot(360),
    changes(3, 400, 500, commit(450)),
)
GAPPED_COMMITS = {1: (commit(110),), 2: (commit(350),), 3: (commit(450),)}


def test_a_target_before_a_gap_is_reached() -> None:
    assert plan(ToLsn(Lsn(200)), GAPPED).stop == 200
    assert plan(ToTime(at(105)), GAPPED, GAPPED_COMMITS).stop == commit(110).lsn


@pytest.mark.parametrize("lsn", [201, 299, 300, 355])
def test_a_target_inside_a_gap_or_before_the_snapshot_that_followed_is_refused(lsn: int) -> None:
    with pytest.raises(TargetUnreachable, match="the replication slot was dropped") as refused:
        plan(ToLsn(Lsn(lsn)), GAPPED, GAPPED_COMMITS)
    assert "0/C8 and 0/12C" in str(refused.value)


def test_a_time_inside_a_gap_is_refused() -> None:
    with pytest.raises(TargetUnreachable, match="inside or behind a gap"):
        plan(ToTime(at(250)), GAPPED, GAPPED_COMMITS)


def test_an_idle_time_that_was_covered_before_a_gap_is_reached() -> None:
    assert plan(ToTime(at(190)), GAPPED, GAPPED_COMMITS).stop == 200


def test_a_target_after_the_snapshot_that_followed_a_gap_is_reached() -> None:
    planned = plan(ToLatest(), GAPPED)
    assert planned.snapshot.lsn == 360
    assert ordinals(planned) == [2, 3]


def test_a_snapshot_exactly_at_a_gap_s_end_is_behind_it() -> None:
    log = [snapshot(100), changes(1, 100, 200), gap(200, 300), snapshot(300), changes(2, 300, 400, commit(350))]
    assert plan(ToLsn(Lsn(400)), log).snapshot.lsn == 300


LOST = Lost(lsn=Lsn(250), reason="failed")
UNCAPTURED: tuple[Entry, ...] = (
    changes(1, 100, 200, *COMMITS[1]),
    snapshot(150),
    changes(2, 200, 300, *COMMITS[2], lost=(LOST,)),
    snapshot(270),
    changes(3, 300, 400),
)


@pytest.mark.parametrize(("lsn", "start"), [(249, 150), (270, 270), (400, 270)])
def test_a_target_on_either_side_of_a_schema_change_that_was_not_captured_is_reached(lsn: int, start: int) -> None:
    assert History(UNCAPTURED).plan(ToLsn(Lsn(lsn)), (), NOW).snapshot.lsn == start


@pytest.mark.parametrize("lsn", [250, 269])
def test_a_target_behind_it_and_before_the_next_base_snapshot_is_refused(lsn: int) -> None:
    with pytest.raises(TargetUnreachable, match="was not captured: it could not be written down"):
        History(UNCAPTURED).plan(ToLsn(Lsn(lsn)), (), NOW)


SOMEWHERE = Lost(lsn=Lsn(310), since=Lsn(230), reason="changed")
WATCHED: tuple[Entry, ...] = (
    changes(1, 100, 200, *COMMITS[1]),
    snapshot(150),
    changes(2, 200, 300, *COMMITS[2], lost=(SOMEWHERE,)),
    snapshot(270),
    snapshot(330),
    changes(3, 300, 400),
)


@pytest.mark.parametrize(("lsn", "start"), [(230, 150), (270, 270), (330, 330), (400, 330)])
def test_a_target_before_or_after_the_span_of_a_schema_change_is_reached(lsn: int, start: int) -> None:
    """A base snapshot inside the span is itself right, though it may have been taken before the change."""
    assert History(WATCHED).plan(ToLsn(Lsn(lsn)), (), NOW).snapshot.lsn == start


@pytest.mark.parametrize("lsn", [231, 269, 271, 310, 329])
def test_a_target_that_may_lie_behind_a_schema_change_is_refused_with_what_can_be_reached(lsn: int) -> None:
    with pytest.raises(TargetUnreachable, match="was not captured: the schema changed") as caught:
        History(WATCHED).plan(ToLsn(Lsn(lsn)), (), NOW)
    assert caught.value.where == "it was committed after 0/E6, at or before 0/136"
    assert "up to --target-lsn 0/E6, and from 0/14A on" in (caught.value.hint or "")


def test_before_the_base_snapshot_that_follows_a_schema_change_the_hint_says_who_takes_it() -> None:
    with pytest.raises(TargetUnreachable) as caught:
        History(UNCAPTURED[:3]).plan(ToLatest(), (), NOW)
    assert "up to --target-lsn 0/F9, and from the base snapshot on that archiver run takes" in (caught.value.hint or "")


def test_a_hole_that_no_gap_explains_is_an_integrity_error() -> None:
    holed = [entry for entry in LOG if not (isinstance(entry, Changes) and entry.ordinal == 2)]
    with pytest.raises(IntegrityError, match="nothing between 0/C8 and 0/12C"):
        plan(ToLatest(), holed)


def test_a_log_that_begins_after_its_snapshot_is_a_hole_too() -> None:
    with pytest.raises(IntegrityError, match="nothing between 0/96 and 0/C8"):
        plan(ToLatest(), LOG[1:])


# --- transactions that were open at the snapshot ---


def test_a_transaction_that_was_open_pulls_in_the_segments_from_its_beginning() -> None:
    log = [
        changes(1, 100, 200, commit(110)),
        changes(2, 200, 300, commit(210), open_from=2),
        changes(3, 300, 400, commit(310), open_from=2),
        snapshot(420),
        changes(4, 400, 500, commit(450)),
    ]
    assert ordinals(plan(ToLatest(), log)) == [2, 3, 4]


def test_an_open_transaction_reaches_over_a_proof_that_nothing_was_committed() -> None:
    log = [
        changes(1, 100, 200, commit(110), open_from=1),
        changes(2, 200, 300, open_from=1),
        snapshot(320),
        changes(3, 300, 400, commit(350)),
    ]
    assert ordinals(plan(ToLatest(), log)) == [1, 3]


def test_what_was_open_later_pulls_nothing_in() -> None:
    log = [
        changes(1, 100, 200, commit(110)),
        snapshot(220),
        changes(2, 200, 300, commit(250), open_from=2),
        changes(3, 300, 400, commit(350)),
    ]
    assert ordinals(plan(ToLatest(), log)) == [2, 3]
