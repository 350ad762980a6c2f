"""Which tables `source.exclude` means: by their names, and of a partitioned one every partition, also later ones.

In: names as the configuration writes them, `schema.table`, bare or quoted as in SQL. Out: the tables that are there,
the names that are nobody's, and literals for SQL that tells the same in the source. It decides nothing: `init` and
`check` refuse unknown names, a base snapshot does not, for a table may be dropped at any time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg

from archiver.errors import UsageError
from archiver.format.ddl import literal
from archiver.postgres.session import postgres_error

_PART: Final = r'(?:"((?:[^"]|"")+)"|([^".]+))'
_QUOTED: Final = re.compile(rf"{_PART}\.{_PART}")


@dataclass(frozen=True, slots=True)
class Excluded:
    """`oids` are those of tables, partitions included; `unknown` the names that are no table's."""

    oids: frozenset[int]
    unknown: tuple[str, ...]

    def require_known(self) -> None:
        """Raise UsageError for names that are no table's."""
        if self.unknown:
            raise UsageError(
                f"source.exclude names no table: {', '.join(self.unknown)}",
                hint="Write each as schema.table, or take it off the list.",
            )


def spellings(name: str) -> list[tuple[str, str]]:
    """The schemas and tables that a name may mean. A bare one may hold dots and quotes itself."""
    return [pair for pair in dict.fromkeys(_spellings(name)) if all(pair)]


def _spellings(name: str) -> Iterator[tuple[str, str]]:
    for dot in re.finditer(r"\.", name):
        yield name[: dot.start()], name[dot.end() :]
    if match := _QUOTED.fullmatch(name):
        quoted, bare, quoted_table, bare_table = match.groups()
        yield (
            bare if quoted is None else quoted.replace('""', '"'),
            bare_table if quoted_table is None else quoted_table.replace('""', '"'),
        )


_TABLES: Final[LiteralString] = """
with recursive named as (
    select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p')
       and (n.nspname, c.relname) in (
           select * from rows from (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[])))
    union
    select i.inhrelid from pg_catalog.pg_inherits i join named on named.oid = i.inhparent
      join pg_catalog.pg_class c on c.oid = i.inhrelid and c.relispartition
)
select oid::bigint from named
"""


async def excluded_tables(conn: psycopg.AsyncConnection[Any], names: Collection[str]) -> Excluded:
    """What a configuration excludes of a database."""
    oids: set[int] = set()
    unknown: list[str] = []
    try:
        for name in names:
            schemas, tables = zip(*spellings(name), strict=True) if spellings(name) else ((), ())
            found = await (await conn.execute(_TABLES, (list(schemas), list(tables)))).fetchall()
            oids.update(oid for (oid,) in found)
            if not found:
                unknown.append(name)
    except psycopg.Error as exc:
        raise postgres_error(exc, "looking for the excluded tables") from exc
    return Excluded(frozenset(oids), tuple(unknown))


def arrays(names: Collection[str]) -> tuple[str, str]:
    """Two literals of SQL, an array of schemas and one of tables, for the names that are excluded."""
    pairs = [pair for name in names for pair in spellings(name)]
    return _array(schema for schema, _ in pairs), _array(table for _, table in pairs)


def _array(items: Iterator[str]) -> str:
    return literal("{" + ",".join(map(_element, items)) + "}")


def _element(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
