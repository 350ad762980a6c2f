"""What a server's error says, told without the values of rows that it may quote.

In: an error of psycopg's. Out: one line. Where PostgreSQL, or a function of a user's, may have put data into the words,
the state's name stands for them (PostgreSQL documentation, appendix A), with the names of table, column and constraint.
"""

from __future__ import annotations

import re
from typing import Final

import psycopg

_QUOTING: Final = re.compile(r"(22|23|38|44|P0|XX)...|42601")
"""Data exceptions, violations, what code of others says, internal errors, and a syntax error, which quotes the text."""

_TOO_LARGE: Final = re.compile(r"invalid memory alloc request size \d+")
"""PostgreSQL's own words (mcxt.c) for a text of more than 1 GB; they are never translated, and have but a number."""

_OWN_WORDS: Final = frozenset({"exec_stmt_raise", "exec_stmt_assert"})
"""Where PL/pgSQL raises what a function's author wrote, under whatever state."""

_NAMES: Final = {"P0001": "a function of the database raised an exception"}
_FROM_COPY: Final = re.compile(r"^COPY ([^,\n]+), line (\d+)(?:, column ([^:\n]+))?", re.MULTILINE)
_QUOTED_VALUE: Final = re.compile(r': ".*"', re.DOTALL)


def message_of(exc: psycopg.Error) -> str:
    """What went wrong, without data."""
    if exc.sqlstate is not None and _may_quote(exc):
        return f"{name_of(exc.sqlstate)} ({exc.sqlstate}){_place(exc)}"
    if exc.sqlstate is None and isinstance(exc, psycopg.DataError):
        return "a value could not be read"  # psycopg's own words, which quote it
    return exc.diag.message_primary or next(iter(str(exc).strip().splitlines()), "") or type(exc).__name__


def hint_of(exc: psycopg.Error) -> str | None:
    """The server's own hint, where it is the server's own."""
    return None if _may_quote(exc) else exc.diag.message_hint


def without_values(text: str) -> str:
    """A line of a client program's, which has no state: what stands in quotes behind a colon is a value, not a name."""
    return _QUOTED_VALUE.sub(': "***"', text)


def name_of(state: str) -> str:
    """The words of a state's name in appendix A: 22P02 is "invalid text representation"."""
    try:
        name = psycopg.errors.lookup(state).__name__.rstrip("_")
    except KeyError:
        return "an error that the database's own code raised"
    return _NAMES.get(state) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _may_quote(exc: psycopg.Error) -> bool:
    if _TOO_LARGE.fullmatch(exc.diag.message_primary or ""):
        return False
    return _QUOTING.fullmatch(exc.sqlstate or "") is not None or exc.diag.source_function in _OWN_WORDS


def _place(exc: psycopg.Error) -> str:
    """Names alone; for an internal error the place in PostgreSQL's source, which is what a report of it needs."""
    diag = exc.diag
    table = ".".join(name for name in (diag.schema_name, diag.table_name) if name)
    named = {"table": table, "column": diag.column_name, "type": diag.datatype_name, "constraint": diag.constraint_name}
    if copied := _FROM_COPY.search(diag.context or ""):
        named |= {"table": named["table"] or copied[1], "line": copied[2], "column": named["column"] or copied[3]}
    if (exc.sqlstate or "").startswith("XX"):
        named |= {"function": diag.source_function}
    told = ", ".join(f"{kind} {name}" for kind, name in named.items() if name)
    return f": {told}" if told else ""
