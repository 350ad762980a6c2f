"""Names that a server chose for indexes, told by the source, and given to the target's where it chose others.

An index made for a partition, or by LIKE, is called after the columns of the one it repeats as they were called when
that one was made. No dump brings those names back, so a target may choose others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

# What an index is but for its name: the text of its definition behind it, and the index that it is a part of, which is
# one at most; a planner may ask of tables, too, which have several.
REST: Final[LiteralString] = """
substr(pg_get_indexdef(c.oid), strpos(pg_get_indexdef(c.oid), quote_ident(c.relname)) + length(quote_ident(c.relname)))
    || coalesce((SELECT ' OF ' || inhparent::regclass FROM pg_inherits WHERE inhrelid = c.oid LIMIT 1), '')
"""
_ALIKE: Final[LiteralString] = """
SELECT c.relname::text FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
 WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) AND __REST__ = $2 ORDER BY c.oid
""".replace("__REST__", REST)


async def give_names(conn: psycopg.AsyncConnection[Any], indexes: Iterable[Mapping[str, str]]) -> None:
    """Rename what is called otherwise than at the source. psycopg's errors pass through."""
    cursor = psycopg.AsyncRawCursor(conn)
    rename = sql.SQL("ALTER INDEX {} RENAME TO {}")
    meanwhile: list[tuple[sql.Identifier, sql.Identifier]] = []  # for two of them may have each other's name
    for number, index in enumerate(indexes):
        await cursor.execute(_ALIKE, [index["schema"], index["rest"]])
        alike = [name for (name,) in await cursor.fetchall()]
        if alike and index["name"] not in alike:
            passing = f"archiver_renamed_{number}"
            await conn.execute(rename.format(sql.Identifier(index["schema"], alike[-1]), sql.Identifier(passing)))
            meanwhile.append((sql.Identifier(index["schema"], passing), sql.Identifier(index["name"])))
    for old, new in meanwhile:
        await conn.execute(rename.format(old, new))
