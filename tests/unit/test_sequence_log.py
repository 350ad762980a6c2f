"""Which states of sequences a change segment tells."""

from __future__ import annotations

import json
from typing import Any

from archiver.lsn import Lsn
from archiver.policy.sequence_log import SequenceLog


def state(value: int, name: str = "s") -> dict[str, Any]:
    return {"schema": "public", "name": name, "last_value": value}


def told(record: bytes) -> list[int]:
    return [each["last_value"] for each in json.loads(record or b"[]")]


def test_only_what_moved_is_told() -> None:
    log = SequenceLog()
    assert told(log.changed([state(1), state(2, "t")], Lsn(10), Lsn(10))) == [1, 2]
    assert told(log.changed([state(1), state(3, "t")], Lsn(20), Lsn(20))) == [3]
    assert log.changed([state(1), state(3, "t")], Lsn(20), Lsn(30)) == b""


def test_a_change_is_told_again_until_a_segment_reaches_where_it_was_read() -> None:
    log = SequenceLog()
    assert told(log.changed([state(1)], Lsn(50), Lsn(10))) == [1]
    assert told(log.changed([state(1)], Lsn(60), Lsn(40))) == [1]
    assert told(log.changed([state(1)], Lsn(70), Lsn(50))) == [1]
    assert log.changed([state(1)], Lsn(80), Lsn(60)) == b""
