"""The journal: what archiver's own triggers say at the source, as rows of one table in the stream.

In: rows of the table `archiver.journal`, which nobody but its owner can write. Out: entries, and what three of their
kinds say. Whatever else is in schema `archiver` is nobody's business: a restore leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from archiver.errors import IntegrityError, UsageError
from archiver.format.pgmessages import Relation, Row
from archiver.lsn import Lsn

SCHEMA: Final = "archiver"
TABLE: Final = "journal"

DDL: Final = "ddl"
TEXT: Final = "text"
"""The text of several statements, to which their entries refer by its id."""
ROWS: Final = "rows"
LOST: Final = "lost"
POINT: Final = "point"

MAX_NAME: Final = 63
"""Bytes of a restore point's name, as of any name in PostgreSQL (NAMEDATALEN)."""


class Entry(NamedTuple):
    """One row. `lsn` is where its transaction stood when it was written: they rise within a transaction."""

    id: str
    kind: str
    lsn: Lsn
    said: dict[str, Any]


def is_own(relation: Relation) -> bool:
    """Whether a table is archiver's own: no restore has it."""
    return relation.namespace == SCHEMA


def is_journal(relation: Relation) -> bool:
    return relation.namespace == SCHEMA and relation.name == TABLE


def kind_of(relation: Relation, row: Row) -> str:
    """The kind of an entry, before all of it is read; empty for a row that has none."""
    names = [column.name for column in relation.columns]
    value = row[names.index("kind")] if "kind" in names and len(names) == len(row) else None
    return value.decode("ascii", "replace") if isinstance(value, bytes) else ""


def parse_entry(relation: Relation, row: Row) -> Entry:
    """Raises IntegrityError for a row that no trigger of archiver wrote."""
    values = {column.name: value for column, value in zip(relation.columns, row, strict=False)}
    try:
        identity, kind, content = (_text(values[name]) for name in ("id", "kind", "content"))
        said = json.loads(content) if kind in _OBJECTS else {}
        return Entry(identity, kind, Lsn.parse(said.get("lsn", "0/0")), said)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as exc:
        raise IntegrityError("a row of the journal cannot be read", hint=NEWER) from exc


_OBJECTS: Final = frozenset({DDL, TEXT, ROWS, LOST, POINT})
NEWER: Final = "It may come from a later version of archiver: restore with that one."


def _text(value: Any) -> str:
    if not isinstance(value, bytes):
        raise TypeError("no text")
    return value.decode()


@dataclass(frozen=True, slots=True)
class ComputedRows:
    """Rows of one table, each as the text of its record; the `first` of its messages replaces all that it holds."""

    schema: str
    name: str
    first: bool
    rows: Sequence[str]


def computed_rows(entry: Entry) -> ComputedRows:
    """Raises IntegrityError for what no trigger of archiver wrote."""
    try:
        schema, name, first, rows = (entry.said[key] for key in ("schema", "name", "first", "rows"))
        "".join([schema, name, *rows])
    except (KeyError, TypeError) as exc:
        raise _unreadable(entry) from exc
    if not isinstance(first, bool) or not isinstance(rows, list):
        raise _unreadable(entry)
    return ComputedRows(schema, name, first, rows)


def _unreadable(entry: Entry) -> IntegrityError:
    what = "rows of a rewritten table cannot be read in the stream"
    return IntegrityError(what, where=str(entry.lsn), hint=NEWER)


class Point(NamedTuple):
    name: str
    lsn: Lsn


def restore_point(entry: Entry) -> Point | None:
    """The restore point that an entry names; None where it is none that a reader would accept."""
    name, at = entry.said.get("name"), entry.said.get("at")
    if not isinstance(name, str) or not isinstance(at, str):
        return None
    if not 0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME or not name.isprintable():
        return None
    try:
        return Point(name, Lsn.parse(at))
    except UsageError:
        return None


REASONS: Final[dict[str, str]] = {
    "failed": "it could not be written down",
    "rows": "a table was rewritten with values that replay cannot compute, and its rows could not travel",
    "like-temporary": "a table was made LIKE a temporary one",
    "temporary": "it stands on something temporary",
    "untold": "what was run cannot be told from what was written down",
    "moment": "a literal means the moment it ran at (now, today, tomorrow or yesterday)",
    "session": "settings or the role changed while it ran",
    "excluded": "a table became an excluded one",
    "keyless": "a table lost its key",
    "unpublished": "new tables could not be published",
    "unreadable": "what was said of it cannot be read",
    "uncounted": "it could not be written down, nor could that be",
    "changed": "the schema changed, and no event trigger captured how",
    "changed-back": "the schema changed, and back again before it could be looked at",
    "capture-began": "event triggers capture schema changes from here on; what changed before is not known",
    "capture-ended": "the event triggers that capture schema changes are gone or disabled",
    "unannounced": "a table was met that no statement is known to have made",
    "not-seen": "the source's catalog could not be read: whether the schema changed is not known",
}
"""Why something was lost to replay: codes, for a manifest shows no name of the database's, and what they mean."""


def words_for(reason: str) -> str:
    """What a code means; a later version's is passed on as it is."""
    return REASONS.get(reason, reason)


def reason_of(entry: Entry) -> str:
    """The code in an entry of kind LOST."""
    reason = entry.said.get("reason")
    return reason if isinstance(reason, str) and reason in REASONS else "unreadable"
