"""A database as its objects: entries of pg_dump by type, schema and name, rows apart, and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff

from tests.fuzz.drive import everything

Objects = dict[str, list[str]]
"""The lines by `TYPE schema.name`."""


@dataclass(frozen=True)
class Difference:
    """`expected` is the source's."""

    name: str
    found: list[str]
    expected: list[str]

    def lines(self, most: int) -> str:
        diff = [line[:200] for line in unified_diff(self.expected, self.found, "source", "restored", lineterm="", n=1)]
        return "\n".join(diff[:most])


def objects(dsn: str) -> Objects:
    """Entries of one name (overloaded functions, policies of several tables) are one."""
    found: Objects = {}
    name = ""
    for line in everything(dsn):
        if line.startswith("-- Name: "):
            name = _name(line)
        elif line.startswith("-- rows of "):
            name = f"ROWS {line.removeprefix('-- rows of ')}"
        found.setdefault(name, []).append(line)
    return found


def _name(line: str) -> str:
    fields = dict(part.partition(": ")[::2] for part in line.removeprefix("-- ").split("; "))
    return f"{fields.get('Type', '')} {fields.get('Schema', '')}.{fields.get('Name', '')}"


def different(found: Objects, expected: Objects) -> Iterator[Difference]:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            yield Difference(name, found.get(name, []), expected.get(name, []))
