"""DDL events of the stream: an entry of the journal in, the statements that do the same at a target out.

In: what an entry of kind DDL says, as archiver.postgres.triggers writes it, and the text that it refers to. Out: an
`Event`. Which statement of its text fired it, archiver.format.ddl_told finds out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from sys import getsizeof
from typing import Any, Final

from pglast import parse_sql

from archiver.errors import IntegrityError
from archiver.format.ddl_rights import NO_RIGHTS, Rights
from archiver.format.journal import NEWER

CREATES_FILLED: Final = frozenset({"CREATE TABLE AS", "SELECT INTO"})
"""Their rows come before their end event: the table is made at the start event, from its description at the end."""
RUNS_SCRIPTS: Final = frozenset({"CREATE EXTENSION", "ALTER EXTENSION"})
"""What happens between their two events is done by the extension's own script, at the target too."""


_STATEMENT: Final = 400
"""Bytes of a statement that is read, beside its text."""


class Text:
    """A text that several events refer to, or the body of the function that ran; `parsed` is what was read of it."""

    def __init__(self, source: str = "", bodies: Sequence[str] = ()) -> None:
        self.source = source
        self.bodies = bodies
        self.parsed: dict[Any, Any] = {}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Text:
        """Raises IntegrityError."""
        source, bodies = said.get("source") or "", said.get("bodies") or ()
        if not isinstance(source, str) or not all(isinstance(body, str) for body in bodies):
            raise IntegrityError("an entry of the journal about a text cannot be read", hint=NEWER)
        return cls(source, bodies)

    @property
    def size(self) -> int:
        return len(self.source) + sum(map(len, self.bodies))

    @cached_property
    def weight(self) -> int:
        """Bytes of memory, with what may be read of it: its statements, and some words of each."""
        return sum(2 * getsizeof(each) + _STATEMENT * each.count(";") for each in (self.source, *self.bodies))


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the source. `kind` is that of PostgreSQL: ddl_command_start, ddl_command_end or sql_drop.

    `nth`: among those of its text that this transaction did not undo.
    """

    kind: str
    tag: str
    role: str
    settings: Mapping[str, str | None]
    schemas: Sequence[str]
    session_role: str | None = None
    rights: Rights = NO_RIGHTS
    source: str = ""
    nth: int = 1
    text: Text | None = None
    objects: Sequence[Mapping[str, Any]] = ()
    temporary: frozenset[str] = frozenset()
    created: Sequence[Mapping[str, Any]] = ()
    missing: Mapping[str, Mapping[str, Any]] | None = None
    defaults: Sequence[Mapping[str, Any]] = ()
    indexes: Sequence[Mapping[str, str]] = ()
    bounds: Sequence[Mapping[str, str]] = ()
    configured: Sequence[str] = ()


SETTINGS: Final = (
    *("search_path", "DateStyle", "IntervalStyle", "TimeZone", "standard_conforming_strings", "backslash_quote"),
    *("array_nulls", "transform_null_equals", "xmloption", "bytea_output", "extra_float_digits", "lc_monetary"),
    *("lc_numeric", "lc_time", "default_table_access_method", "default_toast_compression"),
    *("default_text_search_config", "createrole_self_grant", "quote_all_identifiers", "timezone_abbreviations"),
    *("xmlbinary",),
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
            nth=said.get("nth", 1),
            text=text,
            objects=said.get("objects") or (),
            temporary=frozenset(said.get("temporary") or ()),
            created=said.get("created") or (),
            missing=said.get("missing"),
            defaults=said.get("defaults") or (),
            indexes=said.get("indexes") or (),
            bounds=said.get("bounds") or (),
            configured=said.get("configured") or (),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise IntegrityError("an entry of the journal about DDL cannot be read", hint=NEWER) from exc


def _given(text: Text | None) -> Text:
    if text is None:
        raise ValueError("a text that is not there")
    return text


def _known_settings(said: Mapping[str, str | None]) -> Mapping[str, str | None]:
    if not said.keys() <= set(SETTINGS):
        raise ValueError("a setting that no trigger tells of")
    return said


# --- Texts ---------------------------------------------------------------------------------------------


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


def first_line(text: str) -> str:
    """How messages quote a statement."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 100 else f"{line[:100]}…"


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
