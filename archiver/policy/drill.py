"""What a drill decides: which two base snapshots prove each other, and whether what was found is what must be there.

In: manifest entries, and facts read from the restored copy. Out: pairs of base snapshots, and checks. No I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Final

from archiver.format import dump
from archiver.format.digest import RowDigest
from archiver.format.drill import Check
from archiver.format.manifest import Snapshot
from archiver.names import TableName
from archiver.policy.history import History
from archiver.policy.target import Plan

Pair = tuple[Snapshot, Snapshot]


def pairs(history: History) -> Iterator[Pair]:
    """Neighbouring base snapshots, the newest two first."""
    for epoch in reversed(history.epochs):
        for lower, upper in reversed([*pairwise(epoch.snapshots)]):
            if lower.lsn < upper.lsn:
                yield lower, upper


def up_to(lower: Snapshot, history: History) -> History:
    """The epoch of `lower` without the base snapshots after it, so that a plan has to replay from there."""
    epoch = next(epoch for epoch in history.epochs if lower in epoch.snapshots)
    return History([entry for entry in epoch.entries if not (isinstance(entry, Snapshot) and entry.lsn > lower.lsn)])


def replays_nothing(plan: Plan) -> bool:
    """Whether the base snapshot alone is the target: its own digests are then what must come out."""
    return plan.last_commit is None or plan.last_commit.end_lsn <= plan.snapshot.lsn


# --- Tables --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TableState:
    """A table of the copy. `digest` is None where its columns are not those that were expected: see `columns`."""

    columns: tuple[str, ...]
    digest: RowDigest | None


def check_tables(expected: Mapping[TableName, TableState], found: Mapping[TableName, TableState]) -> list[Check]:
    """Every table that the later base snapshot holds, by its columns, count and digest."""
    return [_check_table(name, state, found.get(name)) for name, state in expected.items()]


def _check_table(name: TableName, expected: TableState, found: TableState | None) -> Check:
    wanted, there = _rows(expected.digest), "no such table"
    if found is not None:
        there = _rows(found.digest) if found.digest is not None else f"columns {', '.join(found.columns)}"
    if found is not None and found.digest is None:
        wanted = f"columns {', '.join(expected.columns)}"
    return Check(name=f"table {name}", expected=wanted, found=there, passed=found == expected)


def _rows(digest: RowDigest | None) -> str:
    return f"{digest.count} rows, digest {digest.hex()}" if digest is not None else "no rows"


def check_counts(base: Mapping[TableName, int], found: Mapping[TableName, int]) -> list[Check]:
    """Without a base snapshot to compare with: every table can be read to its end, and which are gone is told."""
    return [
        Check(name=f"table {name}", expected="can be read", found=_counted(count, base.get(name)), passed=True)
        for name, count in found.items()
    ]


def _counted(count: int, before: int | None) -> str:
    return f"{count} rows, {'a new table' if before is None else f'{before} in the base snapshot'}"


def check_nothing_else(strangers: Sequence[str]) -> Check:
    """Tables with rows that the later base snapshot does not have."""
    found = ", ".join(strangers) or "none"
    return Check(name="tables beside these", expected="none with rows", found=found, passed=not strangers)


# --- Schema ---------------------------------------------------------------------------------------------

_SHOWN: Final = 10
_DUMPED: Final = re.compile(r"^-- Dumped (from database|by pg_dump) version (\d+)", re.MULTILINE)
_HEADER: Final = re.compile(r"\A(?:--.*\n|SET default_\w+ = .*;\n|\n)*")


def dumped_by(schema: str) -> dict[str, str]:
    """Major versions of the server and the pg_dump that wrote a dump: others spell the same schema differently."""
    return dict(_DUMPED.findall(schema))


def check_schema(expected: Iterable[dump.Entry], found: Iterable[dump.Entry], left_out: Sequence[str]) -> Check:
    """Every object's definition, as pg_dump writes it. `left_out` tells what the copy's server could not have."""
    wanted, there = Counter(map(_definition, expected)), Counter(map(_definition, found))
    labels = sorted({label for label, _ in (wanted - there) + (there - wanted)})
    differing = [label for label in labels if not any(each.startswith(f"{label} left out") for each in left_out)]
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    shown = f"{len(differing)} differ: {', '.join(differing[:_SHOWN])}{more}"
    equal = f"{wanted.total()} definitions"
    return Check(name="schema", expected=equal, found=shown if differing else equal, passed=not differing)


def _definition(entry: dump.Entry) -> tuple[str, str]:
    """With the settings in force, wherever the dump has them: an entry that was left out may have brought them."""
    return entry.label, "".join(entry.state) + _HEADER.sub("", entry.text).rstrip()


# --- Sequences -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SequenceFacts:
    """A sequence of the copy, `found` None if it is missing.

    `floor` is its state in the base snapshot that was restored. `later` is that of the base snapshot compared with: it
    was read some time *after* that one's LSN, so that the true value at the target may be less. `needed` is a
    value that rows use already, and that the sequence has not given yet.
    """

    name: TableName
    increment: int
    floor: int | None
    found: int | None
    later: int | None = None
    needed: int | None = None


def check_sequence(facts: SequenceFacts) -> Check:
    """Never below what was given before the replay began, and never below what the rows use."""
    direction = 1 if facts.increment > 0 else -1
    ahead = facts.found is not None and (facts.floor is None or facts.found * direction >= facts.floor * direction)
    bound = facts.floor if facts.needed is None else facts.needed
    at_least = "at least" if direction > 0 else "at most"
    return Check(
        name=f"sequence {facts.name}",
        expected="there" if bound is None else f"{at_least} {bound}",
        found=_stands(facts, direction),
        passed=ahead and facts.needed is None,
    )


def _stands(facts: SequenceFacts, direction: int) -> str:
    if facts.found is None:
        return "no such sequence"
    if facts.later is None or facts.found * direction >= facts.later * direction:
        return str(facts.found)
    return f"{facts.found}; the later base snapshot says {facts.later}, read some time after its LSN"


# --- Others --------------------------------------------------------------------------------------------


def check_none(name: str, found: Sequence[str]) -> Check:
    """A list that must be empty."""
    return Check(name=name, expected="none", found=", ".join(found) or "none", passed=not found)


def check_query(query: str, row: Sequence[str | None] | None, expect: str | None) -> Check:
    """The operator's query: its first value must be what is expected, or where nothing is, there must be a row."""
    value = row[0] if row else None
    found = "no row" if row is None else "null" if value is None else value
    passed = row is not None if expect is None else value == expect
    return Check(name=f"query: {query}", expected="a row" if expect is None else expect, found=found, passed=passed)


def check_objective(name: str, measured: timedelta | None, objective: timedelta | None) -> list[Check]:
    """A duration against its objective; no check where none is set."""
    if objective is None:
        return []
    found = "unknown" if measured is None else f"{measured.total_seconds():.1f} s"
    passed = measured is not None and measured <= objective
    return [Check(name=name, expected=f"at most {objective.total_seconds():.1f} s", found=found, passed=passed)]
