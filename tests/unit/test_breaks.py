"""When a transaction that the server cannot send is left out, and when it is only waited for."""

from __future__ import annotations

import pytest

from archiver.errors import StreamBroken
from archiver.lsn import Lsn
from archiver.policy.breaks import TRIES, Breaks, LeftOut, Sending
from archiver.policy.stream import ChangeStream
from tests.unit.frames import TABLE, begin, block, commit, described, insert, keepalive, stream_commit

LARGE = StreamBroken("a value is too large", state="54000", lasting=True)
NO_MEMORY = StreamBroken("out of memory", state="53200", lasting=False)
ONE, OTHER = Sending(7, Lsn(200)), Sending(8, Lsn(300))


def after(*broken: tuple[StreamBroken, Sending | None], skip: int | None = None) -> Breaks:
    breaks = Breaks(skip)
    for error, sending in broken:
        breaks.observe(error, sending, Lsn(100))
    return breaks


def test_a_transaction_is_left_out_when_the_stream_broke_in_it_often_enough_in_a_row() -> None:
    assert after(*[(LARGE, ONE)] * (TRIES - 1)).left_out is None
    assert after(*[(LARGE, ONE)] * (TRIES - 1), (LARGE, OTHER), (LARGE, ONE)).left_out is None
    assert after(*[(LARGE, ONE)] * TRIES).left_out == LeftOut(7, Lsn(201), "54000")


@pytest.mark.parametrize(
    ("error", "sending"),
    [(NO_MEMORY, ONE), (LARGE, None), (LARGE, Sending(7))],
    ids=["it may pass", "nobody knows in which", "it is not committed yet"],
)
def test_nothing_is_left_out_by_itself_when_that_might_lose_what_could_be_had(
    error: StreamBroken, sending: Sending | None
) -> None:
    assert after(*[(error, sending)] * 50).left_out is None


def test_the_one_that_the_operator_names_is_left_out_at_once_and_no_other() -> None:
    assert after((NO_MEMORY, ONE), skip=7).left_out == LeftOut(7, Lsn(201), "53200")
    assert after((NO_MEMORY, OTHER), skip=7).left_out is None


def test_breaks_are_forgotten_once_the_stream_came_past_the_transaction() -> None:
    breaks = after((LARGE, ONE), (LARGE, ONE))
    breaks.passed(Lsn(200))
    assert breaks.times_in_one() == 2
    breaks.passed(Lsn(201))
    assert (breaks.times, breaks.sending) == (0, None)


def test_breaks_outside_of_transactions_are_counted_until_something_comes() -> None:
    breaks = after(*[(LARGE, None)] * 4)
    breaks.passed(Lsn(100))
    assert (breaks.times, breaks.times_in_one()) == (4, 0)
    breaks.passed(Lsn(101))
    assert breaks.times == 0


def test_the_stream_knows_which_transaction_it_is_in() -> None:
    stream = ChangeStream(Lsn(100), 1)
    assert stream.sending is None
    stream.feed([begin(202, xid=7), described(TABLE)])
    assert stream.sending == Sending(7, Lsn(200))
    stream.feed([insert(b"1"), commit(202), keepalive(210)])
    assert stream.sending is None
    started, row, stopped = block(9, insert(b"2", xid=9))
    stream.feed([started, row])
    assert stream.sending == Sending(9)
    stream.feed([stopped, stream_commit(9, 300)])
    assert stream.sending is None
