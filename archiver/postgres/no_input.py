"""Types whose values nobody can write: PostgreSQL makes them itself, and their input functions refuse every text.

A table has columns of them where somebody copied a catalog (CREATE TABLE x AS TABLE pg_class). They come back empty,
and a restore says so; pg_dump's copy of such a table could not be loaded at all.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg

from archiver.postgres.session import fetch

_TYPES: Final[LiteralString] = (
    "'{pg_catalog.pg_node_tree,pg_catalog.pg_ndistinct,pg_catalog.pg_dependencies,pg_catalog.pg_mcv_list,"
    "pg_catalog.pg_brin_bloom_summary,pg_catalog.pg_brin_minmax_multi_summary,pg_catalog.gtsvector}'"
    "::pg_catalog.regtype[]"
)
WRITABLE: Final[LiteralString] = "(a.attgenerated = '' AND a.atttypid <> ALL (" + _TYPES + "))"
"""Of a column `a` of pg_attribute: it takes values."""

_COLUMNS: Final[LiteralString] = """
SELECT pg_catalog.concat(n.nspname, '.', c.relname, '.', a.attname, ' (', pg_catalog.format_type(a.atttypid, NULL), ')')
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.oid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
   AND NOT __WRITABLE__ ORDER BY 1
""".replace("__WRITABLE__", WRITABLE)


async def empty_columns(conn: psycopg.AsyncConnection[Any]) -> list[str]:
    """Columns of such types, each as `schema.table.column (type)`. Raises PostgresError."""
    return [label for (label,) in await fetch(conn, _COLUMNS, "looking for columns that take no value")]
