"""Which indexes and constraints are built side by side, and in which order.

In: entries of a dump in their order, and the size of each table that holds rows. Out: builds, which `Builds` hands out
one after the other, those of large tables first, so that none waits for a lock that another holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from archiver.format.dump import IDENTIFIER, Entry, unquote
from archiver.names import TableName

_TABLE: Final = rf"({IDENTIFIER})\.({IDENTIFIER})"
_COLUMNS: Final = rf"\({IDENTIFIER}(?:, {IDENTIFIER})*\)"
_INDEX: Final = re.compile(rf"^CREATE (?:UNIQUE )?INDEX {IDENTIFIER} ON {_TABLE} ", re.MULTILINE)
_CONSTRAINT: Final = re.compile(rf"^ALTER TABLE ONLY {_TABLE}\n    ADD CONSTRAINT ", re.MULTILINE)
_FOREIGN_KEY: Final = re.compile(
    rf"^ALTER TABLE ONLY {_TABLE}\n    ADD CONSTRAINT {IDENTIFIER} FOREIGN KEY {_COLUMNS} REFERENCES {_TABLE}\(",
    re.MULTILINE,
)
_PATTERNS: Final = {"INDEX": _INDEX, "CONSTRAINT": _CONSTRAINT, "FK CONSTRAINT": _FOREIGN_KEY}
_OVERTAKEN: Final = _PATTERNS.keys() | {
    "INDEX ATTACH", "STATISTICS", "ACL", "DEFAULT ACL", "CHECK CONSTRAINT", "COMMENT", "TRIGGER", "RULE", "POLICY",
    "ROW SECURITY",
}  # fmt: skip
"""What a build may overtake. A function or a materialized view it may need: from there on entries keep their order."""


@dataclass(frozen=True, slots=True)
class Build:
    """One entry, and the tables it locks; a shared lock is against changes only."""

    entry: Entry
    tables: frozenset[TableName]
    shared: bool
    size: int

    def is_in_the_way_of(self, other: Build) -> bool:
        return bool(self.tables & other.tables) and not (self.shared and other.shared)


class Builds:
    """The builds that are still to be done."""

    def __init__(self, builds: Iterable[Build]) -> None:
        self._waiting = sorted(builds, key=lambda build: -build.size)
        self._running: list[Build] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Build | None:
        """The largest that can run beside those that do; None when there is none now."""
        for build in self._waiting:
            if not any(running.is_in_the_way_of(build) for running in self._running):
                self._waiting.remove(build)
                self._running.append(build)
                return build
        return None

    def finish(self, build: Build) -> None:
        self._running.remove(build)


def builds_of(entries: Iterable[Entry], sizes: Mapping[TableName, int]) -> list[Build]:
    """The entries that may be built side by side before all others. `sizes` is of tables with rows.

    Partitioned tables have none, and what concerns them locks their partitions as well: that is left to the rest.
    """
    found = (_build(entry, sizes) for entry in takewhile(lambda entry: entry.type in _OVERTAKEN, entries))
    return [build for build in found if build is not None]


def _build(entry: Entry, sizes: Mapping[TableName, int]) -> Build | None:
    pattern = _PATTERNS.get(entry.type)
    match = pattern.search(entry.text) if pattern else None
    if match is None:
        return None
    names = [unquote(name) for name in match.groups()]
    tables = frozenset(map(TableName, names[::2], names[1::2]))
    if not tables <= sizes.keys():
        return None
    shared = entry.type == "INDEX" and "ALTER TABLE" not in entry.text  # as for CLUSTER ON, REPLICA IDENTITY
    return Build(entry, tables, shared, sum(sizes[table] for table in tables))
