"""The schedule of PostgreSQL's regression tests, and what of it is left out: LEFT_OUT, a reason a line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

LEFT_OUT: Final = Path(__file__).parent / "left_out.txt"


def read(home: Path, left_out: Mapping[str, str]) -> list[list[str]]:
    """The groups of tests, each of which may run at once."""
    lines = (home / "parallel_schedule").read_text("utf-8").splitlines()
    groups = [line.removeprefix("test:").split() for line in lines if line.startswith("test:")]
    kept = [[test for test in group if test not in left_out] for group in groups]
    return [group for group in kept if group]


def third(groups: Sequence[Sequence[str]], wanted: frozenset[str]) -> list[list[str]]:
    """Only these tests, in their order."""
    kept = [[test for test in group if test in wanted] for group in groups]
    return [group for group in kept if group]


def tests_left_out() -> dict[str, str]:
    """The reason by test."""
    return dict(_lines("test"))


def objects_left_out() -> list[tuple[re.Pattern[str], str]]:
    """What may differ: patterns of `TYPE schema.name`, each with its reason."""
    return [(re.compile(pattern), reason) for pattern, reason in _lines("object")]


def _lines(kind: str) -> list[tuple[str, str]]:
    found = []
    for line in LEFT_OUT.read_text("utf-8").splitlines():
        word, _, rest = line.partition(" ")
        if word == kind:
            what, _, reason = rest.partition(": ")
            assert reason, f"without a reason: {line}"
            found.append((what.strip(), reason.strip()))
    return found
