"""Which statement of its text fired an event.

In: an `Event`, with the text that it stands in. Out: the text of the one statement. It parses with PostgreSQL's own
grammar (pglast) and never guesses: what it cannot place raises IntegrityError. Capture asks the same when it reads the
event, and records a loss, so that no restore meets it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pglast import ast, parse_sql, split
from pglast.enums import ObjectType, TransactionStmtKind
from pglast.parser import ParseError

from archiver.errors import IntegrityError
from archiver.format.ddl import CREATES_FILLED, RUNS_SCRIPTS, Event, Text, first_line
from archiver.format.sql_text import length_outside, scannable, with_standard_strings

_FUNCTION: Final = re.compile(r'SQL function "[^\n]*" statement (\d+)')
_STATEMENT: Final = 'SQL statement "'
_END: Final = re.compile(r'"(?=\n(?:PL/|SQL )|\Z)')
"""Where a statement in a line of context may end: before the line of what ran it."""
LONG: Final = 1 << 20
"""Characters of a text that is read while it is captured."""
_ENDS: Final = 64
_TRIED: Final = 2 * LONG
"""More of them, or more characters up to each of them together, are somebody's play."""


@dataclass(frozen=True, slots=True)
class _Fired:
    """A statement that fires events: the `nth` of those that were not undone in its transaction by then.

    It has no syntax tree, which takes a hundred times what the text does.
    """

    text: str
    tag: str | None
    created: str | None
    nth: int
    of_column: bool | None = None
    undone: bool = False


def statement_of(event: Event) -> str:
    """The text of the statement that fired an end event. Raises IntegrityError if it cannot be told."""
    try:
        return _statement_of(event)
    except (ParseError, RecursionError) as exc:
        raise _unreadable(event, event.source) from exc


def is_described(event: Event) -> bool:
    """Whether a restore needs no statement, or nobody asks for it."""
    described = event.kind != "ddl_command_end" or event.tag in {*CREATES_FILLED, "IMPORT FOREIGN SCHEMA"}
    return described or (not event.objects and event.tag in RUNS_SCRIPTS) or len(event.source) > LONG


def _statement_of(event: Event) -> str:
    if match := _FUNCTION.match(event.source):
        found = [each for statements in _bodies(event) for each in _numbered(statements, int(match[1]))]
        return _only(event, found)
    statements = _firing(event)
    again = event.source.startswith(_STATEMENT) and statements  # a function runs it again and again
    nth = (event.nth - 1) % len(statements) + 1 if again else event.nth
    return _only(event, [each for each in statements if each.nth == nth])


def _bodies(event: Event) -> list[list[str]]:
    """The statements of each function that may have run: split once for all of its events."""
    text, key = event.text or Text(), ("bodies", _is_standard(event))
    found: list[list[str]] = _once(event, text, key, lambda: [_split(event, body) for body in text.bodies])
    return found


def _once(event: Event, text: Text, key: Any, read: Callable[[], Any]) -> Any:
    """What is read of a text, for all of its events, or that it cannot be read."""
    if key not in text.parsed:
        try:
            text.parsed[key] = read()
        except (ParseError, RecursionError, IntegrityError) as exc:
            text.parsed[key] = exc.with_traceback(None)
    if isinstance(found := text.parsed[key], Exception):
        raise _unreadable(event, event.source) from found
    return found


def _numbered(statements: Sequence[str], number: int) -> Iterator[_Fired]:
    if number <= len(statements) and fires(stmt := tree_of(statements[number - 1])):
        yield _fired(statements[number - 1], stmt, number)


def _firing(event: Event) -> list[_Fired]:
    text, key = event.text or Text(event.source), _is_standard(event)

    def read() -> list[_Fired]:
        return _counted(_quoted(event) if text.source.startswith(_STATEMENT) else _split(event, text.source))

    found: list[_Fired] = _once(event, text, key, read)
    return found


class _Count:
    """Counts as the source does: what is rolled back is not counted, and each transaction begins anew."""

    def __init__(self) -> None:
        self.fired: list[_Fired] = []
        self._count = 0
        self._saved: dict[str, tuple[int, int]] = {}  # the count, and how many had fired
        self._last = 0  # how many had fired at the last SAVEPOINT
        self._began = 0

    def add(self, text: str, stmt: Any) -> None:
        if isinstance(stmt, ast.TransactionStmt):
            self._control(stmt)
        elif fires(stmt):
            self._count += 1
            self.fired.append(_fired(text, stmt, self._count))

    def _control(self, stmt: Any) -> None:
        if stmt.kind == TransactionStmtKind.TRANS_STMT_SAVEPOINT:
            self._saved[stmt.savepoint_name] = self._count, len(self.fired)
            self._last = len(self.fired)
        elif stmt.kind == TransactionStmtKind.TRANS_STMT_ROLLBACK_TO:  # else to one of before this text
            self._count, since = self._saved.get(stmt.savepoint_name, (0, self._began))
            self._undo(since)
        elif stmt.kind in _ENDS_TRANSACTION:
            if stmt.kind == TransactionStmtKind.TRANS_STMT_ROLLBACK:
                self._undo(self._began)
            self._saved.clear()
            self._count, self._began = 0, len(self.fired)

    def _undo(self, since: int) -> None:
        """What a later SAVEPOINT protects may be there all the same, if an error came and that was gone back to."""
        for at in range(max(since, self._last), len(self.fired)):
            self.fired[at] = replace(self.fired[at], undone=True)


def _counted(statements: Sequence[str]) -> list[_Fired]:
    count = _Count()
    for text in statements:
        if not _ROWS.match(text):
            count.add(text, tree_of(text))
    return count.fired


def _fired(text: str, stmt: Any, nth: int) -> _Fired:
    of_column = stmt.objtype == ObjectType.OBJECT_COLUMN if isinstance(stmt, ast.CommentStmt) else None
    return _Fired(text, tag_of(stmt), _created_name(stmt), nth, of_column)


_ENDS_TRANSACTION: Final = frozenset(
    {
        TransactionStmtKind.TRANS_STMT_COMMIT,
        TransactionStmtKind.TRANS_STMT_ROLLBACK,
        TransactionStmtKind.TRANS_STMT_PREPARE,
    }
)


def _is_standard(event: Event) -> bool:
    return event.settings.get("standard_conforming_strings") != "off"


def _split(event: Event, text: str) -> list[str]:
    """The statements of a text, which was read before the first of them ran."""
    standard = with_standard_strings(text) if "\\" in text else text
    if standard != text and "standard_conforming_strings" in text.lower():
        raise _unreadable(event, text)  # what the first statement was read with is not known
    return list(split(scannable(text if _is_standard(event) else standard), with_parser=True))


def _quoted(event: Event) -> list[str]:
    """The statements in a line of context. They may hold quotes and line breaks: it ends where it parses."""
    text = event.source[len(_STATEMENT) :]
    ends = [match.start() for match in _END.finditer(text)]
    if len(ends) > _ENDS or sum(ends) > _TRIED:
        raise _unreadable(event, text)
    candidates = [statements for end in ends if (statements := _parsed(event, text[:end]))]
    if len(candidates) != 1:
        raise _unreadable(event, text)
    return candidates[0]


def _parsed(event: Event, text: str) -> list[str]:
    try:
        return _split(event, text)
    except ParseError:
        return []


def _only(event: Event, candidates: Sequence[_Fired]) -> str:
    found = [each for each in candidates if _fits(event, each)]
    fitting = {each.text for each in found if not each.undone} or {each.text for each in found}
    if len(fitting) != 1:
        raise _unreadable(event, event.source)
    return fitting.pop()


def _fits(event: Event, candidate: _Fired) -> bool:
    if candidate.tag not in {event.tag, None}:
        return False
    if candidate.of_column not in {None, any(str(each.get("type")).endswith(" column") for each in event.objects)}:
        return False
    name = candidate.created
    return name is None or any(name in _names(each.get("identity") or "") for each in event.objects)


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


# --- Syntax trees --------------------------------------------------------------------------------------

_SHALLOW: Final = 20_000
_DEEP: Final = 400_000
"""Characters outside of literals. A tree is built recursively, at up to 500 bytes of stack for a level, and each takes
two characters: what is longer than the first gets a stack of its own, what is longer than the second is not read."""
_STACK: Final = 256 << 20
_ROWS: Final = re.compile(
    r"(?:insert|update|delete|merge|copy|values|do|call|truncate|lock|set|reset|show|fetch|listen|notify|(?:select|with)(?!.*\b(?:into|create)\b))\b",
    re.IGNORECASE | re.DOTALL,
)
"""What fires no events whatever it holds, and is often long."""


def tree_of(text: str) -> Any:
    """The syntax tree of one statement. Raises pglast.parser.ParseError."""
    return read_with_room(lambda statement: parse_sql(statement)[0].stmt, text)


def read_with_room(parse: Callable[[str], Any], text: str) -> Any:
    """What a parser makes of one statement. Raises pglast.parser.ParseError."""
    if len(text) <= _SHALLOW:
        return parse(text)
    if length_outside(text) > _DEEP:
        raise ParseError("a statement that is too long", 0)
    return _with_room(lambda: parse(text))


def _with_room(work: Callable[[], Any]) -> Any:
    done: list[Any] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as exc:
            failed.append(exc)

    before = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=run, name="deep statement")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


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
        "AlterSystem", "Prepare", "Execute", "Deallocate", "DeclareCursor", "Fetch",
        "ClosePortal", "Listen", "Notify", "Unlisten", "Load", "Lock", "Discard", "Do", "Call",
        "ConstraintsSet", "Truncate", "CreateEventTrig", "AlterEventTrig",
    }
)
# fmt: on


def fires(stmt: Any) -> bool:
    """Whether a statement fires event triggers. REINDEX counts as silent: it does from 17 on only."""
    name = type(stmt).__name__.removesuffix("Stmt")
    if isinstance(stmt, ast.SelectStmt):  # of a UNION the leftmost has it
        return stmt.intoClause is not None or (stmt.larg is not None and fires(stmt.larg))
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
