"""Net effects against the plain truth: applying a batch's net effect gives what applying its changes gives."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from archiver.errors import IntegrityError
from archiver.format.pgmessages import UNCHANGED, Column, Delete, Insert, Relation, Row, RowMessage, Update
from archiver.policy.batch import Batch, KeyedNet, MultisetNet, NewRows, Shape, TableBatch

RELATION = Relation(1, "public", "t", "d", tuple(Column(name, 25, -1, name == "k") for name in "kab"))
KEYED = Shape(RELATION, (0,))
BAG = Shape(RELATION, None)


def insert(*row: bytes | None) -> Insert:
    return Insert(1, row, 10)


def update(*new: object, old: Row | None = None, full: bool = False) -> Update:
    return Update(1, old, full, new, 10)  # type: ignore[arg-type]


def delete(*old: bytes | None, full: bool = False) -> Delete:
    return Delete(1, old, full, 10)


def net(*changes: RowMessage) -> dict[object, tuple[str, Row]]:
    merged = KeyedNet(KEYED)
    assert all(merged.add(change) for change in changes)
    return dict(merged.pending)


NEW, OLD = (b"1", b"x", b"y"), (b"1", None, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([insert(*NEW)], ("I", NEW)),
        ([insert(*NEW), update(b"1", b"z", UNCHANGED)], ("I", (b"1", b"z", b"y"))),
        ([insert(*NEW), delete(*OLD)], None),
        ([update(b"1", b"z", UNCHANGED)], ("U", (b"1", b"z", UNCHANGED))),
        ([update(b"1", UNCHANGED, b"q"), update(b"1", b"z", UNCHANGED)], ("U", (b"1", b"z", b"q"))),
        ([update(*NEW), delete(*OLD)], ("D", OLD)),
        ([delete(*OLD)], ("D", OLD)),
        ([delete(*OLD), insert(*NEW)], ("R", NEW)),
        ([delete(*OLD), insert(*NEW), update(b"1", UNCHANGED, b"q")], ("R", (b"1", b"x", b"q"))),
        ([delete(*OLD), insert(*NEW), delete(*OLD)], ("D", OLD)),
    ],
)
def test_later_changes_supersede_earlier_ones(changes: list[RowMessage], expected: tuple[str, Row] | None) -> None:
    assert net(*changes).get(b"1") == expected


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ([insert(*NEW), insert(*NEW)], "inserted twice"),
        ([update(*NEW), insert(*NEW)], "inserted twice"),
        ([delete(*OLD), insert(*NEW), insert(*NEW)], "inserted twice"),
        ([delete(*OLD), update(*NEW)], "a deleted row was updated"),
        ([delete(*OLD), delete(*OLD)], "deleted twice"),
    ],
)
def test_changes_that_contradict_each_other_are_refused(changes: list[RowMessage], what: str) -> None:
    with pytest.raises(IntegrityError, match=what):
        net(*changes)


def test_a_row_that_moves_to_another_key_is_deleted_and_inserted() -> None:
    assert net(update(b"2", b"x", b"y", old=OLD)) == {b"1": ("D", OLD), b"2": ("I", (b"2", b"x", b"y"))}


def test_a_value_that_did_not_travel_moves_with_the_row_if_the_batch_knows_it() -> None:
    moved = update(b"2", b"z", UNCHANGED, old=OLD)
    assert net(insert(*NEW), moved) == {b"2": ("I", (b"2", b"z", b"y"))}
    full = update(b"2", b"z", UNCHANGED, old=NEW, full=True)
    assert net(full) == {b"1": ("D", NEW), b"2": ("I", (b"2", b"z", b"y"))}


def test_a_key_that_is_toasted_and_unchanged_is_no_change_of_key() -> None:
    assert net(update(UNCHANGED, b"z", UNCHANGED, old=OLD)) == {b"1": ("U", (b"1", b"z", UNCHANGED))}


def test_a_move_that_the_batch_cannot_express_stands_between_two_net_effects() -> None:
    batch = TableBatch(KEYED)
    move = update(b"2", b"z", UNCHANGED, old=OLD)
    back = update(b"1", b"z", UNCHANGED, old=(b"2", None, None))
    for change in (update(b"1", b"q", UNCHANGED), insert(b"9", b"", b""), move, back, insert(b"8", b"", b"")):
        batch.changes.append(change)
    first, moves, last = batch.phases()
    assert isinstance(first, KeyedNet)
    assert list(first.pending) == [b"1", b"9"]
    assert moves == [move, back]
    assert isinstance(last, KeyedNet)
    assert list(last.pending) == [b"8"]
    assert len(batch.changes) == 5


def test_inserts_alone_need_no_net_effect() -> None:
    for shape in (KEYED, BAG):
        batch = TableBatch(shape, [insert(*NEW), insert(b"2", b"x", b"y")])
        assert batch.phases() == [NewRows([NEW, (b"2", b"x", b"y")])]


def test_rows_without_a_key_are_counted() -> None:
    bag = MultisetNet(BAG)
    for change in (
        *(insert(b"a", None, None), insert(b"a", None, None), delete(b"b", None, None, full=True)),
        update(b"c", UNCHANGED, b"2", old=(b"a", b"1", b"1"), full=True),
        delete(b"a", None, None, full=True),
    ):
        assert bag.add(change)
    assert bag.delta == {(b"a", None, None): 1, (b"b", None, None): -1, (b"a", b"1", b"1"): -1, (b"c", b"1", b"2"): 1}
    assert len(bag) == 4
    assert sorted(bag.inserted(), key=str) == [(b"a", None, None), (b"c", b"1", b"2")]


@pytest.mark.parametrize("change", [update(*NEW), update(*NEW, old=OLD), delete(*OLD)])
def test_a_table_without_a_key_needs_whole_old_rows(change: RowMessage) -> None:
    with pytest.raises(IntegrityError, match="without the whole old row"):
        MultisetNet(BAG).add(change)


def test_a_batch_is_full_by_rows_or_by_bytes() -> None:
    by_rows = Batch(max_rows=2, max_bytes=1 << 30)
    by_bytes = Batch(max_rows=1000, max_bytes=1000)
    for batch in (by_rows, by_bytes):
        batch.add(KEYED, insert(b"1", b"", b""))
        assert not batch.full
        batch.add(KEYED, delete(*OLD))
    assert by_rows.full
    by_bytes.add(KEYED, Insert(1, NEW, 900))
    assert by_bytes.full
    (table,) = by_bytes.take()
    assert len(table.changes) == 3
    assert (by_bytes.rows, by_bytes.bytes, by_bytes.full) == (0, 0, False)


@pytest.mark.parametrize("seed", range(30))
def test_the_net_effect_is_the_effect(seed: int) -> None:
    generator = random.Random(seed)
    table: dict[bytes, Row] = {b"%d" % k: (b"%d" % k, b"0", b"0") for k in range(10)}
    before, batch = dict(table), TableBatch(KEYED)
    for _ in range(200):
        batch.changes.append(_random_change(generator, table))
    assert _applied(batch, before) == table


def _random_change(generator: random.Random, table: dict[bytes, Row]) -> RowMessage:
    """Make a valid change to `table` and say what pgoutput would say of it."""
    key = b"%d" % generator.randrange(20)
    value = b"%d" % generator.randrange(100)
    if key not in table:
        table[key] = (key, value, value)
        return Insert(1, table[key], 0)
    old: Row = (key, None, None)
    kind = generator.choice("UUUDK")
    if kind == "D":
        del table[key]
        return Delete(1, old, False, 0)
    row = table.pop(key)
    target = b"%d" % generator.randrange(20) if kind == "K" else key
    target = key if target in table else target
    table[target] = (target, value, row[2])
    sent = (target, value, UNCHANGED if generator.random() < 0.5 else row[2])
    return Update(1, old if target != key else None, False, sent, 0)


def _applied(batch: TableBatch, table: dict[bytes, Row]) -> dict[bytes, Row]:
    for phase in batch.phases():
        if isinstance(phase, NewRows):
            table |= {_key(row): row for row in phase.rows}
        elif isinstance(phase, KeyedNet):
            for row in phase.rows("D", "R"):
                del table[_key(row)]
            for row in phase.rows("U"):
                table[_key(row)] = _over(table[_key(row)], row)
            for row in phase.rows("I", "R"):
                assert _key(row) not in table
                table[_key(row)] = row
        elif isinstance(phase, list):
            for change in phase:
                assert isinstance(change, Update)
                assert change.old is not None
                table[_key(change.new)] = _over(table.pop(_key(change.old)), change.new)
    return table


def _key(row: Row) -> bytes:
    assert isinstance(row[0], bytes)
    return row[0]


def _over(old: Row, new: Row) -> Row:
    return tuple(before if value is UNCHANGED else value for before, value in zip(old, new, strict=True))


def test_the_multiset_is_the_multiset() -> None:
    generator = random.Random(3)
    rows = [(b"%d" % generator.randrange(3), None, b"x") for _ in range(50)]
    bag, truth = MultisetNet(BAG), Counter(rows)
    for row in rows:
        bag.add(insert(*row))
    for row in generator.sample(rows, 30):
        bag.add(delete(*row, full=True))
        truth[row] -= 1
    assert Counter(bag.inserted()) == +truth
