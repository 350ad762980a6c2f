"""The settings of every session of ours, whatever those of the server, the database and the role are.

Values are read and written in one canonical form, no statement ends or means something else because of a setting, and
no time limit ends a session. What a server has that is neither set here nor harmless, a test finds
(tests/integration/test_settings.py).
"""

from __future__ import annotations

from typing import Final, LiteralString

SESSION: Final[dict[str, str]] = {
    "DateStyle": "ISO,MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "timezone_abbreviations": "Default",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "xmlbinary": "base64",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "quote_all_identifiers": "off",
    "search_path": "",
    "row_security": "off",  # a policy that would hide rows is an error, not a smaller copy
    "gin_fuzzy_search_limit": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "exit_on_error": "off",
    "client_min_messages": "warning",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",  # compiling a query of the catalog took seconds, running it milliseconds
}
"""Sent at connection start: a replication connection cannot run SET before 17.

But the search_path of others is set behind it: see archiver.postgres.search_path."""

NEWER: Final[LiteralString] = """
SELECT pg_catalog.set_config(name, CASE WHEN name ~ '_timeout$' THEN '0' ELSE '' END, false) FROM pg_catalog.pg_settings
 WHERE context = 'user' AND name <> ALL ('{tcp_user_timeout,wal_sender_timeout}')
   AND (name ~ '_timeout$' OR name = 'restrict_nonsystem_relation_kind')
"""
"""What only some servers know, and limits on time that later ones may have. It is no error to know of none."""


def as_options(left_out: frozenset[str] = frozenset()) -> str:
    """For libpq's `options`, where a space is escaped."""
    kept = ((name, value.replace(" ", "\\ ")) for name, value in SESSION.items() if name not in left_out)
    return " ".join(f"-c {name}={value}" for name, value in kept)
