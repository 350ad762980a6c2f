"""The drops of a sql_drop event: an object's identity in, DROP of that one object out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pglast.parser import ParseError

from archiver.errors import IntegrityError
from archiver.format.ddl import Event, first_line, parse, quote

DROPPED_AS: Final[dict[str, str]] = {
    "function": "ROUTINE",
    "procedure": "ROUTINE",
    "aggregate": "ROUTINE",
    "statistics object": "STATISTICS",
    "foreign-data wrapper": "FOREIGN DATA WRAPPER",
    "composite type": "TYPE",
}
_NOT_BY_NAME: Final = frozenset({"default acl", "role", "subscription", "large object"})


def drop_statements(event: Event) -> Iterator[str]:
    """DROP … CASCADE for each object that was named in a drop; what depended on it goes with it, as it did."""
    for dropped in event.objects:
        kind = dropped["type"]
        if kind not in _NOT_BY_NAME:
            cascade = "" if kind == "user mapping" else " CASCADE"
            yield _one_drop(f"DROP {DROPPED_AS.get(kind, kind.upper())} IF EXISTS {_dropped_name(dropped)}{cascade}")


def _one_drop(statement: str) -> str:
    """Raises IntegrityError where an identity makes it more than the drop of one object."""
    try:
        [parsed] = parse(statement)
    except (ParseError, ValueError) as exc:
        raise IntegrityError(f"what was dropped cannot be told: {first_line(statement)}") from exc
    if len(getattr(parsed.stmt, "objects", None) or (1,)) != 1 or "Drop" not in type(parsed.stmt).__name__:
        raise IntegrityError(f"this is more than one drop: {first_line(statement)}")
    return statement


def _dropped_name(dropped: Mapping[str, Any]) -> str:
    """Its identity; of two kinds that has no quotes: they are told by their address (pg_identify_object_as_address)."""
    match dropped:
        case {"type": "user mapping", "names": [role], "args": [server]}:
            return f"FOR {quote(role)} SERVER {quote(server)}"
        case {"type": "transform", "names": [type_], "args": [language]}:
            return f"FOR {type_} LANGUAGE {quote(language)}"
    return str(dropped["identity"])
