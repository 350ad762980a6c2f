"""What a base snapshot copies: the tables of a database and which of their columns and rows.

In: a connection inside the snapshot's transaction. Out: one TableInfo a table that stores rows, partitions'
leaves included, as pg_dump would dump them. Never: a temporary or system table, or schema `archiver`; nor a query,
for which the planner would run some code, of a table whose owner may give it what code he likes at any moment.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from archiver.errors import PostgresError
from archiver.names import TableName
from archiver.policy.parts import PageRange
from archiver.postgres import search_path, users_code
from archiver.postgres.no_input import WRITABLE
from archiver.postgres.session import postgres_error


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table and what of it is copied. `columns` are those that COPY FROM accepts, in the source's order.

    `pages` is the heap, `bytes` includes TOAST. `condition` is the WHERE clause that an extension gave for its
    configuration table, or "". `filenode` is the file that the snapshot's catalog names. `is_trusted`: a query of it
    runs no code of anybody's but the reader's and superusers'; a restore looks for itself. `published`: its changes are
    archived too; otherwise its rows are as old as the base snapshot. `readable`: False where the server could not send
    some row of it: the base snapshot has none then, and what changes them means nothing.
    """

    schema: str
    name: str
    columns: tuple[str, ...]
    pages: int
    bytes: int
    rows_estimate: int
    oid: int
    filenode: int
    is_heap: bool = True
    unlogged: bool = False
    condition: str = ""
    extension: str | None = None
    is_trusted: bool = False
    published: bool = True
    readable: bool = True

    @property
    def has_rows(self) -> bool:
        """False where only the definition is archived: an unlogged table, which a crash would empty too."""
        return not self.unlogged

    @property
    def can_be_cut(self) -> bool:
        return self.is_heap and not self.condition and self.is_trusted

    @property
    def table(self) -> TableName:
        return TableName(self.schema, self.name)

    @property
    def label(self) -> str:
        """For messages."""
        return str(self.table)

    def to_json(self) -> dict[str, Any]:
        usual = {"is_trusted"} | {name for name in ("published", "readable") if getattr(self, name)}
        kept = {name: value for name, value in asdict(self).items() if name not in usual}
        return {**kept, "columns": list(self.columns)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(**{**data, "columns": tuple(data["columns"])})


_TABLES: Final[LiteralString] = """
select n.nspname as schema, c.relname as name, c.oid::bigint as oid, c.relfilenode::bigint as filenode,
       array(select a.attname::text from pg_catalog.pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and __WRITABLE__
              order by a.attnum) as columns,
       pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::int as pages,
       pg_catalog.pg_table_size(c.oid) as bytes,
       greatest(c.reltuples, 0)::bigint as rows_estimate,
       coalesce(am.amname, 'heap') = 'heap' as is_heap,
       c.relpersistence = 'u' as unlogged,
       coalesce(e.extcondition[array_position(e.extconfig, c.oid)], '') as condition,
       e.extname as extension,
       not exists (select from (select c.oid union select relid from pg_catalog.pg_partition_ancestors(c.oid)) t (oid)
                     join pg_catalog.pg_class p on p.oid = t.oid join pg_catalog.pg_roles o on o.oid = p.relowner
                    where not o.rolsuper and o.rolname <> current_user) as is_trusted
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_am am on am.oid = c.relam
left join pg_catalog.pg_depend d
       on d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.objsubid = 0
      and d.deptype = 'e' and d.refclassid = 'pg_catalog.pg_extension'::regclass
left join pg_catalog.pg_extension e on e.oid = d.refobjid
where c.relkind = 'r' and c.relpersistence <> 't'
  and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'archiver')
  and (e.oid is null or c.oid = any (e.extconfig))
order by n.nspname, c.relname
""".replace("__WRITABLE__", WRITABLE)
"""A table that belongs to an extension is its script's to fill, except those it marks as configuration with
pg_extension_config_dump: pg_dump dumps just these, filtered by the condition the extension gave. Who owns a
partitioned table gives its partitions indexes, whoever owns those."""


async def list_tables(conn: psycopg.AsyncConnection[Any]) -> list[TableInfo]:
    """Every table that can be copied, by name."""
    try:
        async with conn.cursor(row_factory=dict_row) as cur:
            rows = await (await cur.execute(_TABLES)).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc, "listing the tables") from exc
    guarded = await users_code.by_name(conn)
    return [_table(row, runs_code=(row["schema"], row["name"]) in guarded) for row in rows]


def _table(row: dict[str, Any], *, runs_code: bool) -> TableInfo:
    is_trusted = row["is_trusted"] and not runs_code
    return TableInfo(**{**row, "columns": tuple(row["columns"]), "is_trusted": is_trusted})


# --- The statements that copy --------------------------------------------------------------------------


def copy_out_query(table: TableInfo, pages: PageRange) -> sql.Composed:
    """COPY of the rows in a range of pages, of this table alone: rows of inheritance children are their own.

    For a whole table it is no query. One leaves `search_path.of_users` once it is planned: the text of a row names
    things in full. Raises PostgresError where there must be a query, and may be none.
    """
    if not needs_query(table, pages):
        return _copy_table(table.schema, table.name, table.columns, sql.SQL("TO STDOUT"))
    if not table.is_trusted:
        raise PostgresError(
            "its rows can only be had by a query, which would run code of its owner's or of others",
            where=f"table {table.label}",
            hint="Have a superuser own it, without indexes or statistics that use functions of others, or exclude it.",
        )
    return sql.SQL("COPY (SELECT * FROM (SELECT {} FROM ONLY {} {}) AS r WHERE ({}) <> '') TO STDOUT").format(
        sql.SQL(", ").join(map(sql.Identifier, table.columns)),
        sql.Identifier(table.schema, table.name),
        _where(table, pages),
        sql.SQL(search_path.LEAVE),
    )


def needs_query(table: TableInfo, pages: PageRange) -> bool:
    """Whether only some of its rows are wanted."""
    return bool(table.condition) or not pages.is_whole_table


def copy_in_query(schema: str, table: str, columns: Collection[str]) -> sql.Composed:
    """COPY of text rows into a table. Without columns: a table that has none that take a value."""
    return _copy_table(schema, table, columns, sql.SQL("FROM STDIN"))


def _copy_table(schema: str, table: str, columns: Collection[str], where: sql.SQL) -> sql.Composed:
    names = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns))) if columns else sql.SQL("")
    return sql.SQL("COPY {}{} {}").format(sql.Identifier(schema, table), names, where)


def _where(table: TableInfo, pages: PageRange) -> sql.Composable:
    if table.condition:
        return sql.SQL(table.condition)  # its extension's SQL, used as pg_dump uses it
    lower = sql.SQL("WHERE ctid >= {}::pg_catalog.tid").format(f"({pages.first},0)")
    if pages.end is None:
        return lower
    return lower + sql.SQL(" AND ctid < {}::pg_catalog.tid").format(f"({pages.end},0)")
