"""What a statement would find anew at a restore: bounds of partitions that are computed, literals that mean a moment,
and settings FROM CURRENT.

In: syntax trees, and what an entry of the journal tells from the catalog. Out: trees and texts that say what was found
at the source, and whether something is left that nobody told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from pglast import ast, parse_sql
from pglast.enums import AlterTableType, ConstrType, VariableSetKind
from pglast.parser import scan
from pglast.visitors import Skip, Visitor

from archiver.errors import IntegrityError
from archiver.format.ddl import Event, literal

# --- Literals that mean a moment -----------------------------------------------------------------------

_MOMENT: Final = re.compile(r"(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])", re.IGNORECASE)
"""postgresql.org/docs/18/datatype-datetime.html, "Special Values"; what is no letter ends such a word."""
_PERHAPS: Final = re.compile(r"now|today|tomorrow|yesterday|\\|uescape|'\s*\n|'\s*--", re.IGNORECASE)
"""In the text of a statement: such a word, or what may hide one, by escapes or by going on in the next line."""
_IN_JSON: Final = re.compile(r'"A_Const":\{"sval":\{"sval":("(?:[^"\\]|\\.)*")')
_HOLDS_EXPRESSIONS: Final = re.compile(
    r"(CREATE|ALTER) (SCHEMA|DOMAIN|VIEW|MATERIALIZED VIEW|INDEX|STATISTICS|TRIGGER|RULE|POLICY|PUBLICATION"
    r"|(FOREIGN )?TABLE|FUNCTION|PROCEDURE|ROUTINE)"
)


def may_hold_moments(tag: str, text: str) -> bool:
    return _HOLDS_EXPRESSIONS.fullmatch(tag) is not None and _PERHAPS.search(text) is not None


def holds_moments(parsed: str) -> bool:
    """Whether a literal means a moment, in the JSON of a syntax tree: to walk a long tree takes seconds."""
    return any(_MOMENT.search(json.loads(found)) for found in _IN_JSON.findall(parsed))


def holds_untold_moments(stmt: Any, event: Event) -> bool:
    """Whether one is left beside what the catalog told."""
    walk = _Moments(event)
    walk(stmt)
    return walk.found


def _is_moment(node: Any) -> bool:
    return isinstance(node.val, ast.String) and _MOMENT.search(node.val.sval or "") is not None


class _Moments(Visitor):
    """Passes over what was told."""

    def __init__(self, event: Event) -> None:
        self.found = False
        self._defaults = bool(event.defaults) and event.tag.endswith(" TABLE")
        self._bounds = bool(event.bounds)

    def visit_A_Const(self, _ancestors: Any, node: Any) -> None:  # noqa: N802 (pglast calls it so)
        self.found |= _is_moment(node)

    def visit_Constraint(self, _ancestors: Any, node: Any) -> Any:  # noqa: N802
        return Skip if self._defaults and node.contype == ConstrType.CONSTR_DEFAULT else None

    def visit_AlterTableCmd(self, _ancestors: Any, node: Any) -> Any:  # noqa: N802
        return Skip if self._defaults and node.subtype == AlterTableType.AT_ColumnDefault else None

    def visit_PartitionBoundSpec(self, _ancestors: Any, _node: Any) -> Any:  # noqa: N802
        return Skip if self._bounds else None

    def visit_VariableSetStmt(self, _ancestors: Any, _node: Any) -> Any:  # noqa: N802
        return Skip


# --- Bounds of partitions ------------------------------------------------------------------------------


def computed_bounds(stmt: Any) -> list[tuple[Any, Any]]:
    """The partitions of a statement whose bounds are more than constants, and the nodes that hold their bounds."""
    return [(name, node) for name, node, bound in _bounds(stmt) if bound is not None and not _is_constant(bound)]


def put_bounds(stmt: Any, event: Event) -> bool:
    """Put bounds as they came out in the place of those that are computed; whether there were any. The entries of
    earlier versions tell of none. Raises IntegrityError where the bound of a partition cannot be told."""
    computed = computed_bounds(stmt) if event.bounds else []
    for name, node in computed:
        setattr(node, _HELD_IN[type(node)], _told_bound(name, event))
    return bool(computed)


def _bounds(stmt: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Partitions, the nodes that hold their bounds, and these."""
    if isinstance(stmt, ast.CreateForeignTableStmt):
        stmt = stmt.base
    if isinstance(stmt, ast.CreateStmt):
        yield stmt.relation, stmt, stmt.partbound
    for element in getattr(stmt, "schemaElts", None) or ():
        yield from _bounds(element)
    for command in (stmt.cmds or ()) if isinstance(stmt, ast.AlterTableStmt) else ():
        if command.subtype == AlterTableType.AT_AttachPartition:
            yield command.def_.name, command.def_, command.def_.bound


_HELD_IN: Final[Mapping[type[Any], str]] = {ast.CreateStmt: "partbound", ast.PartitionCmd: "bound"}


def _is_constant(bound: Any) -> bool:
    return all(
        _is_fixed(each) for values in (bound.listdatums, bound.lowerdatums, bound.upperdatums) for each in values or ()
    )


def _is_fixed(value: Any) -> bool:
    """A constant, or text that its type reads: the cast of anything else may call a function."""
    if isinstance(value, ast.TypeCast):
        return isinstance(value.arg, ast.A_Const) and isinstance(value.arg.val, ast.String) and _is_fixed(value.arg)
    if isinstance(value, ast.ColumnRef):
        return [getattr(field, "sval", None) for field in value.fields or ()] in (["minvalue"], ["maxvalue"])
    return isinstance(value, ast.A_Const) and not _is_moment(value)


def _told_bound(partition: Any, event: Event) -> Any:
    found = [
        each["bound"]
        for each in event.bounds
        if each["name"] == partition.relname and partition.schemaname in {None, each["schema"]}
    ]
    if len(found) != 1:
        raise IntegrityError(f"the bound of partition {partition.relname} cannot be told")
    made: Any = parse_sql(f"CREATE TABLE a PARTITION OF b {found[0]}")[0].stmt
    return made.partbound


# --- Settings of functions -----------------------------------------------------------------------------

_LISTS: Final = frozenset(
    {
        *("local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries"),
        *("temp_tablespaces", "unix_socket_directories"),
    }
)
"""Settings whose value is a list of names in quotes (variable_is_guc_list_quote, dumputils.c)."""


def settings_from_current(stmt: Any) -> list[str]:
    """The settings that a function is to keep as they are where it is made."""
    return [each.name for each in _settings_of_functions(stmt) if each.kind == VariableSetKind.VAR_SET_CURRENT]


def sets_who_runs_it(stmt: Any) -> bool:
    """Whether a function is to run as somebody: no statement that runs as another role may say so (guc.c)."""
    return any(each.name in {"role", "session_authorization"} for each in _settings_of_functions(stmt))


def _settings_of_functions(stmt: Any) -> list[Any]:
    options = (getattr(stmt, "options", None), getattr(stmt, "actions", None))
    of_functions = isinstance(stmt, ast.CreateFunctionStmt | ast.AlterFunctionStmt)
    return [each.arg for some in options for each in some or () if each.defname == "set"] if of_functions else []


def with_settings_told(text: str, stmt: Any, event: Event) -> str:
    """The statement with values for FROM CURRENT. The entries of earlier versions tell of none. Raises IntegrityError
    where one is not told."""
    names = settings_from_current(stmt) if event.configured else []
    told = {name.lower(): value for name, _, value in (each.partition("=") for each in event.configured)}
    for (start, end), name in reversed(list(zip(_from_current(text), names, strict=False))):
        if name.lower() not in told:
            raise IntegrityError(f"what {name} was is not told")
        text = f"{text[:start]}TO {_setting(name.lower(), told[name.lower()])}{text[end:]}"
    if names and settings_from_current(parse_sql(text)[0].stmt):
        raise IntegrityError("settings FROM CURRENT cannot be told")
    return text


def _from_current(text: str) -> Iterator[tuple[int, int]]:
    """Where FROM CURRENT stands in a text; the options of a function come before its body."""
    tokens = [token for token in scan(text) if token.name not in {"SQL_COMMENT", "C_COMMENT"}]
    for this, following in pairwise(tokens):
        if (this.name, following.name) == ("FROM", "CURRENT_P"):
            yield this.start, following.end + 1


def _setting(name: str, value: str) -> str:
    return ", ".join(map(literal, _names(value))) if name in _LISTS else literal(value)


def _names(value: str) -> Sequence[str]:
    """The names in a list as the server writes it."""
    found = re.findall(r'"((?:[^"]|"")*)"|([^",\s]+)', value)
    return [quoted.replace('""', '"') or plain for quoted, plain in found] or [""]
