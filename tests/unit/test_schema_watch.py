"""Between which LSNs a change of the catalog was committed, told from looks alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archiver.format.manifest import Catalog, Lost
from archiver.format.pgmessages import Column, Relation
from archiver.lsn import Lsn
from archiver.policy import schema_watch
from archiver.policy.schema_watch import Look, SchemaWatch, is_stranger

KNOWN = Catalog(digest="a", lsn=Lsn(90))


def look(digest: str | None, before: int, running: set[int] | None = None, next_xid: int = 0) -> Look:
    """At LSN `before`; ten bytes later it had ended. Transactions get their numbers as time passes."""
    return Look(digest, Lsn(before), Lsn(before + 10), frozenset(running or ()), next_xid or before)


def judge(watch: SchemaWatch, seen: Look) -> Lost | None:
    """The look was taken for a segment that starts twenty bytes before."""
    return watch.judge(seen, Lsn(seen.before - 20))


def span(lost: Lost | None) -> tuple[int | None, int] | None:
    return None if lost is None else (lost.since, lost.lsn)


def test_a_catalog_that_stays_loses_nothing() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    assert [judge(watch, look("a", 100)), judge(watch, look("a", 200))] == [None, None]
    assert watch.catalog == Catalog(digest="a", lsn=Lsn(200))


def test_a_change_lies_between_two_looks() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    judge(watch, look("a", 100))
    assert span(judge(watch, look("b", 200))) == (100, 210)
    assert judge(watch, look("b", 300)) is None


def test_the_first_look_of_a_daemon_is_compared_with_the_last_in_the_log() -> None:
    assert span(judge(SchemaWatch(KNOWN, Lsn(95)), look("b", 100))) == (90, 110)
    assert judge(SchemaWatch(KNOWN, Lsn(95)), look("a", 100)) is None


def test_a_commit_that_a_look_did_not_show_yet_may_lie_before_it() -> None:
    """Transaction 150 was committing while the second look was taken; 120 is of no interest: it is running still."""
    watch = SchemaWatch(KNOWN, Lsn(95))
    for each in (look("a", 100), look("a", 140, {120}), look("a", 200, {120, 150})):
        judge(watch, each)
    assert span(judge(watch, look("b", 300, {120}))) == (140, 310)


def test_what_the_log_says_is_shown_is_shown_whatever_comes_next() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    judge(watch, look("a", 100))
    judge(watch, look("a", 200, {150}))
    assert watch.catalog == Catalog(digest="a", lsn=Lsn(100))
    judge(watch, look("a", 300, {80}))
    assert watch.catalog == Catalog(digest="a", lsn=Lsn(90))


def test_a_log_that_never_saw_the_catalog_proves_nothing_from_its_end_on() -> None:
    assert span(judge(SchemaWatch(None, Lsn(95)), look("a", 100))) == (95, 110)
    assert judge(SchemaWatch(None, Lsn(95)), look(None, 100)) is None


def test_triggers_that_come_or_go_leave_a_span_that_nobody_watched() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    assert judge(watch, look("a", 100)) is None
    came, stayed = judge(watch, look(None, 200)), judge(watch, look(None, 300))
    went = judge(watch, look("a", 400))
    assert (span(came), stayed, span(went)) == ((100, 210), None, (300, 410))
    assert [each.reason for each in (came, went) if each] == [schema_watch.CAPTURE_BEGAN, schema_watch.CAPTURE_ENDED]


STRANGE = replace(look("a", 200), strangers=("public.made",))


def test_a_table_that_the_stream_describes_and_no_look_shows_came_and_went() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    judge(watch, look("a", 100))
    lost = judge(watch, STRANGE)
    assert lost is not None
    assert (span(lost), lost.reason) == ((100, 210), schema_watch.CHANGED_BACK)


def test_a_loss_that_was_only_counted_is_told_until_its_transaction_must_have_ended() -> None:
    """It is counted while the statement runs: what the statement did is committed later."""
    watch = SchemaWatch(Catalog(digest=None, lsn=Lsn(90), losses=3), Lsn(95))
    counted = replace(look(None, 100), losses=4)
    assert judge(watch, replace(counted, losses=3)) is None
    for before, running, next_xid in ((200, {7}, 8), (300, {7}, 9), (400, set(), 10)):
        lost = judge(watch, replace(look(None, before, running, next_xid), losses=4))
        assert lost is not None
        assert lost.reason == schema_watch.UNCOUNTED
    assert watch.catalog is not None
    assert watch.catalog.losses == 4
    assert judge(watch, replace(counted, before=Lsn(500), after=Lsn(510))) is None


def test_a_loss_is_counted_across_a_restart() -> None:
    known = Catalog(digest=None, lsn=Lsn(90), losses=3)
    lost = judge(SchemaWatch(known, Lsn(95)), replace(look(None, 100), losses=4))
    assert lost is not None
    assert judge(SchemaWatch(known, Lsn(95)), look(None, 100)) is None


def test_what_a_stream_that_lags_describes_is_no_news_before_the_change_that_was_told() -> None:
    told = SchemaWatch(KNOWN, Lsn(95), told=Lsn(181))
    assert judge(told, STRANGE) is None
    watch = SchemaWatch(KNOWN, Lsn(95))
    judge(watch, look("b", 175))
    assert judge(watch, replace(STRANGE, digest="b")) is None


TABLE = Relation(7, "public", "t", "d", (Column("id", 23, -1, True), Column("v", 25, -1, False)))
COLUMNS = [("id", 23, -1), ("generated", 20, -1), ("v", 25, -1)]


def test_a_table_is_what_the_stream_described_if_it_has_these_columns_in_this_order() -> None:
    assert not is_stranger(TABLE, "public.t", COLUMNS)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        (None, ()),
        ("public.u", COLUMNS),
        ("public.t", COLUMNS[:2]),
        ("public.t", [("id", 20, -1), *COLUMNS[1:]]),
        ("public.t", [*COLUMNS[:2], ("w", 25, -1)]),
        ("public.t", [*COLUMNS[:2], ("v", 1043, 14)]),
        ("public.t", COLUMNS[::-1]),
    ],
    ids=["gone", "renamed", "column gone", "other type", "column renamed", "other modifier", "other order"],
)
def test_a_table_is_a_stranger_if_anything_differs(name: str | None, columns: list[tuple[str, int, int]]) -> None:
    assert is_stranger(TABLE, name, columns)
