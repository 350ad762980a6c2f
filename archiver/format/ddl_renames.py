"""What renames a thing that nobody's lock protects, and how to take that back for a while.

A schema, a type, a routine or a sequence can be renamed while an open transaction has used its name. That
transaction's statements come later, with its commit, and mean the names from before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pglast import ast, parse_sql
from pglast.stream import RawStream

from archiver.format.ddl import Event, literal, quote

_UNLOCKED: Final = frozenset(
    f"ALTER {kind}"
    for kind in ("SCHEMA", "TYPE", "DOMAIN", "FUNCTION", "PROCEDURE", "ROUTINE", "SEQUENCE", "COLLATION")
)


@dataclass(frozen=True, slots=True)
class Rename:
    """Two statements, each of which takes the other one back; neither depends on a search_path.

    `name`: the object's own, or the label's, from before. `of_label`: of an enum's label, which rows hold as well.
    """

    name: str
    undo: str
    redo: str
    of_label: bool = False


def rename_of(text: str, event: Event) -> Rename | None:
    """The renaming that a statement is, if it is one.

    None, too, for an aggregate, and where a name without a schema does not tell the schema from before.
    """
    if event.tag not in _UNLOCKED or not event.objects or event.objects[0]["type"] == "aggregate":
        return None
    [raw] = parse_sql(text)
    stmt: Any = raw.stmt
    identity = str(event.objects[0]["identity"])
    if isinstance(stmt, ast.AlterEnumStmt) and stmt.oldVal is not None and stmt.newVal is not None:
        change = f"ALTER TYPE {identity} RENAME VALUE"
        old, new = literal(stmt.oldVal), literal(stmt.newVal)
        return Rename(stmt.oldVal, f"{change} {new} TO {old}", f"{change} {old} TO {new}", of_label=True)
    if isinstance(stmt, ast.RenameStmt):
        before = _old_name(stmt)
        return _pair(before, f"{event.tag} {identity} RENAME TO {quote(before)}", -1, before) if before else None
    if isinstance(stmt, ast.AlterObjectSchemaStmt) and len(names := _names(stmt)) > 1:
        return _pair(names[-1], f"{event.tag} {identity} SET SCHEMA {quote(names[-2])}", -2, names[-2])
    return None


def _old_name(stmt: ast.RenameStmt) -> str | None:
    """None where something inside of the object is renamed."""
    names = _names(stmt)
    if names:
        return names[-1] if stmt.subname is None else None
    return str(stmt.subname) if stmt.subname else None


def _names(stmt: Any) -> Sequence[str]:
    """The object's name, in its parts as they are written."""
    if stmt.relation is not None:
        return [name for name in (stmt.relation.schemaname, stmt.relation.relname) if name]
    return [part.sval for part in _parts(stmt.object)]


def _parts(named: Any) -> list[Any]:
    parts: Any = named.objname if isinstance(named, ast.ObjectWithArgs) else named
    return list(parts or ())


def _pair(name: str, undo: str, at: int, before: str) -> Rename:
    """`undo` names the object as it is now; the one that takes it back is the same with two names exchanged."""
    [raw] = parse_sql(undo)
    stmt: Any = raw.stmt
    after = _exchange(stmt, at, before)
    if isinstance(stmt, ast.RenameStmt):
        stmt.newname = after
    else:
        stmt.newschema = after
    return Rename(name, undo, str(RawStream()(stmt)))


def _exchange(stmt: Any, at: int, before: str) -> str:
    """Put the name from before into its place. Returns the one that was there."""
    after: str
    if stmt.relation is not None:
        field = "relname" if at == -1 else "schemaname"
        after = getattr(stmt.relation, field)
        setattr(stmt.relation, field, before)
    elif stmt.object is None:
        after, stmt.subname = stmt.subname, before
    else:
        parts = _parts(stmt.object)
        after, parts[at] = parts[at].sval, ast.String(before)
        if isinstance(stmt.object, ast.ObjectWithArgs):
            stmt.object.objname = tuple(parts)
        else:
            stmt.object = tuple(parts)
    return after
