"""DDL events of the stream: an entry of the journal in, the statements that do the same at a target out.

In: what an entry of kind DDL says, as archiver.postgres.triggers writes it, and the text that it refers to. Out: an
`Event`, the one statement that fired it, and the SQL to run in its place. It parses with PostgreSQL's own grammar
(pglast) and never guesses: what it cannot place raises IntegrityError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pglast import ast, parse_sql
from pglast.enums import ObjectType
from pglast.parser import ParseError

from archiver.errors import IntegrityError
from archiver.format.ddl_rights import NO_RIGHTS, Rights

CREATES_FILLED: Final = frozenset({"CREATE TABLE AS", "SELECT INTO"})
"""Their rows come before their end event: the table is made at the start event, from its description at the end."""
RUNS_SCRIPTS: Final = frozenset({"CREATE EXTENSION", "ALTER EXTENSION"})
"""What happens between their two events is done by the extension's own script, at the target too."""


class Text:
    """A text that several events refer to, or the bodies of the functions of one name: it is parsed once."""

    def __init__(self, source: str = "", bodies: Sequence[str] = ()) -> None:
        self.source = source
        self.bodies = bodies
        self._parsed: dict[bool, list[Parsed]] = {}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Text:
        """Raises IntegrityError."""
        source, bodies = said.get("source") or "", said.get("bodies") or ()
        if not isinstance(source, str) or not all(isinstance(body, str) for body in bodies):
            raise IntegrityError("an entry of the journal about a text cannot be read", hint=_NEWER)
        return cls(source, bodies)

    def statements(self, event: Event) -> list[Parsed]:
        """Those that fire events. Raises IntegrityError."""
        standard = _is_standard(event)
        if standard not in self._parsed:
            self._parsed[standard] = _firing(event, self.source)
        return self._parsed[standard]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the source. `kind` is that of PostgreSQL: ddl_command_start, ddl_command_end or sql_drop."""

    kind: str
    tag: str
    role: str
    settings: Mapping[str, str | None]
    schemas: Sequence[str]
    session_role: str | None = None
    rights: Rights = NO_RIGHTS
    source: str = ""
    place: int = 1
    text: Text | None = None
    objects: Sequence[Mapping[str, Any]] = ()
    temporary: frozenset[str] = frozenset()
    created: Sequence[Mapping[str, Any]] = ()
    missing: Mapping[str, Mapping[str, Any]] | None = None
    defaults: Sequence[Mapping[str, Any]] = ()
    indexes: Sequence[Mapping[str, str]] = ()


SETTINGS: Final = (
    *("search_path", "DateStyle", "IntervalStyle", "TimeZone", "standard_conforming_strings", "backslash_quote"),
    *("array_nulls", "transform_null_equals", "xmloption", "bytea_output", "extra_float_digits", "lc_monetary"),
    *("lc_numeric", "lc_time", "default_table_access_method", "default_toast_compression"),
    *("default_text_search_config", "createrole_self_grant", "quote_all_identifiers"),
)
"""What a statement's meaning depends on: the triggers tell of these, and a restore sets no others."""


def parse_event(said: Mapping[str, Any], text: Text | None = None) -> Event:
    """`text`: what the event refers to, if it does. Raises IntegrityError for what no trigger of archiver wrote."""
    try:
        text = None if said.get("text") is None else _given(text)
        return Event(
            kind=said["event"],
            tag=said["tag"],
            role=said["role"],
            settings=_known_settings(said["settings"]),
            schemas=[schema for schema in said["schemas"] or () if not schema.startswith("pg_temp")],
            session_role=said.get("session_role"),
            rights=Rights.from_said(said.get("rights") or {}),
            source=said.get("source") or (text.source if text else ""),
            place=said.get("place", 1),
            text=text,
            objects=said.get("objects") or (),
            temporary=frozenset(said.get("temporary") or ()),
            created=said.get("created") or (),
            missing=said.get("missing"),
            defaults=said.get("defaults") or (),
            indexes=said.get("indexes") or (),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise IntegrityError("an entry of the journal about DDL cannot be read", hint=_NEWER) from exc


def _given(text: Text | None) -> Text:
    if text is None:
        raise ValueError("a text that is not there")
    return text


def _known_settings(said: Mapping[str, str | None]) -> Mapping[str, str | None]:
    if not said.keys() <= set(SETTINGS):
        raise ValueError("a setting that no trigger tells of")
    return said


_NEWER: Final = "It may come from a later version of archiver: restore with that one."

# --- Which statement -----------------------------------------------------------------------------------

_FUNCTION: Final = re.compile(r'SQL function "[^\n]*" statement (\d+)')
_STATEMENT: Final = 'SQL statement "'


def statement_of(event: Event) -> str:
    """The text of the statement that fired an end event. Raises IntegrityError if it cannot be told."""
    if match := _FUNCTION.match(event.source):
        bodies = event.text.bodies if event.text else ()
        found = [each for body in bodies if (each := _nth(_split(event, body), int(match[1])))]
        return _choose(event, found, 1)
    statements = event.text.statements(event) if event.text else _firing(event, event.source)
    return _choose(event, statements, event.place)


def _firing(event: Event, source: str) -> list[Parsed]:
    text = _quoted(event, source) if source.startswith(_STATEMENT) else source
    return [each for each in _split(event, text) if fires(each.stmt)]


def _is_standard(event: Event) -> bool:
    return event.settings.get("standard_conforming_strings") != "off"


@dataclass(frozen=True, slots=True)
class Parsed:
    text: str
    stmt: Any


def parse(text: str) -> list[Parsed]:
    """The statements of a text. Raises pglast.parser.ParseError."""
    # locations count characters; a length of 0 means up to the end
    parsed: list[Parsed] = []
    for raw in parse_sql(text):
        start = raw.stmt_location or 0
        parsed.append(Parsed(text[start : start + raw.stmt_len if raw.stmt_len else None], raw.stmt))
    return parsed


def _split(event: Event, text: str) -> list[Parsed]:
    if not _is_standard(event):
        text = with_standard_strings(text)
    try:
        return parse(text)
    except ParseError as exc:
        raise _unreadable(event, text) from exc


def _quoted(event: Event, source: str) -> str:
    """The statement in a line of context. It may hold quotes and line breaks itself: its end is where it parses."""
    text = source[len(_STATEMENT) :]
    for match in re.finditer(r'"(?=\n|\Z)', text):
        candidate = text[: match.start()]
        if not _is_standard(event):
            candidate = with_standard_strings(candidate)
        if _parses(candidate):
            return candidate
    raise _unreadable(event, text)


def _parses(text: str) -> bool:
    try:
        return bool(parse_sql(text))
    except ParseError:
        return False


def _nth(statements: Sequence[Parsed], number: int) -> Parsed | None:
    return statements[number - 1] if number <= len(statements) else None


def _choose(event: Event, candidates: Sequence[Parsed], place: int) -> str:
    """The one at its place, if it is what the event speaks of; a rolled back part may have shifted the count."""
    if candidates and _fits(event, chosen := candidates[(place - 1) % len(candidates)]):
        return chosen.text
    fitting = {each.text.strip() for each in candidates if _fits(event, each)}
    if len(fitting) != 1:
        raise _unreadable(event, event.source)
    return fitting.pop()


def _fits(event: Event, candidate: Parsed) -> bool:
    if tag_of(candidate.stmt) not in {event.tag, None}:
        return False
    created = _created_name(candidate.stmt)
    return created is None or any(created in _names(each.get("identity") or "") for each in event.objects)


def _created_name(stmt: Any) -> str | None:
    """The name in statements whose event always lists it: it tells one CREATE from the next."""
    listed = isinstance(stmt, ast.CreateStmt | ast.AlterTableStmt | ast.CreateSeqStmt)
    relation = getattr(stmt, "relation", None) or getattr(stmt, "sequence", None)
    return str(relation.relname) if listed and relation is not None else None


def _names(identity: str) -> set[str]:
    parts = re.findall(r'"(?:[^"]|"")*"|[^".]+', identity)
    return {part[1:-1].replace('""', '"') if part.startswith('"') else part for part in parts}


def _unreadable(event: Event, text: str) -> IntegrityError:
    return IntegrityError(
        f"the statement of a {event.tag} cannot be told from the stream: {first_line(text)}",
        hint="Restore to a target before it, or from a base snapshot after it.",
    )


def first_line(text: str) -> str:
    """How messages quote a statement."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 100 else f"{line[:100]}…"


_LITERAL: Final = re.compile(
    r"""(?P<escaped>(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*')
      | (?P<other>(?:(?<![\w$])(?:[bBxXnN]|[uU]&)'[^']*') | "(?:[^"]|"")*"
          | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$ | --[^\n]* | /\*.*?\*/)
      | (?P<plain>'(?:[^'\\]|\\.|'')*')""",
    re.VERBOSE | re.DOTALL,
)


def with_standard_strings(text: str) -> str:
    """A text written for standard_conforming_strings = off, for on."""
    return _LITERAL.sub(lambda m: f" E{m[0]}" if m["plain"] and "\\" in m[0] else m[0], text)


# --- What fires ----------------------------------------------------------------------------------------

_SHARED: Final = frozenset(
    {
        ObjectType.OBJECT_DATABASE,
        ObjectType.OBJECT_ROLE,
        ObjectType.OBJECT_TABLESPACE,
        ObjectType.OBJECT_EVENT_TRIGGER,
        ObjectType.OBJECT_PARAMETER_ACL,
    }
)
# fmt: off
_SILENT: Final = frozenset(
    {
        "Insert", "Update", "Delete", "Merge", "Copy", "VariableSet", "VariableShow", "Transaction", "Explain",
        "Vacuum", "Cluster", "Reindex", "CheckPoint", "CreateRole", "AlterRole", "AlterRoleSet", "DropRole",
        "GrantRole", "ReassignOwned", "Createdb", "AlterDatabase", "AlterDatabaseSet",
        "AlterDatabaseRefreshColl", "Dropdb", "CreateTableSpace", "DropTableSpace", "AlterTableSpaceOptions",
        "AlterTableMoveAll", "AlterSystem", "Prepare", "Execute", "Deallocate", "DeclareCursor", "Fetch",
        "ClosePortal", "Listen", "Notify", "Unlisten", "Load", "Lock", "Discard", "Do", "Call",
        "ConstraintsSet", "Truncate", "CreateEventTrig", "AlterEventTrig",
    }
)
# fmt: on


def fires(stmt: Any) -> bool:
    """Whether a statement fires event triggers. REINDEX counts as silent: it does from 17 on only."""
    name = type(stmt).__name__.removesuffix("Stmt")
    if isinstance(stmt, ast.SelectStmt):
        return stmt.intoClause is not None
    if name in _SILENT:
        return False
    kind = next(
        (getattr(stmt, at) for at in ("removeType", "objtype", "objectType", "renameType") if hasattr(stmt, at)), None
    )
    return kind not in _SHARED


_TAGS: Final[dict[type[Any], str]] = {
    ast.CreateStmt: "CREATE TABLE",
    ast.SelectStmt: "SELECT INTO",
    ast.IndexStmt: "CREATE INDEX",
    ast.CreateSchemaStmt: "CREATE SCHEMA",
    ast.CreateSeqStmt: "CREATE SEQUENCE",
    ast.AlterSeqStmt: "ALTER SEQUENCE",
    ast.ViewStmt: "CREATE VIEW",
    ast.RefreshMatViewStmt: "REFRESH MATERIALIZED VIEW",
    ast.CreateTrigStmt: "CREATE TRIGGER",
    ast.RuleStmt: "CREATE RULE",
    ast.CreatePolicyStmt: "CREATE POLICY",
    ast.AlterPolicyStmt: "ALTER POLICY",
    ast.CommentStmt: "COMMENT",
    ast.SecLabelStmt: "SECURITY LABEL",
    ast.AlterDefaultPrivilegesStmt: "ALTER DEFAULT PRIVILEGES",
    ast.CreateExtensionStmt: "CREATE EXTENSION",
    ast.AlterExtensionStmt: "ALTER EXTENSION",
    ast.AlterExtensionContentsStmt: "ALTER EXTENSION",
    ast.CreateEnumStmt: "CREATE TYPE",
    ast.CompositeTypeStmt: "CREATE TYPE",
    ast.CreateRangeStmt: "CREATE TYPE",
    ast.AlterEnumStmt: "ALTER TYPE",
    ast.CreateDomainStmt: "CREATE DOMAIN",
    ast.AlterDomainStmt: "ALTER DOMAIN",
    ast.DropOwnedStmt: "DROP OWNED",
    ast.ImportForeignSchemaStmt: "IMPORT FOREIGN SCHEMA",
    ast.CreateForeignTableStmt: "CREATE FOREIGN TABLE",
    ast.CreatePublicationStmt: "CREATE PUBLICATION",
    ast.AlterPublicationStmt: "ALTER PUBLICATION",
    ast.CreateStatsStmt: "CREATE STATISTICS",
}


def tag_of(stmt: Any) -> str | None:
    """The command tag of a statement, None where its kind has several and the grammar alone does not tell."""
    if isinstance(stmt, ast.CreateTableAsStmt):
        matview = stmt.objtype == ObjectType.OBJECT_MATVIEW
        return "CREATE MATERIALIZED VIEW" if matview else "CREATE TABLE AS"
    if isinstance(stmt, ast.GrantStmt):
        return "GRANT" if stmt.is_grant else "REVOKE"
    if isinstance(stmt, ast.DropStmt):
        return None if stmt.removeType is None else _DROP_TAGS.get(stmt.removeType)
    if isinstance(stmt, ast.CreateFunctionStmt):
        return "CREATE PROCEDURE" if stmt.is_procedure else "CREATE FUNCTION"
    return _TAGS.get(type(stmt))


_DROP_TAGS: Final[dict[Any, str]] = {
    ObjectType.OBJECT_TABLE: "DROP TABLE",
    ObjectType.OBJECT_VIEW: "DROP VIEW",
    ObjectType.OBJECT_INDEX: "DROP INDEX",
    ObjectType.OBJECT_SEQUENCE: "DROP SEQUENCE",
    ObjectType.OBJECT_SCHEMA: "DROP SCHEMA",
}

# --- Objects ------------------------------------------------------------------------------------------


def tables_of(event: Event) -> dict[int, str]:
    """The tables that a statement made or changed: their names, quoted, by their OIDs at the source."""
    return {int(each["oid"]): str(each["identity"]) for each in event.objects if _is_table(each)}


def _is_table(described: Mapping[str, Any]) -> bool:
    return described["type"] == "table" and described.get("oid") is not None


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    return f"{quote(schema)}.{quote(name)}"


def literal(text: str) -> str:
    """A string literal, read alike whatever standard_conforming_strings says."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f" E'{escaped}'" if "\\" in text else f"'{escaped}'"
