"""Which entries of a dump run users' code when they are made, and on which tables. Pure.

In: an entry. Out: what it may run with the rights of whoever makes it. The server makes indexes, and fills materialized
views, as their owners already; functions' bodies, defaults and rules are not looked into.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from pglast import ast, parse_sql
from pglast.enums import AlterTableType, ConstrType
from pglast.parser import ParseError, scan
from pglast.visitors import Visitor

from archiver.format.ddl import quote
from archiver.format.dump import OWN_SCHEMA, Entry, unquote

Name = tuple[str, str]
"""Schema and name."""

_ALTERS: Final = frozenset({"CHECK CONSTRAINT", "FK CONSTRAINT", "TABLE ATTACH"})


class _Calls(Visitor):
    """Whether anything with a schema is called, read as, or compared by: pg_dump leaves out none but pg_catalog."""

    found = False

    def _look(self, names: Any) -> None:
        self.found = self.found or (len(names or ()) > 1 and names[0].sval != "pg_catalog")

    def visit_FuncCall(self, _ancestors: Any, node: Any) -> None:  # noqa: N802 (pglast calls it so)
        self._look(node.funcname)

    def visit_A_Expr(self, _ancestors: Any, node: Any) -> None:  # noqa: N802
        self._look(node.name)

    def visit_TypeName(self, _ancestors: Any, node: Any) -> None:  # noqa: N802
        self._look(node.names)


def makes_with_code(entry: Entry) -> bool:
    """Whether an object that is not there yet calls functions when it is made.

    The planner looks into generated columns and keys of partitions. Only IMMUTABLE functions may be there, and those of
    pg_catalog are trusted.
    """
    if entry.type == "AGGREGATE":
        return "INITCOND" in entry.text  # read by its type, which may be a domain
    if entry.type != "TABLE" or not any(word in entry.text for word in _PLANNED):
        return False
    calls = _Calls()
    for raw in parse_sql(entry.text):
        for expression in _planned(raw.stmt):
            calls(expression)
    return calls.found


_PLANNED: Final = ("GENERATED ALWAYS AS (", "PARTITION BY ")


def _planned(stmt: Any) -> Iterator[Any]:
    for each in getattr(stmt, "tableElts", None) or ():
        for constraint in getattr(each, "constraints", None) or ():
            if constraint.contype == ConstrType.CONSTR_GENERATED:
                yield constraint.raw_expr
    key = getattr(stmt, "partspec", None)
    yield from (part.expr for part in key.partParams if part.expr is not None) if key is not None else ()


class _Schemas(Visitor):
    """The schemas that a statement names in front of something; a column of their name is none."""

    def __init__(self) -> None:
        super().__init__()
        self.found = set[str]()

    def visit(self, _ancestors: Any, node: Any) -> None:
        if isinstance(node, ast.RangeVar) and node.schemaname:
            self.found.add(node.schemaname)
        for attribute in _QUALIFIED:
            names = getattr(node, attribute, None)
            if isinstance(names, tuple) and len(names) > 1 and isinstance(names[0], ast.String):
                self.found.add(str(names[0].sval))
        if isinstance(node, ast.TypeCast) and _is_name_of_something(node):
            self._look_into(node.arg.val.sval)  # type: ignore[union-attr]

    def _look_into(self, text: str) -> None:
        """A constant that names something, as `nextval` takes it."""
        with suppress(ParseError):
            tokens = scan(text)
            if len(tokens) > 2 and text[tokens[1].start : tokens[1].end + 1] == ".":
                self.found.add(str(unquote(text[tokens[0].start : tokens[0].end + 1])))


_QUALIFIED: Final = ("names", "funcname", "name", "collname", "opclass", "objname", "defnames", "typeName", "arg")
"""Attributes of nodes that hold a name by its parts."""


def _is_name_of_something(cast: Any) -> bool:
    """Whether it is a constant of a type such as regclass."""
    constant = isinstance(cast.arg, ast.A_Const) and isinstance(cast.arg.val, ast.String)
    return constant and cast.typeName.names[-1].sval.startswith("reg")


def schemas_named(statement: str) -> frozenset[str]:
    """The schemas in which a statement, as pg_dump prints it, names something."""
    schemas = _Schemas()
    for raw in parse_sql(statement):
        schemas(raw)
    return frozenset(schemas.found - {OWN_SCHEMA})


def without_temporary(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The entries, and those left out that stand on a temporary object: it is gone with its session, and they with it.

    What is said of those goes, too.
    """
    gone = [entry for entry in entries if "pg_temp" in entry.text and _stands_on_temporary(entry)]
    about = {(entry.schema, f"{entry.type} {quote(entry.name)}") for entry in gone}
    left_out = {id(entry) for entry in gone}
    left_out |= {id(entry) for entry in entries if entry.type in _ABOUT and (entry.schema, entry.name) in about}
    return [each for each in entries if id(each) not in left_out], gone


_ABOUT: Final = frozenset({"COMMENT", "ACL", "SECURITY LABEL"})


def _stands_on_temporary(entry: Entry) -> bool:
    try:
        return any(re.fullmatch(r"pg_temp(_\d+)?", schema) for schema in schemas_named(entry.sql))
    except ParseError:  # a routine of another language than this parser's version of SQL
        return False


def alters(entry: Entry) -> list[Name]:
    """The tables that an entry looks into, the one that it alters first; none where it only makes or says something."""
    if entry.type not in _ALTERS:
        return []
    stmt: Any = parse_sql(entry.text)[-1].stmt
    if not isinstance(stmt, ast.AlterTableStmt):
        return []
    found: list[Any] = [stmt.relation]
    commands: Any = stmt.cmds
    for command in commands:
        if isinstance(command.def_, ast.Constraint) and command.def_.contype == ConstrType.CONSTR_FOREIGN:
            found.append(command.def_.pktable)
        elif command.subtype == AlterTableType.AT_AttachPartition:
            found.append(command.def_.name)
    return [(relation.schemaname, relation.relname) for relation in found]
