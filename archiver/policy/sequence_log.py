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
from typing import Any

from archiver.errors import IntegrityError
from archiver.lsn import Lsn


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

    def fold(self, record: bytes) -> None:
        """Take over a SEQUENCES record. Raises IntegrityError."""
        try:
            self._states.update({_key(state): dict(state) for state in json.loads(record)})
        except (ValueError, KeyError, TypeError):
            raise IntegrityError("a change segment holds sequence states that cannot be read") from None

    def all(self) -> list[dict[str, Any]]:
        return list(self._states.values())


def _key(state: Mapping[str, Any]) -> tuple[str, str]:
    return str(state["schema"]), str(state["name"])
