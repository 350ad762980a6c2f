"""Which of two readings of a sequence is further along."""

from __future__ import annotations

from archiver.postgres.sequences import SequenceState, furthest


def state(value: int, *, called: bool = True, increment: int = 1, name: str = "s") -> SequenceState:
    return SequenceState("public", name, value, called, increment)


def test_an_ascending_sequence_is_past_a_lower_value() -> None:
    assert state(11).is_past(state(10))
    assert not state(10).is_past(state(10))
    assert not state(9).is_past(state(10))


def test_a_descending_sequence_is_past_a_higher_value() -> None:
    assert state(-11, increment=-1).is_past(state(-10, increment=-1))
    assert not state(-9, increment=-1).is_past(state(-10, increment=-1))


def test_a_value_that_was_given_is_past_one_that_is_next() -> None:
    assert state(10).is_past(state(10, called=False))
    assert not state(10, called=False).is_past(state(10))


def test_the_furthest_reading_of_each_sequence_is_kept() -> None:
    first = [state(1), state(5, name="t")]
    assert furthest(first, [state(3)], [state(2), state(1, name="u")]) == [
        state(3), state(5, name="t"), state(1, name="u")
    ]  # fmt: skip


def test_a_state_survives_json() -> None:
    assert SequenceState.from_json(state(-7, called=False, increment=-2).to_json()) == state(
        -7, called=False, increment=-2
    )
