"""What a captured statement becomes before it runs at a target: inside a transaction, without the source's machine.

In: a statement, its event, and what the target has. Out: a `Replay`: the statements to run and what was left out of
them. A statement that needs no change is passed on as its text; a changed one is printed from its syntax tree and
read back, and must mean exactly what was intended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pglast import ast, parse_sql
from pglast.enums import AlterTableType, ConstrType, ObjectType, RoleSpecType
from pglast.parser import scan
from pglast.stream import RawStream
from pglast.visitors import Visitor

from archiver.errors import IntegrityError
from archiver.format.ddl import Event, first_line, literal, quote
from archiver.format.ddl_described import set_defaults
from archiver.format.ddl_moments import put_bounds, with_settings_told
from archiver.format.journal import SCHEMA


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What replay must know of the target: its roles, and the publication that is archiver's own.

    `system_triggers`: whether the restoring role may disable those of foreign keys.
    """

    roles: frozenset[str]
    publication: str
    system_triggers: bool = True


@dataclass(slots=True)
class Replay:
    """`left_out` holds reasons, `missing` the roles that the target lacks; `commits`: the target must commit."""

    statements: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    commits: bool = False
    missing: frozenset[str] = frozenset()


def for_target(text: str, event: Event, target: TargetFacts) -> Replay:
    """The statements that do at the target what one statement did at the source."""
    text = _with_roles_named(text, event)
    [raw] = parse_sql(text)
    stmt: Any = raw.stmt
    text = with_settings_told(text, stmt, event)
    if (reason := _unwanted(stmt, event, target)) is not None:
        return Replay(left_out=[reason] if reason else [])
    work = _Rewriting(stmt, event, target)
    if not work.run():
        return Replay(work.after, work.left_out, missing=frozenset(work.missing))
    if isinstance(stmt, ast.AlterTableStmt) and (detach := _concurrent_detach(stmt)) is not None:
        return Replay([_detach(stmt.relation, detach)])
    statement = work.printed() if work.changed else _inside_a_transaction(text, stmt)
    added = isinstance(stmt, ast.AlterEnumStmt) and stmt.oldVal is None
    statements = [statement, *work.after, *set_defaults(event)]
    return Replay(statements, work.left_out, commits=added, missing=frozenset(work.missing))


def without_checks(text: str) -> str | None:
    """An ALTER TABLE whose foreign keys are not checked; empty if nothing else is in it, None if it checks none."""
    [raw] = parse_sql(text)
    if not isinstance(raw.stmt, ast.AlterTableStmt):
        return None
    given = raw.stmt.cmds or ()
    commands = [each for each in given if each.subtype != AlterTableType.AT_ValidateConstraint]
    added = [each.def_ for each in commands if _is_foreign_key(each.def_)]
    if not added and len(commands) == len(given):
        return None
    for key in added:
        key.skip_validation, key.initially_valid = True, False
    raw.stmt.cmds = tuple(commands)
    return str(RawStream()(raw.stmt)) if commands else ""


def _is_foreign_key(node: Any) -> bool:
    return isinstance(node, ast.Constraint) and node.contype == ConstrType.CONSTR_FOREIGN


_SUBSCRIPTION: Final = "subscriptions are not replayed: the target would take rows from another server"
_LARGE_OBJECTS: Final = "large objects are not archived"


def _unwanted(stmt: Any, event: Event, target: TargetFacts) -> str | None:
    """Why a statement is left out altogether; empty when nobody needs to know."""
    if "SUBSCRIPTION" in event.tag:
        return _SUBSCRIPTION
    if ObjectType.OBJECT_LARGEOBJECT in {getattr(stmt, "objtype", None), getattr(stmt, "objectType", None)}:
        return _LARGE_OBJECTS
    if getattr(stmt, "pubname", None) == target.publication or any(_is_ours(each, target) for each in event.objects):
        return ""
    if isinstance(stmt, ast.DropOwnedStmt) and any(not _there(role, target) for role in stmt.roles or ()):
        return "a role of DROP OWNED is not at the target"
    return None


def _is_ours(described: Mapping[str, Any], target: TargetFacts) -> bool:
    """Others may call what they have as they like."""
    kind, name = described.get("type"), described.get("identity")
    ours = target.publication
    return (kind == "schema" and name == SCHEMA) or (kind == "publication" and name in {ours, quote(ours)})


def _there(role: Any, target: TargetFacts) -> bool:
    return role.roletype != RoleSpecType.ROLESPEC_CSTRING or role.rolename in target.roles


# --- Roles of the session ------------------------------------------------------------------------------


class _SessionRoles(Visitor):
    """Finds where CURRENT_USER and SESSION_USER stand for a role, and whom they meant."""

    def __init__(self, event: Event) -> None:
        self.found: list[tuple[int, str]] = []
        self._meant = {
            RoleSpecType.ROLESPEC_CURRENT_ROLE: event.role,
            RoleSpecType.ROLESPEC_CURRENT_USER: event.role,
            RoleSpecType.ROLESPEC_SESSION_USER: event.session_role,
        }

    def visit_RoleSpec(self, _ancestors: Any, node: Any) -> None:  # noqa: N802 (pglast calls it so)
        if name := self._meant.get(node.roletype):
            self.found.append((node.location, name))


def _with_roles_named(text: str, event: Event) -> str:
    """The statement with names for the session's roles: at the target they may mean the restoring role."""
    roles = _SessionRoles(event)
    stmt: Any = parse_sql(text)[0].stmt
    roles(stmt)
    for at, name in sorted(roles.found, reverse=True):
        text = text[:at] + quote(name) + re.sub(r"^\w+", "", text[at:])
    return text


# --- Text that only runs outside a transaction ---------------------------------------------------------


def _inside_a_transaction(text: str, stmt: Any) -> str:
    """CREATE INDEX without CONCURRENTLY. REFRESH may keep it, and DROP never comes here."""
    if not (isinstance(stmt, ast.IndexStmt) and stmt.concurrent):
        return text
    token = next(token for token in scan(text) if token.name == "CONCURRENTLY")
    return text[: token.start] + text[token.end + 1 :]


def _concurrent_detach(stmt: Any) -> Any | None:
    """The partition that is detached CONCURRENTLY, or whose detaching is finished."""
    for command in stmt.cmds or ():
        finalized = command.subtype == AlterTableType.AT_DetachPartitionFinalize
        if finalized or (command.subtype == AlterTableType.AT_DetachPartition and command.def_.concurrent):
            return command.def_.name
    return None


# Not of a hash partition: those would name the parent's OID, and servers have stopped making them.
_DETACH: Final = """DO $archiver$
DECLARE
    parent oid := {parent_literal}::pg_catalog.regclass;
    bounds text := pg_catalog.pg_get_partition_constraintdef({partition}::pg_catalog.regclass);
BEGIN
    ALTER TABLE {parent} DETACH PARTITION {name};
    IF (SELECT partstrat <> 'h' FROM pg_catalog.pg_partitioned_table WHERE partrelid = parent)
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k
                        WHERE k.conrelid = {partition}::pg_catalog.regclass AND k.contype = 'c'
                          AND pg_catalog.pg_get_constraintdef(k.oid) = pg_catalog.format('CHECK (%s)', bounds)) THEN
        EXECUTE pg_catalog.format('ALTER TABLE %s ADD CHECK (%s)', {partition}::pg_catalog.regclass, bounds);
    END IF;
END $archiver$"""


def _detach(parent: Any, partition: Any) -> str:
    """A plain DETACH, and the partition's bounds as a CHECK constraint, which CONCURRENTLY leaves behind."""
    name, of = _qualified(partition), _qualified(parent)
    return _DETACH.format(parent=of, parent_literal=literal(of), name=name, partition=literal(name))


# --- Syntax trees --------------------------------------------------------------------------------------

_TABLESPACE_FIELDS: Final = ("tableSpace", "tablespacename", "tableSpaceName", "indexspace")


class _Tablespaces(Visitor):
    """Takes tablespaces out: they are paths on the source's machine, and a base snapshot has none either."""

    found = False

    def visit(self, _ancestors: Any, node: Any) -> None:
        for name in _TABLESPACE_FIELDS:
            if getattr(node, name, None) is not None:
                setattr(node, name, None)
                self.found = True


class _Rewriting:
    """One statement's tree, changed in place. `run` says whether anything is left of it."""

    def __init__(self, stmt: Any, event: Event, target: TargetFacts) -> None:
        self.stmt = stmt
        self.event = event
        self.target = target
        self.changed = False
        self.left_out: list[str] = []
        self.missing: set[str] = set()
        self.after: list[str] = []

    def run(self) -> bool:
        tablespaces = _Tablespaces()
        tablespaces(self.stmt)
        self.changed |= tablespaces.found | put_bounds(self.stmt, self.event)
        step = _STEPS.get(type(self.stmt))
        return step is None or step(self)

    def printed(self) -> str:
        if isinstance(self.stmt, ast.IndexStmt):
            self.stmt.concurrent = False
        text = str(RawStream()(self.stmt))
        if parse_sql(text)[0].stmt != self.stmt:
            raise IntegrityError(f"a statement cannot be rewritten for the target: {first_line(text)}")
        return text

    def _keep_roles(self, roles: Iterable[Any] | None) -> tuple[Any, ...]:
        """Those of the roles that the target has; the others go into the report."""
        named = tuple(roles or ())
        kept = tuple(role for role in named if _there(role, self.target))
        if len(kept) < len(named):
            self.changed = True
            missing = sorted(role.rolename for role in named if not _there(role, self.target))
            self.missing.update(missing)
            self.left_out.append(f"no role {', '.join(missing)}")
        return kept

    def grant(self) -> bool:
        if self.stmt.grantor is not None:  # it can be none but the current user
            self.stmt.grantor, self.changed = None, True
        self.stmt.grantees = self._keep_roles(self.stmt.grantees)
        given = self.stmt.objects or ()
        self.stmt.objects = tuple(each for each in given if not self._is_temporary(each))
        self.changed |= len(self.stmt.objects) < len(given)
        return bool(self.stmt.grantees and (self.stmt.objects or not given))

    def _is_temporary(self, named: Any) -> bool:
        """Of a relation, a type, a function or a schema. A function is found in a temporary schema by that alone."""
        if isinstance(named, ast.RangeVar):
            return _is_temporary_schema(named.schemaname or "") or (
                named.schemaname is None and named.relname in self.event.temporary
            )
        if isinstance(named, ast.String):
            return _is_temporary_schema(named.sval or "")
        is_type = not isinstance(named, ast.ObjectWithArgs)
        names: Any = named if is_type else named.objname
        first, *rest = (each.sval for each in names)
        return _is_temporary_schema(first) if rest else is_type and first in self.event.temporary

    def statistics(self) -> bool:
        """Of a temporary table they stand in another schema than it."""
        return not any(map(self._is_temporary, self.stmt.relations))

    def default_privileges(self) -> bool:
        self.stmt.action.grantees = self._keep_roles(self.stmt.action.grantees)
        for option in self.stmt.options or ():
            if option.defname == "roles":
                option.arg = self._keep_roles(option.arg)
            if option.defname == "schemas":
                kept = tuple(each for each in option.arg if not self._is_temporary(each))
                self.changed |= len(kept) < len(option.arg)
                option.arg = kept
            if not option.arg:
                return False
        return bool(self.stmt.action.grantees)

    def owner(self) -> bool:
        return bool(self._keep_roles([self.stmt.newowner]))

    def policy(self) -> bool:
        if self.stmt.roles is None:
            return True
        self.stmt.roles = self._keep_roles(self.stmt.roles)
        return bool(self.stmt.roles)

    def altered_policy(self) -> bool:
        """One whose new roles are all missing goes: it must not stay open to those that it had before."""
        if self.policy():
            return True
        self.after.append(f"DROP POLICY IF EXISTS {quote(self.stmt.policy_name)} ON {_qualified(self.stmt.table)}")
        return False

    def schema(self) -> bool:
        if self.stmt.authrole is not None and not self._keep_roles([self.stmt.authrole]):
            self.stmt.schemaname = self.stmt.schemaname or self.stmt.authrole.rolename
            self.stmt.authrole = None
        return True

    def user_mapping(self) -> bool:
        return bool(self._keep_roles([self.stmt.user]))

    def alter_table(self) -> bool:
        kept = tuple(command for command in self.stmt.cmds if self._keep_command(command))
        self.changed |= len(kept) < len(self.stmt.cmds)
        self.stmt.cmds = kept
        return bool(kept)

    def _keep_command(self, command: Any) -> bool:
        if command.subtype == AlterTableType.AT_SetTableSpace:
            return False
        if command.subtype == AlterTableType.AT_ChangeOwner:
            return bool(self._keep_roles([command.newowner]))
        if command.subtype in _USER_TRIGGERS and not self.target.system_triggers:
            command.subtype = _USER_TRIGGERS[command.subtype]
            self.changed = True
        if command.subtype == AlterTableType.AT_AddColumn:
            self._fix_default(command.def_)
        return True

    def _fix_default(self, column: Any) -> None:
        """The default was computed once, at the source: existing rows get that value, later ones the expression."""
        known = (self.event.missing or {}).get(column.colname)
        default = next((c for c in column.constraints or () if c.contype == ConstrType.CONSTR_DEFAULT), None)
        if known is None or default is None or _is_plain(default.raw_expr):
            return
        value = f"CAST({literal(_only_element(known['value']))} AS {known['type']})"
        select: Any = parse_sql(f"SELECT {value}")[0].stmt
        default.raw_expr = select.targetList[0].val
        self.changed = True
        table = _qualified(self.stmt.relation)
        self.after.append(f"ALTER TABLE {table} ALTER COLUMN {quote(column.colname)} SET DEFAULT {known['default']}")


def _is_temporary_schema(name: str) -> bool:
    return re.fullmatch(r"pg_temp(_\d+)?", name) is not None


_USER_TRIGGERS: Final[Mapping[Any, Any]] = {
    AlterTableType.AT_EnableTrigAll: AlterTableType.AT_EnableTrigUser,
    AlterTableType.AT_DisableTrigAll: AlterTableType.AT_DisableTrigUser,
}
"""The triggers of foreign keys are the system's: no dump shows whether they are enabled."""
_STEPS: Final[Mapping[type[Any], Any]] = {
    ast.GrantStmt: _Rewriting.grant,
    ast.CreateStatsStmt: _Rewriting.statistics,
    ast.AlterDefaultPrivilegesStmt: _Rewriting.default_privileges,
    ast.AlterOwnerStmt: _Rewriting.owner,
    ast.CreatePolicyStmt: _Rewriting.policy,
    ast.AlterPolicyStmt: _Rewriting.altered_policy,
    ast.CreateSchemaStmt: _Rewriting.schema,
    ast.CreateUserMappingStmt: _Rewriting.user_mapping,
    ast.AlterUserMappingStmt: _Rewriting.user_mapping,
    ast.AlterTableStmt: _Rewriting.alter_table,
}


def _only_element(array: str) -> str:
    """The text of the one element of an array: attmissingval is one, even for a column that holds arrays itself."""
    inner = array[1:-1]
    return re.sub(r"\\(.)", r"\1", inner[1:-1], flags=re.DOTALL) if inner.startswith('"') else inner


def _is_plain(expression: Any) -> bool:
    """A number or a truth value: text such as 'now' may be evaluated by its type."""
    return isinstance(expression, ast.A_Const) and not isinstance(expression.val, ast.String)


def _qualified(relation: Any) -> str:
    parts: Iterator[str] = (part for part in (relation.schemaname, relation.relname) if part)
    return ".".join(map(quote, parts))
