"""Planning a restore from a log written by hand: which snapshot, which change segments, and exactly where it stops.

Time and LSN run together: at second s of the morning the source stands at LSN s, unless a test says otherwise.
"""

from __future__ import annotations

from datetime import timedelta, timezone

import pytest

from archiver.errors import TargetUnreachable, UsageError
from archiver.format.manifest import Changes, Entry, Gap, RestorePoint, format_time
from archiver.lsn import Lsn
from archiver.policy.history import History
from archiver.policy.target import Plan, Target, ToLatest, ToLsn, ToName, ToTime, parse_time
from tests.unit.target_log import COMMITS, LOG, MORNING, NOW, at, changes, commit, ordinals, plan, ref, snapshot

# --- sequences ---


def test_segments_are_read_on_to_the_first_that_knows_the_sequences() -> None:
    log = [
        snapshot(100),
        changes(1, 100, 200, commit(150)),
        changes(2, 200, 300, commit(250)),
        changes(3, 300, 400, commit(350), sequences=True),
        changes(4, 400, 500, commit(450), sequences=True),
    ]
    assert ordinals(plan(ToLsn(Lsn(160)), log, {1: (commit(150),)})) == [1, 2, 3]
    assert ordinals(plan(ToLsn(Lsn(360)), log, {3: (commit(350),)})) == [1, 2, 3]


def test_sequences_may_move_within_an_lsn_so_they_are_read_from_a_segment_behind_it() -> None:
    log = [
        snapshot(100),
        changes(1, 100, 200, commit(150), sequences=True),
        changes(2, 200, 200, sequences=True, object=ref(), covered=250),
        changes(3, 200, 300, sequences=True, object=ref(), covered=260),
        changes(4, 300, 400, commit(350), sequences=True),
    ]
    assert ordinals(plan(ToLsn(Lsn(160)), log, {1: (commit(150),)})) == [1]
    assert ordinals(plan(ToLsn(Lsn(200)), log)) == [1, 2, 3]
    assert ordinals(plan(ToLsn(Lsn(200)), log[:3])) == [1, 2]
    assert ordinals(plan(ToTime(at(199)), log)) == [1]
    assert ordinals(plan(ToTime(at(220)), log)) == [1, 2]
    assert ordinals(plan(ToLsn(Lsn(100)), log)) == [1]


def test_for_the_sequences_alone_nothing_is_read_from_before_the_base_snapshot() -> None:
    log = [
        changes(1, 100, 200, commit(150), sequences=True),
        changes(2, 200, 300, commit(250), sequences=True, open_from=1),
        snapshot(300),
        changes(3, 300, 400, commit(350), sequences=True, open_from=1),
    ]
    assert ordinals(plan(ToLsn(Lsn(300)), log)) == [2, 3]
    assert ordinals(plan(ToLsn(Lsn(360)), log, {3: (commit(350),)})) == [1, 2, 3]


def test_sequences_behind_a_gap_are_not_those_of_a_target_before_it() -> None:
    log = [
        snapshot(100),
        changes(1, 100, 200, commit(150), sequences=True),
        Gap(after_lsn=Lsn(200), before_lsn=Lsn(900), reason="the slot was lost"),
        changes(2, 900, 950, commit(920), sequences=True),
    ]
    assert ordinals(plan(ToLsn(Lsn(200)), log)) == [1]


# --- times ---


def test_a_time_between_two_commits_stops_before_the_later_one() -> None:
    planned = plan(ToTime(at(230)))
    assert planned.stop == COMMITS[2][1].lsn
    assert planned.last_commit == COMMITS[2][0]
    assert planned.snapshot.lsn == 150
    assert ordinals(planned) == [1, 2]


def test_a_time_equal_to_a_commit_s_includes_it() -> None:
    assert plan(ToTime(at(250))).last_commit == COMMITS[2][1]
    assert plan(ToTime(at(250) - timedelta(microseconds=1))).last_commit == COMMITS[2][0]


def test_a_time_in_an_idle_span_stops_at_the_end_of_the_segment_that_covers_it() -> None:
    planned = plan(ToTime(at(350)))
    assert planned.last_commit == COMMITS[2][2]
    assert planned.stop == 400


def test_a_time_after_the_last_commit_is_reached_when_it_is_proven_that_none_came() -> None:
    planned = plan(ToTime(at(490)))
    assert planned.stop == 500
    assert planned.last_commit == COMMITS[4][0]


def test_the_offset_of_a_time_does_not_matter() -> None:
    berlin = at(230).astimezone(timezone(timedelta(hours=1)))
    assert plan(ToTime(berlin)).stop == plan(ToTime(at(230))).stop


def test_a_time_before_the_first_base_snapshot_is_refused_with_the_window() -> None:
    with pytest.raises(TargetUnreachable, match="before the recovery window") as refused:
        plan(ToTime(at(140)))
    assert "from 2026-11-22T03:02:30.000000Z to 2026-11-22T03:08:20.000000Z" in str(refused.value.hint)
    assert refused.value.exit_code == 6


def test_the_moment_of_the_first_base_snapshot_can_be_restored_to() -> None:
    planned = plan(ToTime(at(150)))
    assert planned.snapshot.lsn == 150
    assert planned.last_commit == COMMITS[1][1]


def test_a_time_in_the_future_is_refused() -> None:
    with pytest.raises(TargetUnreachable, match="in the future"):
        plan(ToTime(NOW + timedelta(seconds=1)))


def test_a_time_that_the_archive_does_not_cover_yet_is_refused() -> None:
    with pytest.raises(TargetUnreachable, match="does not reach the target"):
        plan(ToTime(at(501)))


def test_a_time_is_refused_where_coverage_was_never_proven() -> None:
    with pytest.raises(TargetUnreachable, match="does not reach the target"):
        plan(ToTime(at(160)), [snapshot(150), changes(1, 150, 200, covered=None)])


def test_a_proof_of_coverage_outlives_a_later_segment_without_one() -> None:
    """A daemon that has just started does not know the source's clock yet."""
    log = [snapshot(150), changes(1, 150, 200, covered=200), changes(2, 200, 210, covered=None)]
    planned = plan(ToTime(at(190)), log)
    assert planned.stop == 200
    assert History(log).window.latest == at(200)


def test_commit_times_that_step_back_stop_at_the_first_that_is_too_late() -> None:
    stepping = (commit(210, time=210), commit(220, time=260), commit(230, time=215), commit(240, time=270))
    log = [snapshot(150), changes(1, 150, 300, *stepping)]
    planned = plan(ToTime(at(230)), log, {1: stepping})
    assert planned.last_commit == stepping[0]
    assert planned.stop == stepping[1].lsn


def test_a_segment_whose_last_commit_is_early_still_bounds_a_time_by_its_latest() -> None:
    stepping = (commit(210, time=260), commit(220, time=205))
    log = [snapshot(150), changes(1, 150, 250, *stepping, covered=250), changes(2, 250, 300)]
    assert plan(ToTime(at(230)), log, {1: stepping}).stop == stepping[0].lsn


def test_a_snapshot_that_was_consistent_after_the_target_is_not_used() -> None:
    """Its LSN lies before the next commit, but it was not there yet at the target's moment."""
    log = [snapshot(150), changes(1, 150, 500, commit(160), commit(450)), snapshot(300)]
    planned = plan(ToTime(at(200)), log, {1: (commit(160), commit(450))})
    assert planned.snapshot.lsn == 150


# --- LSNs ---


def test_an_lsn_at_a_commit_s_end_includes_it() -> None:
    planned = plan(ToLsn(Lsn(250)))
    assert planned.last_commit == COMMITS[2][1]
    assert planned.stop == 250
    assert ordinals(planned) == [1, 2]


@pytest.mark.parametrize("lsn", [248, 249])
def test_an_lsn_inside_a_commit_record_leaves_it_out(lsn: int) -> None:
    assert plan(ToLsn(Lsn(lsn))).last_commit == COMMITS[2][0]


def test_an_lsn_at_a_segment_s_border_needs_no_look_inside() -> None:
    assert History(LOG).boundary(ToLsn(Lsn(300))) is None
    planned = plan(ToLsn(Lsn(300)))
    assert ordinals(planned) == [1, 2]
    assert planned.last_commit == COMMITS[2][2]


def test_an_lsn_inside_an_idle_span_needs_no_look_inside_either() -> None:
    assert History(LOG).boundary(ToLsn(Lsn(350))) is None
    assert plan(ToLsn(Lsn(350))).last_commit == COMMITS[2][2]


def test_an_lsn_beyond_the_end_is_refused_with_the_end() -> None:
    with pytest.raises(TargetUnreachable, match="ends before LSN") as refused:
        plan(ToLsn(Lsn(501)))
    assert "0/1F4" in str(refused.value)


def test_an_lsn_before_the_first_base_snapshot_is_refused() -> None:
    with pytest.raises(TargetUnreachable, match="before the recovery window"):
        plan(ToLsn(Lsn(149)))


def test_the_lsn_of_a_base_snapshot_needs_no_change_segment() -> None:
    planned = plan(ToLsn(Lsn(150)))
    assert planned.segments == ()
    assert planned.stop == 150


def test_the_newest_base_snapshot_at_or_before_the_target_is_used() -> None:
    log = [*LOG, snapshot(300, time=310)]
    assert plan(ToLsn(Lsn(299)), log).snapshot.lsn == 150
    assert plan(ToLsn(Lsn(300)), log).snapshot.lsn == 300
    assert ordinals(plan(ToLsn(Lsn(480)), log)) == [4]


# --- restore points and latest ---


def named(*points: tuple[str, int]) -> tuple[list[Entry], dict[str, str]]:
    """The log, with restore points in its second segment, and their names by how they are sealed."""
    sealed = {f"{number:0224x}": name for number, (name, _) in enumerate(points)}
    found = tuple(
        RestorePoint(lsn=Lsn(lsn), time=at(lsn), key_id="k", sealed=seal)
        for seal, (_, lsn) in zip(sealed, points, strict=True)
    )
    second = changes(2, 200, 300, *COMMITS[2], restore_points=found)
    return [second if isinstance(entry, Changes) and entry.ordinal == 2 else entry for entry in LOG], sealed


def plan_named(name: str, *points: tuple[str, int]) -> Plan:
    return History(*named(*points)).plan(ToName(name), COMMITS[2], NOW)


def test_a_restore_point_stops_at_its_lsn() -> None:
    planned = plan_named("release", ("release", 240))
    assert planned.stop == 240
    assert planned.last_commit == COMMITS[2][0]


def test_two_restore_points_of_one_name_are_refused_with_both() -> None:
    with pytest.raises(TargetUnreachable, match="2 restore points 'release'") as refused:
        plan_named("release", ("release", 220), ("other", 240), ("release", 260))
    assert refused.value.where == f"0/DC ({format_time(at(220))}), 0/104 ({format_time(at(260))})"
    assert "--target-lsn" in (refused.value.hint or "")


def test_an_unknown_restore_point_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(TargetUnreachable, match="no restore point 'x'") as refused:
        plan_named("x", ("b", 220), ("a", 240))
    assert refused.value.hint == "Restore points: a, b."
    with pytest.raises(TargetUnreachable) as refused:
        plan(ToName("x"))
    assert refused.value.hint == "Restore points: none."


def test_latest_is_all_there_is() -> None:
    planned = plan(ToLatest())
    assert planned.stop == 500
    assert planned.last_commit == COMMITS[4][0]
    assert ordinals(planned) == [1, 2, 4]


def test_latest_of_a_snapshot_ahead_of_the_log_is_the_snapshot() -> None:
    log = [*LOG, snapshot(520)]
    planned = plan(ToLatest(), log)
    assert planned.stop == planned.snapshot.lsn == 520
    assert planned.segments == ()
    assert planned.last_commit == COMMITS[4][0]


def test_a_target_that_the_log_reaches_is_not_held_up_by_a_snapshot_ahead_of_it() -> None:
    assert plan(ToLsn(Lsn(480)), [*LOG, snapshot(520)]).snapshot.lsn == 150


def test_between_the_log_s_end_and_a_snapshot_ahead_of_it_nothing_can_be_restored_to() -> None:
    with pytest.raises(TargetUnreachable, match="does not hold all changes up to"):
        plan(ToLsn(Lsn(510)), [*LOG, snapshot(520)])


@pytest.mark.parametrize("target", [ToLatest(), ToLsn(Lsn(0)), ToTime(at(1))])
def test_an_empty_archive_says_that_there_is_no_base_snapshot(target: Target) -> None:
    with pytest.raises(TargetUnreachable) as refused:
        plan(target, [])
    assert "no base snapshot yet" in str(refused.value.hint)


# --- what a plan says of itself ---


def test_a_plan_counts_what_is_to_be_read() -> None:
    planned = plan(ToLsn(Lsn(290)))
    assert planned.stored_bytes == 400
    assert planned.commits == 5
    assert planned.messages == 15
    assert planned.estimate >= timedelta(seconds=1)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (ToTime(at(0)), "time 2026-11-22T03:00:00.000000Z"),
        (ToLsn(Lsn(255)), "LSN 0/FF"),
        (ToName("x"), "restore point 'x'"),
        (ToLatest(), "latest"),
    ],
)
def test_a_target_says_what_it_is(target: Target, text: str) -> None:
    assert str(target) == text


# --- reading a time ---


def test_a_time_is_read_with_its_offset() -> None:
    assert parse_time("2026-11-22T03:00:00Z") == MORNING
    assert parse_time("2026-11-22 04:00:00+01:00") == MORNING


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-11-22T03:00:00", "no offset"),
        ("2026-11-22", "no offset"),
        ("yesterday", "not an ISO"),
        ("", "not an ISO"),
    ],
)
def test_a_time_that_leaves_room_for_guessing_is_refused_with_an_example(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        parse_time(text)
    assert "+01:00" in str(refused.value.hint)
