"""Tables as the source's triggers described them, where a statement could not be repeated: SQL that makes them.

In: what an entry of the journal tells from the catalog. Out: CREATE TABLE, and defaults as they came out there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from archiver.format.ddl import Event, literal, qualified, quote


def create_table(table: Mapping[str, Any]) -> str:
    """CREATE TABLE or CREATE FOREIGN TABLE for a table as the trigger described it."""
    foreign = table["server"] is not None
    kind = "FOREIGN TABLE" if foreign else "UNLOGGED TABLE" if table["persistence"] == "u" else "TABLE"
    name = qualified(table["schema"], table["name"])
    text = f"CREATE {kind} {name} ({', '.join(map(_column, table['columns'] or ()))})"
    if foreign:
        return f"{text} SERVER {quote(table['server'])}{_options(table['server_options'])}"
    using = f" USING {quote(table['method'])}" if table["method"] else ""
    storage = f" WITH ({', '.join(map(_storage, table['options']))})" if table["options"] else ""
    return f"{text}{using}{storage}"


def set_defaults(event: Event) -> Iterator[str]:
    """Defaults as they came out at the source: literals such as 'now' became constants there."""
    for each in event.defaults:
        table = qualified(each["schema"], each["name"])
        yield f"ALTER TABLE ONLY {table} ALTER COLUMN {quote(each['column'])} SET DEFAULT {each['default']}"


def _column(column: Mapping[str, Any]) -> str:
    collation = f" COLLATE {column['collation']}" if column["collation"] else ""
    default = f" DEFAULT {column['default']}" if column["default"] else ""
    not_null = " NOT NULL" if column["not_null"] else ""
    return f"{quote(column['name'])} {column['type']}{_options(column['options'])}{collation}{default}{not_null}"


def _options(options: Sequence[Sequence[str]] | None) -> str:
    if not options:
        return ""
    return f" OPTIONS ({', '.join(f'{quote(name)} {literal(value)}' for name, value in options)})"


def _storage(option: str) -> str:
    name, _, value = option.partition("=")
    return f"{name} = {literal(value)}"
