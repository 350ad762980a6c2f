"""Names of the database's, in parts.

Wherever a name is compared, or is a key, it has its parts: `"a.b"."c"` and `"a"."b.c"` read alike once they are joined.
Joined they stand in messages alone, which `str` gives.
"""

from __future__ import annotations

from typing import NamedTuple


class TableName(NamedTuple):
    """A table, or another thing of a schema: a sequence, a domain. Equal to a pair of the same strings."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class ConstraintName(NamedTuple):
    """A constraint of a table, or of a domain."""

    table: TableName
    name: str

    def __str__(self) -> str:
        return f"{self.table} {self.name}"
