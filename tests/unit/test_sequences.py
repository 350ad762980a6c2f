"""Which of two readings of a sequence is further along."""

from __future__ import annotations

import json

from archiver.policy.sequence_log import SequenceState, SequenceStates


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


def test_a_reading_after_the_target_never_sets_a_sequence_back() -> None:
    states = SequenceStates([state(5).to_json(), state(5, name="t").to_json()])
    states.fold(record(state(3), state(7, name="t"), state(1, name="u")), after_target=True)
    assert states.all() == [state(5).to_json(), state(7, name="t").to_json(), state(1, name="u").to_json()]


def test_a_reading_before_the_target_is_what_is_so() -> None:
    states = SequenceStates([state(5).to_json()])
    states.fold(record(state(3)))
    assert states.all() == [state(3).to_json()]


def record(*states: SequenceState) -> bytes:
    return json.dumps([each.to_json() for each in states]).encode()


def test_a_state_survives_json() -> None:
    assert SequenceState.from_json(state(-7, called=False, increment=-2).to_json()) == state(
        -7, called=False, increment=-2
    )
