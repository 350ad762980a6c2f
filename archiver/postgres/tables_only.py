"""Reads tables by their names, and never a view that somebody put in the place of one meanwhile."""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

# Since 2024 (CVE-2024-7348).
_ONLY: Final[LiteralString] = "SET LOCAL restrict_nonsystem_relation_kind = 'view, foreign-table'"
_SINCE: Final = {12: 20, 13: 16, 14: 13, 15: 8, 16: 4}
"""The minor version of each major one from which on the server knows it; from 17 on all do."""


def tables_only(conn: psycopg.AsyncConnection[Any]) -> list[sql.SQL]:
    """What to say in a transaction, if the server knows it: the code of such a view would run with our rights."""
    major, minor = divmod(conn.info.server_version, 10000)
    return [sql.SQL(_ONLY)] if minor >= _SINCE.get(major, 0) else []
