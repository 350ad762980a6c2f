"""The assembler on streams written by hand: what commits comes out, once, in commit order, decoded as it was meant."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest

from archiver.errors import IntegrityError
from archiver.format import pgoutput as p
from archiver.format.journal import Entry
from archiver.lsn import Lsn
from archiver.policy.transactions import SourceTransaction, TransactionAssembler, Truncated
from tests.pgoutput_encoder import encode
from tests.unit.frames import JOURNAL, journal_row

START = datetime(2025, 1, 1, tzinfo=UTC)
V1 = p.Relation(10, "public", "t", "d", (p.Column("id", 23, -1, True),))
V2 = p.Relation(10, "public", "t", "d", (*V1.columns, p.Column("more", 25, -1, False)))
OTHER = p.Relation(11, "public", "other", "d", V1.columns)


def at(lsn: int) -> datetime:
    return START + timedelta(seconds=lsn)


def begin(lsn: int, xid: int = 1) -> bytes:
    return encode(p.Begin(Lsn(lsn), at(lsn), xid))


def commit(lsn: int) -> bytes:
    return encode(p.Commit(Lsn(lsn - 1), Lsn(lsn), at(lsn)))


def insert(*values: bytes, relation: int = 10, xid: int | None = None) -> bytes:
    return encode(p.Insert(relation, values, 0), xid=xid)


def described(relation: p.Relation, xid: int | None = None) -> bytes:
    return encode(relation, xid=xid)


def start(xid: int, *, first: bool = True) -> bytes:
    return encode(p.StreamStart(xid, first))


def stream_commit(xid: int, lsn: int) -> bytes:
    return encode(p.StreamCommit(xid, Lsn(lsn - 1), Lsn(lsn), at(lsn)))


def abort(xid: int, subxid: int) -> bytes:
    return encode(p.StreamAbort(xid, subxid, None, None))


STOP = encode(p.StreamStop())


class Spools:
    """Files in memory, counted."""

    def __init__(self) -> None:
        self.files: list[io.BytesIO] = []

    def __call__(self) -> io.BytesIO:
        self.files.append(io.BytesIO())
        return self.files[-1]


def assembler(after: int = 0, **options: object) -> TransactionAssembler:
    return TransactionAssembler(after=Lsn(after), **({"spool": Spools()} | options))  # type: ignore[arg-type]


def feed(to: TransactionAssembler, *messages: bytes) -> list[SourceTransaction]:
    return [transaction for message in messages if (transaction := to.feed(message))]


def rows(transaction: SourceTransaction) -> list[p.Row]:
    return [change.new for _, change in transaction.changes() if isinstance(change, p.Insert)]


def test_a_transaction_comes_out_at_its_commit() -> None:
    stream = assembler()
    assert feed(stream, begin(100, xid=7), described(V1), insert(b"1"), insert(b"2")) == []
    (transaction,) = feed(stream, commit(100))
    assert (transaction.xid, transaction.commit_lsn, transaction.end_lsn, transaction.time) == (7, 99, 100, at(100))
    assert [relation for relation, _ in transaction.changes()] == [V1, V1]
    assert rows(transaction) == [(b"1",), (b"2",)]


def test_transactions_come_in_commit_order_though_their_blocks_interleave() -> None:
    stream = assembler()
    out = feed(
        stream,
        *(start(1), described(V1, 1), insert(b"1a", xid=1), STOP),
        *(start(2), described(V1, 2), insert(b"2a", xid=2), STOP),
        *(start(1, first=False), insert(b"1b", xid=1), STOP),
        *(begin(50, 3), described(V1), insert(b"3"), commit(50)),
        stream_commit(2, 60),
        stream_commit(1, 70),
    )
    assert [(each.xid, rows(each)) for each in out] == [(3, [(b"3",)]), (2, [(b"2a",)]), (1, [(b"1a",), (b"1b",)])]


def test_what_is_restored_already_does_not_come_again() -> None:
    stream = assembler(after=100)
    out = feed(
        stream, *(begin(100), described(V1), insert(b"1"), commit(100)), *(begin(101), insert(b"2"), commit(101))
    )
    assert [rows(each) for each in out] == [[(b"2",)]]
    assert feed(stream, begin(101), insert(b"2"), commit(101)) == []


def test_the_stream_is_done_at_the_first_commit_beyond_the_stop() -> None:
    stream = assembler(stop=Lsn(100))
    assert len(feed(stream, begin(100), commit(100))) == 1
    assert not stream.done
    assert feed(stream, begin(101), commit(101), begin(90), commit(90)) == []
    assert stream.done


def test_a_new_session_drops_what_was_open() -> None:
    stream = assembler()
    feed(stream, start(1), described(V1, 1), insert(b"old", xid=1), STOP, begin(50), insert(b"cut"))
    stream.start_session()
    assert stream.oldest_open() is None
    (again,) = feed(stream, start(1), described(V1, 1), insert(b"new", xid=1), STOP, stream_commit(1, 60))
    assert rows(again) == [(b"new",)]


def test_a_transaction_without_its_commit_is_dropped_by_the_next_begin() -> None:
    stream = assembler()
    (one,) = feed(stream, begin(50), described(V1), insert(b"cut"), begin(50), described(V1), insert(b"1"), commit(50))
    assert rows(one) == [(b"1",)]


def test_a_first_block_replaces_what_there_was_of_its_transaction() -> None:
    stream = assembler()
    feed(stream, start(1), described(V1, 1), insert(b"old", xid=1), STOP)
    (one,) = feed(stream, start(1), described(V1, 1), insert(b"new", xid=1), STOP, stream_commit(1, 60))
    assert rows(one) == [(b"new",)]


def test_an_aborted_subtransaction_takes_its_rows_and_relations_with_it() -> None:
    stream = assembler()
    (one,) = feed(
        stream,
        *(start(1), described(V1, 1), insert(b"1", xid=1), described(V2, 2), insert(b"2", b"x", xid=2), STOP),
        abort(1, 2),
        *(start(1, first=False), described(V1, 1), insert(b"3", xid=1), STOP),
        stream_commit(1, 60),
    )
    assert rows(one) == [(b"1",), (b"3",)]
    (two,) = feed(stream, begin(70), insert(b"4"), commit(70))
    assert [relation for relation, _ in two.changes()] == [V1]


def test_an_aborted_transaction_leaves_nothing() -> None:
    stream = assembler()
    assert feed(stream, start(1), described(V2, 1), insert(b"1", b"x", xid=1), STOP, abort(1, 1)) == []
    assert stream.oldest_open() is None
    with pytest.raises(IntegrityError, match="never described"):
        rows(feed(stream, begin(50), insert(b"1"), commit(50))[0])


def test_others_see_a_streamed_relation_only_after_its_commit() -> None:
    stream = assembler()
    stream.preamble(0, described(V1))
    before, streamed, after = feed(
        stream,
        *(start(1), described(V2, 1), insert(b"1", b"x", xid=1), STOP),
        *(begin(50), insert(b"2"), commit(50)),
        stream_commit(1, 60),
        *(begin(70), insert(b"3", b"y"), commit(70)),
    )
    # In any order: an emitted transaction keeps the relations of its time.
    assert [rows(each) for each in (after, before, streamed)] == [[(b"3", b"y")], [(b"2",)], [(b"1", b"x")]]


def test_a_younger_relation_is_not_replaced_by_an_older_one_that_commits_later() -> None:
    stream = assembler()
    out = feed(
        stream,
        *(start(1), described(V1, 1), insert(b"1", xid=1), STOP),
        *(begin(50), described(V2), insert(b"2", b"x"), commit(50)),
        stream_commit(1, 60),
        *(begin(70), insert(b"3", b"y"), commit(70)),
    )
    assert [len(rows(each)[0]) for each in out] == [2, 1, 2]


def test_a_relation_that_changes_within_a_transaction_counts_from_there_on() -> None:
    stream = assembler()
    stream.preamble(0, described(V1))
    feed(stream, begin(50), insert(b"1"), described(V2), insert(b"2", b"x"))
    stream.begin_segment(1)
    stream.context(0)
    stream.preamble(0, described(V2))
    (one,) = feed(stream, insert(b"3", b"y"), commit(50))
    assert rows(one) == [(b"1",), (b"2", b"x"), (b"3", b"y")]


def test_a_segment_that_opens_within_a_streamed_block_goes_on_with_it() -> None:
    stream = assembler()
    feed(stream, start(1), described(V1, 1), insert(b"1", xid=1))
    stream.begin_segment(1)
    stream.context(1)
    stream.preamble(1, described(V1, 1))
    (one,) = feed(stream, insert(b"2", xid=1), STOP, stream_commit(1, 60))
    assert rows(one) == [(b"1",), (b"2",)]


def test_a_segment_that_goes_on_with_another_transaction_is_refused() -> None:
    stream = assembler()
    feed(stream, start(1))
    with pytest.raises(IntegrityError, match="goes on with transaction 2"):
        stream.context(2)


def test_behind_the_stop_segments_say_nothing() -> None:
    """They are read for their sequences, where none were read before."""
    stream = assembler(stop=Lsn(10))
    assert feed(stream, begin(20), insert(b"1"), commit(20)) == []
    assert stream.done
    stream.begin_segment(2)
    stream.context(5)
    stream.preamble(5, described(V1, 5))
    stream.begin_segment(3)
    stream.context(0)


def test_the_rest_of_a_transaction_that_is_restored_already_is_passed_over() -> None:
    stream = assembler(after=60)
    stream.context(0)
    assert feed(stream, insert(b"9"), described(V1), insert(b"9"), commit(50)) == []
    stream = assembler(after=60)
    stream.context(1)
    stream.preamble(1, described(V1, 1))
    assert feed(stream, insert(b"9", xid=1), STOP, start(1, first=False), STOP, stream_commit(1, 60)) == []
    assert rows(feed(stream, begin(70), insert(b"1"), commit(70))[0]) == [(b"1",)]


def test_a_needed_transaction_whose_beginning_was_not_read_is_an_error() -> None:
    for stream_of in ([insert(b"9"), commit(70)], [start(1, first=False), STOP, stream_commit(1, 70)], [commit(70)]):
        with pytest.raises(IntegrityError, match="began before the first change segment"):
            feed(assembler(after=60), *stream_of)


def test_a_restore_resumes_at_the_segment_where_the_oldest_open_transaction_began() -> None:
    stream = assembler()
    stream.begin_segment(3)
    feed(stream, start(1), STOP)
    stream.begin_segment(5)
    (small,) = feed(stream, begin(50), commit(50))
    assert stream.oldest_open() == small.resume_segment == 3
    (large,) = feed(stream, stream_commit(1, 60))
    assert stream.oldest_open() is None
    assert large.resume_segment == 5


def test_beyond_its_memory_a_transaction_goes_to_a_file() -> None:
    spools = Spools()
    stream = assembler(spool=spools, memory=10_000)
    values = [(b"%d" % number * 50,) for number in range(3000)]
    feed(stream, start(1), described(V1, 1), *(insert(*row, xid=1) for row in values), STOP)
    feed(stream, start(2), described(V1, 2), insert(b"small", xid=2), STOP)
    assert len(spools.files) == 1
    small, large = feed(stream, stream_commit(2, 50), stream_commit(1, 60))
    assert rows(large) == values
    assert rows(large) == values
    large.close()
    assert spools.files[0].closed
    assert rows(small) == [(b"small",)]


def test_a_spool_file_that_was_cut_short_is_an_error() -> None:
    spools = Spools()
    stream = assembler(spool=spools, memory=0)
    (one,) = feed(stream, begin(50), described(V1), insert(b"1"), commit(50))
    spools.files[0].truncate(spools.files[0].getbuffer().nbytes - 1)
    with pytest.raises(IntegrityError, match="spool file"):
        rows(one)


def test_truncate_names_its_relations_and_entries_of_the_journal_come_in_their_place() -> None:
    row = journal_row("ddl", {"tag": "x", "lsn": "0/5"})
    delete = p.Delete(JOURNAL.id, row, True, 0)
    (one,) = feed(
        assembler(),
        *(begin(50), described(V1), described(OTHER), described(JOURNAL), insert(b"1")),
        *(encode(p.Insert(JOURNAL.id, row, 0)), encode(delete)),
        *(encode(p.Truncate((10, 11, JOURNAL.id), True, False)), commit(50)),
    )
    found = Entry("2f0c", "ddl", Lsn(5), {"tag": "x", "lsn": "0/5"})
    assert [change for _, change in one.changes()][1:] == [found, Truncated((V1, OTHER), False)]
    assert list(one.entries()) == [found]


def test_entries_of_a_streamed_transaction_are_found_without_what_was_rolled_back() -> None:
    kept, undone = (
        encode(p.Insert(JOURNAL.id, journal_row(kind, {}), 0), xid=xid) for kind, xid in (("lost", 2), ("ddl", 3))
    )
    frames = [start(2), encode(JOURNAL, xid=2), kept, undone, STOP, encode(p.StreamAbort(2, 3, None, None))]
    (one,) = feed(assembler(), *frames, stream_commit(2, 60))
    assert [entry.kind for entry in one.entries()] == ["lost"]


def test_logical_messages_are_part_of_no_transaction() -> None:
    loose, said = p.LogicalMessage(False, Lsn(5), "x", b"y"), p.LogicalMessage(True, Lsn(5), "archiver.ddl", b"{}")
    stream = assembler()
    (one,) = feed(stream, encode(loose), begin(50), encode(said), commit(50), encode(loose))
    (two,) = feed(stream, start(2), encode(said, xid=2), STOP, stream_commit(2, 60))
    assert [*one.changes(), *two.changes()] == []


def test_a_row_that_does_not_fit_its_relation_is_refused() -> None:
    (one,) = feed(assembler(), begin(50), described(V1), insert(b"1", b"2"), commit(50))
    with pytest.raises(IntegrityError, match="does not have the 1 columns"):
        rows(one)


@pytest.mark.parametrize("message", [b"", b"\x01", begin(50), commit(50), start(2), stream_commit(1, 50), b"b"])
def test_what_cannot_stand_in_a_streamed_block_is_refused(message: bytes) -> None:
    stream = assembler()
    feed(stream, start(1))
    with pytest.raises(IntegrityError):
        stream.feed(message)


def test_origins_and_types_are_passed_over() -> None:
    origin, named = encode(p.Origin(Lsn(1), "node")), encode(p.Type(99, "public", "mood"))
    (one,) = feed(assembler(), begin(50), origin, named, commit(50))
    assert list(one.changes()) == []
