"""Settings as pg_db_role_setting stores them, `name=value`, written as ALTER … SET takes them.

They are never set in a session of ours: a limit of a millisecond would end it, and a role would be changed.
"""

from __future__ import annotations

import re
from typing import Final

from psycopg import sql

_LISTS: Final = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
"""Whose elements the server quotes when it stores them (GUC_LIST_QUOTE, guc_tables.c): extensions can have none."""
_FOLDED: Final = frozenset({"search_path", "temp_tablespaces"})
"""Lists of identifiers. The others are of file names."""
_ELEMENT: Final = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",][^,]*?))\s*(?:,|$)')


def assignment(setting: str) -> sql.Composed:
    """What follows SET: the name, and the value as a literal, or as one for each element of a list."""
    name, _, value = setting.partition("=")
    values = _elements(name.lower(), value) if name.lower() in _LISTS else [value]
    return sql.SQL("{} TO {}").format(
        sql.Identifier(*name.split(".")), sql.SQL(", ").join(sql.Literal(each) for each in values)
    )


def _elements(name: str, value: str) -> list[str]:
    """A value that is no list, which the server could not have read either, is one element."""
    found, at = list[str](), 0
    while at < len(value) and (match := _ELEMENT.match(value, at)):
        quoted, plain = match.groups()
        found.append(quoted.replace('""', '"') if plain is None else plain.lower() if name in _FOLDED else plain)
        at = match.end()
    return found if found and at == len(value) else [value]
