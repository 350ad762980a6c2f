"""What a restore can do without: all rows and rules of the data are there without it, and some of it needs a superuser.

One table for both ways in which it comes, an entry of a base snapshot and a statement of the stream: what the target
refuses is left out and named. So is what is said later of a thing that was left out, which the target does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from pglast import ast
from pglast.enums import AlterTableType

from archiver.format.ddl import parse

REFUSALS: Final = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedObject,  # what stands on something left out before: a comment, a publication's table
    psycopg.errors.UndefinedTable,  # the same: the comment on an index
    psycopg.errors.InvalidParameterValue,  # a SECURITY LABEL whose provider is not loaded
)


@dataclass(frozen=True, slots=True)
class Dispensable:
    """One kind: the types of pg_dump's entries, and the command tags of what fires event triggers."""

    entries: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


KINDS: Final = (
    Dispensable(("ACL",), ("GRANT", "REVOKE")),
    Dispensable(("DEFAULT ACL",), ("ALTER DEFAULT PRIVILEGES",)),
    Dispensable(("COMMENT",), ("COMMENT",)),
    Dispensable(("SECURITY LABEL",), ("SECURITY LABEL",)),
    Dispensable(("EVENT TRIGGER",)),
    Dispensable(
        ("PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA"),
        ("CREATE PUBLICATION", "ALTER PUBLICATION", "DROP PUBLICATION"),
    ),
    Dispensable(
        ("SUBSCRIPTION", "SUBSCRIPTION TABLE"),
        ("CREATE SUBSCRIPTION", "ALTER SUBSCRIPTION", "DROP SUBSCRIPTION"),
    ),
    Dispensable(("USER MAPPING",), ("CREATE USER MAPPING", "ALTER USER MAPPING", "DROP USER MAPPING")),
    # Foreign tables stand on these, so they must be made; how they are set, and that they are gone, no row shows.
    Dispensable((), ("ALTER SERVER", "DROP SERVER", "ALTER FOREIGN DATA WRAPPER", "DROP FOREIGN DATA WRAPPER")),
)
_ENTRIES: Final = frozenset(entry for kind in KINDS for entry in kind.entries)
_TAGS: Final = frozenset(tag for kind in KINDS for tag in kind.tags)
_OF_LEFT_OUT: Final = frozenset({"ALTER POLICY"})
"""What may speak of a policy that was left out, because none of its roles is at the target."""


def is_entry(type_: str) -> bool:
    """Whether a restore can do without entries of pg_dump of this type."""
    return type_ in _ENTRIES


def may_be_left_out(tag: str, statement: str, exc: psycopg.Error) -> bool:
    """Whether a restore can do without a statement of the stream that the target refused so."""
    if tag in _TAGS:
        return isinstance(exc, REFUSALS)
    if tag in _OF_LEFT_OUT:
        return isinstance(exc, psycopg.errors.UndefinedObject)
    return isinstance(exc, psycopg.errors.InsufficientPrivilege) and _gives_away(statement)


def _gives_away(statement: str) -> bool:
    """Whether it does nothing but give an object to another owner: base snapshots do without that, too."""
    stmt: Any = parse(statement)[0].stmt
    if isinstance(stmt, ast.AlterTableStmt):
        return all(each.subtype == AlterTableType.AT_ChangeOwner for each in stmt.cmds or ())
    return isinstance(stmt, ast.AlterOwnerStmt)
