"""The logical messages that archiver itself writes: their prefixes, and what two of them say.

In: messages of the stream. Out: the subtransaction that wrote one, for the server gives a message the xid of its whole
transaction; and the rows that the source computed anew. Anybody may write messages under these prefixes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from archiver.errors import IntegrityError
from archiver.format.pgmessages import LogicalMessage

DDL: Final = "archiver.ddl"
ROWS: Final = "archiver.rows"
LOST: Final = "archiver.ddl_lost"
RESTORE_POINT: Final = "archiver.restore_point"


def subtransaction(message: LogicalMessage) -> int | None:
    """The xid that wrote it, None where it does not say: other people's messages, and those of older triggers."""
    if message.prefix not in {DDL, ROWS}:
        return None
    try:
        found = json.loads(message.content).get("subxact")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, int) else None


@dataclass(frozen=True, slots=True)
class ComputedRows:
    """Rows of one table, each as the text of its record; the `first` of its messages replaces all that it holds."""

    schema: str
    name: str
    first: bool
    rows: Sequence[str]


def computed_rows(message: LogicalMessage) -> ComputedRows:
    """Raises IntegrityError for what no trigger of archiver wrote."""
    try:
        raw = json.loads(message.content)
        schema, name, first, rows = raw["schema"], raw["name"], raw["first"], raw["rows"]
        "".join([schema, name, *rows]).encode()  # half of a surrogate pair is in no text of PostgreSQL
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise _unreadable(message) from exc
    if not isinstance(first, bool) or not isinstance(rows, list):
        raise _unreadable(message)
    return ComputedRows(schema, name, first, rows)


def _unreadable(message: LogicalMessage) -> IntegrityError:
    return IntegrityError(
        "rows of a rewritten table cannot be read in the stream",
        where=str(message.lsn),
        hint="They may come from a later version of archiver: restore with that one.",
    )
