"""What a drill decides: which base snapshots prove each other, and what counts as equal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from archiver.format.digest import RowDigest
from archiver.format.manifest import Gap, Snapshot
from archiver.lsn import Lsn
from archiver.names import TableName
from archiver.policy.drill import (
    SequenceFacts,
    TableState,
    check_none,
    check_objective,
    check_query,
    check_sequence,
    check_tables,
    pairs,
    up_to,
)
from archiver.policy.history import History

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def snapshot(lsn: int) -> Snapshot:
    return Snapshot(
        snapshot_id=uuid4(), lsn=Lsn(lsn), consistent_at=NOON, finished_at=NOON, server_version=180000,
        tables=0, rows=0, parts=(),
    )  # fmt: skip


def test_the_newest_two_base_snapshots_come_first() -> None:
    one, two, three = snapshot(1), snapshot(2), snapshot(3)
    assert list(pairs(History([three, one, two]))) == [(two, three), (one, two)]
    assert list(pairs(History([one]))) == []


def test_two_base_snapshots_of_one_lsn_prove_nothing() -> None:
    assert list(pairs(History([snapshot(1), snapshot(1)]))) == []


def test_a_history_up_to_a_base_snapshot_keeps_everything_else() -> None:
    one, two = snapshot(1), snapshot(2)
    gap = Gap(after_lsn=Lsn(5), before_lsn=Lsn(6), reason="none")
    history = up_to(one, History([one, gap, two]))
    assert (history.snapshots, history.gaps) == ([one], [gap])


DIGEST = RowDigest(2, 7)
NAME = TableName("public", "t")


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        (TableState(("a",), RowDigest(2, 7)), True),
        (TableState(("a",), RowDigest(2, 8)), False),
        (TableState(("a",), RowDigest(3, 7)), False),
        (TableState(("a", "b"), None), False),
        (None, False),
    ],
)
def test_a_table_must_have_the_columns_the_count_and_the_digest(found: TableState | None, passed: bool) -> None:
    (check,) = check_tables({NAME: TableState(("a",), DIGEST)}, {NAME: found} if found else {})
    assert check.passed is passed
    assert (check.expected == check.found) is passed


@pytest.mark.parametrize(
    ("facts", "passed"),
    [
        (SequenceFacts(NAME, 1, floor=5, found=5), True),
        (SequenceFacts(NAME, 1, floor=5, found=4), False),
        (SequenceFacts(NAME, 1, floor=5, found=None), False),
        (SequenceFacts(NAME, 1, floor=None, found=1), True),
        (SequenceFacts(NAME, 1, floor=5, found=8, needed=9), False),
        (SequenceFacts(NAME, -1, floor=-5, found=-6), True),
        (SequenceFacts(NAME, -1, floor=-5, found=-4), False),
    ],
)
def test_a_sequence_never_stands_below_what_was_given(facts: SequenceFacts, passed: bool) -> None:
    assert check_sequence(facts).passed is passed


def test_a_sequence_below_the_later_reading_is_told_and_not_failed() -> None:
    """That one was read after its snapshot's LSN: the application may have gone on meanwhile."""
    check = check_sequence(SequenceFacts(NAME, 1, floor=5, found=6, later=9))
    assert check.passed
    assert "the later base snapshot says 9" in check.found


def test_a_query_without_an_expected_value_must_return_a_row() -> None:
    assert check_query("Q", [None], None).passed
    assert not check_query("Q", None, None).passed


def test_a_query_s_first_value_is_compared_as_text() -> None:
    assert check_query("Q", ["3", "more"], "3").passed
    assert not check_query("Q", ["t"], "true").passed
    assert not check_query("Q", [None], "3").passed
    assert not check_query("Q", None, "3").passed


def test_an_objective_is_checked_only_if_it_is_set_and_missed_if_nothing_was_measured() -> None:
    assert check_objective("recovery time", timedelta(1), None) == []
    assert not check_objective("recovery time", None, timedelta(1))[0].passed
    assert check_objective("recovery time", timedelta(1), timedelta(1))[0].passed


def test_a_list_that_must_be_empty_names_what_is_in_it() -> None:
    check = check_none("invalid indexes", ["public.a", "public.b"])
    assert (check.passed, check.found) == (False, "public.a, public.b")
