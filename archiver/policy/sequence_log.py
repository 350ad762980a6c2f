"""Which sequences moved since the last change segment that told of them.

In: the states of all sequences as JSON values. Out: the changed ones as bytes for a SEQUENCES record, and back.
A restore folds the records from the base snapshot on; each connection starts with all of them.

They are read some time after a segment was cut. A base snapshot may begin in between, with states of before a change
and a position behind the segment: then that segment is not needed to restore from it. So a change is told
again by each segment, until one reaches the position at which it was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from archiver.errors import IntegrityError
from archiver.lsn import Lsn


@dataclass(frozen=True, slots=True)
class SequenceState:
    """Where a sequence stands. Without `is_called`, `last_value` itself is the next value it gives.

    `last_value` already covers what sessions hold in their caches (CACHE n).
    """

    schema: str
    name: str
    last_value: int
    is_called: bool
    increment: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(**data)

    def is_past(self, other: SequenceState) -> bool:
        """Whether this state has given values that the other has not."""
        direction = 1 if self.increment > 0 else -1
        mine, theirs = (self.last_value * direction, self.is_called), (other.last_value * direction, other.is_called)
        return mine > theirs


def furthest(readings: Iterable[SequenceState]) -> list[SequenceState]:
    """For each sequence the reading that is furthest along."""
    best: dict[tuple[str, str], SequenceState] = {}
    for state in readings:
        known = best.get((state.schema, state.name))
        if known is None or state.is_past(known):
            best[state.schema, state.name] = state
    return list(best.values())


class SequenceLog:
    """Remembers what was told; a state is a JSON object with `schema` and `name` that identify it."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._again_before: dict[tuple[str, str], Lsn] = {}

    def changed(self, states: Iterable[Mapping[str, Any]], read_at: Lsn, segment_end: Lsn) -> bytes:
        """The states that a segment must tell, empty if there is none.

        `read_at`: a position of the source after it was asked for the states.
        """
        fresh = []
        for state in states:
            key = _key(state)
            if self._told.get(key) != state:
                self._told[key] = state
                self._again_before[key] = read_at
            if key in self._again_before:
                fresh.append(state)
        self._again_before = {key: lsn for key, lsn in self._again_before.items() if segment_end < lsn}
        return json.dumps(fresh, ensure_ascii=False).encode() if fresh else b""


class SequenceStates:
    """The newest state of each sequence that a restore has seen."""

    def __init__(self, states: Iterable[Mapping[str, Any]] = ()) -> None:
        self._states = {_key(state): dict(state) for state in states}

    def fold(self, record: bytes, *, after_target: bool = False) -> None:
        """Take over a SEQUENCES record. Raises IntegrityError.

        One that was read after the recovery target may show a sequence that was set back since: it never lowers one.
        """
        try:
            for state in map(SequenceState.from_json, json.loads(record)):
                self._take(state, after_target)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise IntegrityError("a change segment holds sequence states that cannot be read") from None

    def _take(self, state: SequenceState, after_target: bool) -> None:
        known = self._states.get((state.schema, state.name))
        if known is None or not after_target or state.is_past(SequenceState.from_json(known)):
            self._states[state.schema, state.name] = state.to_json()

    def all(self) -> list[dict[str, Any]]:
        return list(self._states.values())


def _key(state: Mapping[str, Any]) -> tuple[str, str]:
    return str(state["schema"]), str(state["name"])
