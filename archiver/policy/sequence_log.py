"""Which sequences moved since the last change segment that told of them.

In: the states of all sequences as JSON values. Out: the changed ones as bytes for a SEQUENCES record, and back.
A restore folds the records from the base snapshot on; each connection starts with all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from archiver.errors import IntegrityError


class SequenceLog:
    """Remembers what was told; a state is a JSON object with `schema` and `name` that identify it."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], Mapping[str, Any]] = {}

    def changed(self, states: Iterable[Mapping[str, Any]]) -> bytes:
        """The states that differ from what was told before, empty if none does."""
        fresh = [state for state in states if self._told.get(_key(state)) != state]
        self._told.update({_key(state): state for state in fresh})
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
