"""The capture side of the stream, fed frames written by hand: every segment can be read by itself, whatever cuts it.

The frames are CopyData payloads as a walsender sends them; the segments are read back as a restore reads them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import PostgresError
from archiver.format import pgoutput as p
from archiver.format import segment
from archiver.format.segment import Context, Record, Relation
from archiver.lsn import Lsn
from archiver.policy.cut import Cut
from archiver.policy.stream import ChangeStream
from archiver.policy.transactions import TransactionAssembler
from tests.pgoutput_encoder import encode
from tests.unit.frames import (
    JOURNAL,
    MOOD,
    OTHER,
    TABLE,
    WIDER,
    at,
    begin,
    block,
    commit,
    described,
    entry,
    insert,
    keepalive,
    message,
    stream_abort,
    stream_commit,
    truncate,
    wal,
)


def stream(*frames: bytes) -> ChangeStream:
    stream = ChangeStream(Lsn(100), 1, JOURNAL.id)
    stream.feed(frames)
    return stream


def records(cut: Cut) -> list[Record]:
    return list(segment.read_records([bytes(cut.body)]))


def payloads(*frames: bytes) -> list[bytes]:
    return [frame[25:] for frame in frames]


def replayed(cuts: Iterable[Cut], after: int = 100) -> list[tuple[int, list[bytes]]]:
    """What a restore makes of the segments: the xid of each transaction, and the values it inserted."""
    assembler = TransactionAssembler(after=Lsn(after), spool=io.BytesIO)
    found = []
    for cut in (cut for cut in cuts if cut.messages):  # others are not stored
        assembler.begin_segment(cut.ordinal)
        for record in records(cut):
            match record:
                case Relation(xid, description):
                    assembler.preamble(xid, description)
                case Context(xid):
                    assembler.context(xid)
                case bytes():
                    transaction = assembler.feed(record)
                    if transaction is not None:
                        rows = [change.new[0] for _, change in transaction.changes() if isinstance(change, p.Insert)]
                        found.append((transaction.xid, rows))
    return found  # type: ignore[return-value]


# --- whole and in pieces ---

TRANSACTION = [begin(200), described(TABLE), insert(b"1"), insert(b"2"), commit(200)]
MIXED = [
    *TRANSACTION,
    keepalive(210),
    *block(7, described(TABLE, 7), insert(b"3", xid=7), first=True),
    begin(220, 2),
    insert(b"4"),
    commit(220),
    *block(7, insert(b"5", xid=7)),
    keepalive(225),
    stream_commit(7, 230),
    message("x", b"loose", 240, transactional=False),
]


def test_messages_are_kept_verbatim_without_their_transport() -> None:
    assert records(stream(*TRANSACTION).cut()) == payloads(*TRANSACTION)


def test_a_segment_says_what_it_holds() -> None:
    cut = stream(*MIXED).cut()
    assert (cut.ordinal, cut.start, cut.end) == (1, 100, 230)
    assert (cut.messages, cut.commits) == (len(MIXED) - 3, 3)
    assert (cut.first_commit_time, cut.max_commit_time) == (at(200), at(230))
    last = cut.last_commit
    assert last is not None
    assert (last.xid, last.lsn, last.end_lsn, last.time) == (7, 228, 230, at(230))
    assert cut.open_from is None


@given(st.lists(st.integers(0, len(MIXED)), max_size=6).map(sorted))
def test_frames_that_arrive_in_pieces_make_the_same_segment(borders: list[int]) -> None:
    whole, pieces = stream(*MIXED), ChangeStream(Lsn(100), 1, JOURNAL.id)
    edges = [0, *borders, len(MIXED)]
    for start, end in pairwise(edges):
        pieces.feed(MIXED[start:end])
    assert pieces.take_counts() == whole.take_counts()
    assert pieces.cut() == whole.cut()


@given(st.lists(st.integers(1, len(MIXED) - 1), max_size=6, unique=True).map(sorted))
def test_wherever_segments_are_cut_a_restore_reads_the_same_transactions(borders: list[int]) -> None:
    edges = [0, *borders, len(MIXED)]
    feeding, cuts = ChangeStream(Lsn(100), 1, JOURNAL.id), []
    for start, end in pairwise(edges):
        feeding.feed(MIXED[start:end])
        cuts.append(feeding.cut())
    assert replayed(cuts) == [(1, [b"1", b"2"]), (2, [b"4"]), (7, [b"3", b"5"])]
    assert [cut.start for cut in cuts[1:]] == [cut.end for cut in cuts[:-1]]
    assert [cut.ordinal for cut in cuts] == list(range(1, len(cuts) + 1))


def test_counts_are_of_what_came_since_they_were_taken() -> None:
    feeding = stream(*TRANSACTION)
    assert feeding.take_counts() == (5, 1, sum(map(len, TRANSACTION)))
    assert feeding.take_counts() == (0, 0, 0)
    feeding.feed([keepalive(300)])
    assert feeding.take_counts() == (0, 0, 18)


def test_a_segment_in_which_nothing_came_is_empty() -> None:
    feeding = stream(keepalive(150))
    cut = feeding.cut()
    assert (cut.messages, cut.body, cut.end, cut.last_commit, cut.first_commit_time) == (0, b"", 150, None, None)
    assert feeding.size == 0
    assert feeding.cut().start == 150


def test_commit_times_that_step_back_leave_the_latest_as_the_latest() -> None:
    frames = [begin(200), commit(200, time=500), begin(210), commit(210, time=300)]
    cut = stream(*frames).cut()
    assert (cut.first_commit_time, cut.max_commit_time) == (at(500), at(500))
    assert cut.last_commit is not None
    assert cut.last_commit.time == at(300)


# --- relations ---


def test_a_relation_is_repeated_once_in_a_later_segment_before_the_row_that_needs_it() -> None:
    feeding = stream(*TRANSACTION)
    feeding.cut()
    rows = [begin(210), insert(b"3"), insert(b"4"), commit(210)]
    feeding.feed(rows)
    first, *rest = payloads(*rows)
    assert records(feeding.cut()) == [first, Relation(0, described(TABLE)[25:]), *rest]


def test_only_relations_that_are_needed_are_repeated() -> None:
    feeding = stream(begin(200), described(TABLE), described(OTHER), insert(b"1"), commit(200))
    feeding.cut()
    feeding.feed([begin(210), insert(b"2", relation=11), commit(210)])
    repeated = [record for record in records(feeding.cut()) if isinstance(record, Relation)]
    assert repeated == [Relation(0, described(OTHER)[25:])]


def test_a_relation_that_the_server_sends_again_is_not_repeated_as_well() -> None:
    feeding = stream(*TRANSACTION)
    feeding.cut()
    feeding.feed([begin(210), described(WIDER), insert(b"2"), commit(210)])
    assert not any(isinstance(record, Relation) for record in records(feeding.cut()))


def test_the_newest_description_is_the_one_that_is_repeated() -> None:
    feeding = stream(*TRANSACTION, begin(210), described(WIDER), insert(b"3"), commit(210))
    feeding.cut()
    feeding.feed([begin(220), insert(b"4"), commit(220)])
    assert Relation(0, described(WIDER)[25:]) in records(feeding.cut())


def test_type_messages_travel_with_the_relation_that_they_came_before() -> None:
    feeding = stream(begin(200), described(MOOD), described(TABLE), described(OTHER), insert(b"1"), commit(200))
    feeding.cut()
    feeding.feed([begin(210), insert(b"2"), insert(b"3", relation=11), commit(210)])
    repeated = [record for record in records(feeding.cut()) if isinstance(record, Relation)]
    assert repeated == [Relation(0, described(each)[25:]) for each in (MOOD, TABLE, OTHER)]


def test_a_table_counts_as_described_once_its_transaction_is_whole() -> None:
    """CREATE TABLE AS says that it made the table after its rows, which may fill several segments."""
    feeding = stream(begin(200), described(TABLE), insert(b"1"))
    assert feeding.cut().described == set()
    feeding.feed([insert(b"2"), commit(200)])
    assert feeding.cut().described == {described(TABLE)[25:]}
    assert feeding.cut().described == set()


def test_a_truncate_brings_the_relations_of_all_its_tables() -> None:
    feeding = stream(begin(200), described(TABLE), described(OTHER), commit(200))
    feeding.cut()
    feeding.feed([begin(210), truncate(10, 11), commit(210)])
    kinds = [record.message[:1] for record in records(feeding.cut()) if isinstance(record, Relation)]
    assert kinds == [b"R", b"R"]


def test_a_row_that_the_server_never_described_is_an_error() -> None:
    with pytest.raises(PostgresError, match="did not describe"):
        stream(begin(200), insert(b"1"))


def test_a_streamed_transaction_has_descriptions_of_its_own() -> None:
    """One that only it has seen is repeated as its own, in the form of a streamed message."""
    feeding = stream(*TRANSACTION, *block(7, described(WIDER, 7), insert(b"3", xid=7), first=True))
    feeding.cut()
    feeding.feed([*block(7, insert(b"4", xid=7)), begin(210), insert(b"5"), commit(210)])
    repeated = [record for record in records(feeding.cut()) if isinstance(record, Relation)]
    assert repeated == [Relation(7, described(WIDER, 7)[25:]), Relation(0, described(TABLE)[25:])]


def test_what_a_streamed_transaction_described_counts_for_all_once_it_commits() -> None:
    feeding = stream(*TRANSACTION, *block(7, described(MOOD, 7), described(WIDER, 7), insert(b"3", xid=7), first=True))
    feeding.feed([stream_commit(7, 210)])
    feeding.cut()
    feeding.feed([begin(220), insert(b"4"), commit(220)])
    repeated = [record for record in records(feeding.cut()) if isinstance(record, Relation)]
    assert repeated == [Relation(0, described(each)[25:]) for each in (MOOD, WIDER)]


def test_what_a_streamed_transaction_described_is_forgotten_when_it_aborts() -> None:
    feeding = stream(*TRANSACTION, *block(7, described(WIDER, 7), insert(b"3", xid=7), first=True))
    feeding.feed([stream_abort(7, 7)])
    feeding.cut()
    feeding.feed([begin(220), insert(b"4"), commit(220)])
    assert Relation(0, described(TABLE)[25:]) in records(feeding.cut())


# --- cuts inside a transaction ---


def test_a_segment_that_begins_inside_a_plain_transaction_says_so_first() -> None:
    feeding = stream(begin(200), described(TABLE), insert(b"1"))
    first = feeding.cut()
    feeding.feed([insert(b"2"), commit(200)])
    second = feeding.cut()
    assert records(second)[0] == Context(0)
    assert (first.open_from, first.end, second.open_from) == (1, 100, None)
    assert replayed([first, second]) == [(1, [b"1", b"2"])]


def test_a_segment_that_begins_inside_a_streamed_block_names_its_transaction() -> None:
    feeding = stream(*block(7, described(TABLE, 7), insert(b"1", xid=7), first=True)[:-1])
    first = feeding.cut()
    feeding.feed([insert(b"2", xid=7), wal(encode(p.StreamStop())), stream_commit(7, 300)])
    second = feeding.cut()
    assert records(second)[:2] == [Context(7), Relation(7, described(TABLE, 7)[25:])]
    assert first.open_from == 1
    assert replayed([first, second]) == [(7, [b"1", b"2"])]


def test_a_segment_that_begins_between_streamed_blocks_needs_no_context() -> None:
    feeding = stream(*block(7, described(TABLE, 7), insert(b"1", xid=7), first=True))
    first = feeding.cut()
    feeding.feed(block(7, insert(b"2", xid=7)))
    assert not any(isinstance(record, Context) for record in records(feeding.cut()))
    assert first.open_from == 1


def test_open_from_is_the_segment_of_the_oldest_transaction_that_is_open() -> None:
    feeding = stream(*block(7, described(TABLE, 7), first=True))
    assert feeding.cut().open_from == 1
    feeding.feed(block(8, described(TABLE, 8), first=True))
    assert feeding.cut().open_from == 1
    feeding.feed([stream_commit(7, 300)])
    assert feeding.cut().open_from == 2
    feeding.feed([stream_abort(8, 9)])
    assert feeding.cut().open_from == 2, "only a subtransaction ended"
    feeding.feed([stream_abort(8, 8)])
    assert feeding.cut().open_from is None


# --- the position ---


def test_a_keepalive_moves_the_position_outside_of_a_transaction_only() -> None:
    feeding = stream(keepalive(150))
    assert feeding.position == 150
    feeding.feed([begin(200), keepalive(190)])
    assert feeding.position == 150, "a commit below 190 may still come"
    feeding.feed([commit(200), keepalive(210)])
    assert feeding.position == 210


def test_the_position_never_goes_back() -> None:
    feeding = stream(keepalive(300), keepalive(200))
    feeding.feed([begin(250), commit(250)])
    assert feeding.position == 300


def test_a_streamed_commit_moves_the_position_and_an_abort_does_not() -> None:
    feeding = stream(*block(7, first=True), *block(8, first=True), stream_abort(8, 8))
    assert feeding.position == 100
    feeding.feed([stream_commit(7, 300)])
    assert feeding.position == 300
    cut = feeding.cut()
    assert (cut.commits, cut.last_commit and cut.last_commit.xid) == (1, 7)


# --- restore points and what else may come ---


def point(name: str, lsn: str, xid: int | None = None) -> bytes:
    return entry("point", {"name": name, "at": lsn, "lsn": lsn}, xid)


def lost(reason: str, xid: int | None = None) -> bytes:
    return entry("lost", {"reason": reason, "what": "CREATE TABLE", "lsn": "0/1"}, xid)


def test_a_restore_point_is_noted_with_its_lsn_and_the_time_of_its_commit() -> None:
    frames = [described(JOURNAL), begin(200), point("vor Öffnung", "0/BE"), commit(200)]
    [(found, time)] = stream(*frames).cut().points
    assert (found.name, found.lsn, time) == ("vor Öffnung", 190, at(200))


def test_logical_messages_are_dropped_whoever_wrote_them() -> None:
    said = [message("archiver.restore_point", b"x", 190), message("app", b"y" * 1000, 191)]
    loose = message("archiver.ddl_lost", b"loose", 210, transactional=False)
    cut = stream(begin(200), *said, commit(200), loose).cut()
    assert (cut.points, cut.lost, cut.messages) == ([], [], 2)
    assert records(cut) == payloads(begin(200), commit(200))


def test_a_journal_that_is_not_archivers_own_says_nothing() -> None:
    feeding = ChangeStream(Lsn(100), 1, JOURNAL.id)
    feeding.journal = None
    feeding.feed([described(JOURNAL), begin(200), lost("failed"), point("forged", "0/BE"), commit(200)])
    cut = feeding.cut()
    assert (cut.points, cut.lost) == ([], [])
    assert records(cut) == payloads(described(JOURNAL), begin(200), commit(200))


def test_what_stands_in_another_journal_than_ours_is_not_believed_and_is_a_loss() -> None:
    """As after a table of that name was replaced: what came through the slot before was somebody else's to write."""
    feeding = ChangeStream(Lsn(100), 1, JOURNAL.id + 1)
    forged = [entry("ddl", {"tag": "DROP TABLE"}), point("forged", "0/BE"), lost("failed")]
    feeding.feed([described(JOURNAL), begin(200), *forged, commit(200)])
    cut = feeding.cut()
    assert (cut.points, [(each.lsn, each.reason) for each in cut.lost]) == ([], [(200, "unreadable")])
    assert records(cut) == payloads(described(JOURNAL), begin(200), commit(200))


def test_of_archivers_own_tables_only_what_is_written_into_the_journal_is_kept() -> None:
    other = replace(JOURNAL, id=91, name="other")
    delete = wal(encode(p.Delete(JOURNAL.id, (b"2f0c", None, None, None, None), False, 0)))
    frames = [
        begin(200),
        described(JOURNAL),
        described(other),
        entry("text", {"source": "x"}),
        delete,
        insert(b"1", 91),
    ]
    cut = stream(*frames, commit(200)).cut()
    assert records(cut) == payloads(*frames[:4], commit(200))
    assert cut.described == set()


def test_each_segment_describes_the_journal_before_its_first_row_and_once() -> None:
    feeding = stream(described(JOURNAL), begin(200), lost("failed"), commit(200))
    feeding.cut()
    feeding.feed([begin(300), lost("failed"), lost("moment"), commit(300)])
    cut = feeding.cut()
    kinds = [type(record).__name__ for record in records(cut)]
    assert kinds == ["bytes", "Relation", "bytes", "bytes", "bytes"]
    assert [(each.lsn, each.reason) for each in cut.lost] == [(300, "failed"), (300, "moment")]


def test_the_journal_is_described_for_each_transaction_that_writes_it() -> None:
    """One that is streamed describes it for itself alone: a segment opened there must be readable."""
    feeding = stream(described(JOURNAL), begin(200), lost("failed"), commit(200))
    feeding.cut()
    feeding.feed(
        [*block(7, described(JOURNAL, 7), lost("rows", 7), first=True), begin(300), lost("moment"), commit(300)]
    )
    feeding.feed([stream_commit(7, 400), begin(500), lost("keyless"), commit(500)])
    transactions = replayed_entries([feeding.cut()])
    assert transactions == [(300, ["moment"]), (400, ["rows"]), (500, ["keyless"])]


def replayed_entries(cuts: list[Cut]) -> list[tuple[int, list[str]]]:
    """What a restore that begins with these segments reads of the journal."""
    assembler = TransactionAssembler(after=Lsn(0), spool=io.BytesIO)
    found = []
    for cut in cuts:
        assembler.begin_segment(cut.ordinal)
        for record in records(cut):
            match record:
                case Relation(xid, message):
                    assembler.preamble(xid, message)
                case Context(xid):
                    assembler.context(xid)
                case bytes() if (transaction := assembler.feed(record)) is not None:
                    found.append((transaction.end_lsn, [entry.said["reason"] for entry in transaction.entries()]))
    return found


def test_a_transaction_without_end_of_losses_is_told_once_for_each_reason() -> None:
    cut = stream(described(JOURNAL), begin(200), *[lost("failed")] * 1000, lost("moment"), commit(200)).cut()
    assert [each.reason for each in cut.lost] == ["failed", "moment"]


@pytest.mark.parametrize("said", ["not JSON", "[]", "{}", {"reason": "my password is hunter2"}, {"reason": 7}])
def test_a_loss_that_cannot_be_read_is_one_all_the_same_and_shows_no_text(said: Any) -> None:
    [found] = stream(described(JOURNAL), begin(200), entry("lost", said), commit(200)).cut().lost
    assert found.reason == "unreadable"


@pytest.mark.parametrize("name", ["", "x" * 64, "ä" * 32, "\x1b[2J", "a\nb", 7])
def test_a_restore_point_that_no_reader_would_accept_is_none(name: Any) -> None:
    cut = stream(described(JOURNAL), begin(200), point(name, "0/BE"), commit(200)).cut()
    assert cut.points == []
    assert [each.reason for each in cut.lost] == ["unreadable"]


def test_what_a_streamed_transaction_lost_counts_from_its_commit_unless_it_was_rolled_back() -> None:
    frames = [*block(7, described(JOURNAL, 7), lost("rows", 7), lost("failed", 70), lost("moment", 71), first=True)]
    frames += [*block(8, described(JOURNAL, 8), lost("failed", 8), first=True), stream_abort(7, 70), stream_abort(8, 8)]
    feeding = stream(*frames)
    assert feeding.cut().lost == []
    feeding.feed([stream_commit(7, 300)])
    assert [(each.lsn, each.reason) for each in feeding.cut().lost] == [(300, "rows"), (300, "moment")]


def test_an_origin_is_kept() -> None:
    frames = [begin(200), wal(encode(p.Origin(Lsn(5), "elsewhere"))), commit(200)]
    assert records(stream(*frames).cut()) == payloads(*frames)


ORIGIN = wal(encode(p.Origin(Lsn(5), "elsewhere")))


@pytest.mark.parametrize("cuts", [False, True])
def test_commits_of_another_server_are_told_from_the_sources_also_where_a_segment_ends_between(cuts: bool) -> None:
    chunks = [
        [begin(200), ORIGIN, commit(200), *block(7, ORIGIN, described(OTHER, 7), first=True)],
        [*block(7, described(WIDER, 7)), begin(300), commit(300), *block(8, described(TABLE, 8), first=True)],
        [stream_commit(7, 400), stream_commit(8, 500)],
    ]
    feeding, found = stream(), []
    for frames in chunks:
        feeding.feed(frames)
        if cuts:
            found.append(feeding.cut())
    found = found or [feeding.cut()]
    assert sum(cut.foreign for cut in found) == 2
    last = [cut.last for cut in found if cut.last]
    assert [foreign for *_, foreign in last] == ([True, False, False] if cuts else [False])


@pytest.mark.parametrize(
    ("frame", "why"),
    [(wal(b"?"), "unknown type: '\\?'"), (wal(b"b"), "unknown type: 'b'"), (b"z123", "unknown type: 'z'")],
)
def test_what_was_not_asked_for_is_an_error(frame: bytes, why: str) -> None:
    with pytest.raises(PostgresError, match=why):
        stream(frame)


def test_a_segment_knows_which_tables_committed_transactions_described() -> None:
    frames = [begin(200), described(TABLE), insert(b"1"), commit(200)]
    frames += [
        *block(7, described(OTHER, 7), first=True),
        *block(8, described(WIDER, 8), first=True),
        stream_abort(8, 8),
    ]
    feeding = stream(*frames)
    assert {p.decode(each) for each in feeding.cut().described} == {TABLE}
    feeding.feed([stream_commit(7, 300)])
    assert {p.decode(each) for each in feeding.cut().described} == {OTHER}
    assert feeding.cut().described == set()
