"""Between which LSNs a change of the catalog was committed, told from looks alone."""

from __future__ import annotations

from archiver.format.manifest import Catalog, Lost
from archiver.lsn import Lsn
from archiver.policy import schema_watch
from archiver.policy.schema_watch import Look, SchemaWatch

KNOWN = Catalog(digest="a", lsn=Lsn(90))


def look(digest: str | None, before: int, running: set[int] | None = None, next_xid: int = 0) -> Look:
    """At LSN `before`; ten bytes later it had ended. Transactions get their numbers as time passes."""
    return Look(digest, Lsn(before), Lsn(before + 10), frozenset(running or ()), next_xid or before)


def span(lost: Lost | None) -> tuple[int | None, int] | None:
    return None if lost is None else (lost.since, lost.lsn)


def test_a_catalog_that_stays_loses_nothing() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    assert [watch.judge(look("a", 100)), watch.judge(look("a", 200))] == [None, None]
    assert watch.catalog == Catalog(digest="a", lsn=Lsn(200))


def test_a_change_lies_between_two_looks() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    watch.judge(look("a", 100))
    assert span(watch.judge(look("b", 200))) == (100, 210)
    assert watch.judge(look("b", 300)) is None


def test_the_first_look_of_a_daemon_is_compared_with_the_last_in_the_log() -> None:
    assert span(SchemaWatch(KNOWN, Lsn(95)).judge(look("b", 100))) == (90, 110)
    assert SchemaWatch(KNOWN, Lsn(95)).judge(look("a", 100)) is None


def test_a_commit_that_a_look_did_not_show_yet_may_lie_before_it() -> None:
    """Transaction 150 was committing while the second look was taken; 120 is of no interest: it is running still."""
    watch = SchemaWatch(KNOWN, Lsn(95))
    for each in (look("a", 100), look("a", 140, {120}), look("a", 200, {120, 150})):
        watch.judge(each)
    assert span(watch.judge(look("b", 300, {120}))) == (140, 310)


def test_what_the_log_says_is_shown_is_shown_whatever_comes_next() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    watch.judge(look("a", 100))
    watch.judge(look("a", 200, {150}))
    assert watch.catalog == Catalog(digest="a", lsn=Lsn(100))
    watch.judge(look("a", 300, {80}))
    assert watch.catalog == Catalog(digest="a", lsn=Lsn(90))


def test_a_log_that_never_saw_the_catalog_proves_nothing_from_its_end_on() -> None:
    assert span(SchemaWatch(None, Lsn(95)).judge(look("a", 100))) == (95, 110)
    assert SchemaWatch(None, Lsn(95)).judge(look(None, 100)) is None


def test_triggers_that_come_or_go_leave_a_span_that_nobody_watched() -> None:
    watch = SchemaWatch(KNOWN, Lsn(95))
    assert watch.judge(look("a", 100)) is None
    came, stayed = watch.judge(look(None, 200)), watch.judge(look(None, 300))
    went = watch.judge(look("a", 400))
    assert (span(came), stayed, span(went)) == ((100, 210), None, (300, 410))
    assert [each.reason for each in (came, went) if each] == [schema_watch.CAPTURE_BEGAN, schema_watch.CAPTURE_ENDED]
