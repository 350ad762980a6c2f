"""Reading a restored copy for proof: digests of its tables, what is not valid in it, the answer to a query.

In: a connection string of the copy. Out: plain facts; policy/drill.py judges them. It never writes to the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from archiver.format.digest import RowDigest
from archiver.names import ConstraintName, TableName
from archiver.policy.drill import TableState
from archiver.postgres import search_path, users_code
from archiver.postgres.session import connect, fetch, postgres_error
from archiver.postgres.snapshot import copy_range, digest_table
from archiver.postgres.snapshot_tables import TableInfo, list_tables
from archiver.postgres.users_code import Guarded
from archiver.tasks import task_group

Progress = Callable[[int, int], None]
"""Called with the tables done and the tables in all."""


async def tables_of(dsn: str) -> dict[TableName, TableInfo]:
    """The copy's tables."""
    async with await connect(dsn, purpose="drill") as conn:
        return {table.table: table for table in await list_tables(conn)}


async def read_tables(
    dsn: str, wanted: Mapping[TableName, TableInfo], *, jobs: int, progress: Progress
) -> dict[TableName, TableState]:
    """The state of each wanted table that is there, read as `wanted` describes it: largest first, `jobs` at once."""
    there = await tables_of(dsn)
    states = {name: TableState(there[name].columns, None) for name in wanted if name in there}
    queue = [name for name in states if set(wanted[name].columns) == set(there[name].columns)]
    queue.sort(key=lambda name: there[name].bytes)
    wanted = {name: replace(wanted[name], is_trusted=there[name].is_trusted) for name in there if name in wanted}
    total, done = len(queue), 0

    async def work() -> None:
        nonlocal done
        async with await connect(dsn, purpose="drill") as conn:
            while queue:
                name = queue.pop()
                states[name] = TableState(wanted[name].columns, await _digest(conn, wanted[name]))
                done += 1
                progress(done, total)

    async with task_group() as group:
        for number in range(min(jobs, total)):
            group.create_task(work(), name=f"digest job {number}")
    return states


async def _digest(conn: psycopg.AsyncConnection[Any], table: TableInfo) -> RowDigest:
    return await digest_table(conn, table) if table.has_rows else RowDigest()


async def with_rows(dsn: str, tables: Sequence[TableInfo]) -> list[str]:
    """Which of these tables hold any row, by name."""
    async with await connect(dsn, purpose="drill") as conn:
        return [table.label for table in tables if await _has_row(conn, table)]


async def _has_row(conn: psycopg.AsyncConnection[Any], table: TableInfo) -> bool:
    async with aclosing(copy_range(conn, replace(table, condition=""))) as batches:
        return await anext(batches, None) is not None


_NOT_VALIDATED: Final[LiteralString] = """
select n.nspname::text, coalesce(r.relname, t.typname)::text, c.conname::text
from pg_catalog.pg_constraint c
join pg_catalog.pg_namespace n on n.oid = c.connamespace
left join pg_catalog.pg_class r on r.oid = c.conrelid
left join pg_catalog.pg_type t on t.oid = c.contypid
where not c.convalidated and coalesce((pg_catalog.to_jsonb(c) ->> 'conenforced')::bool, true)
order by 1, 2, 3
"""
"""A constraint NOT ENFORCED (18) is never validated. to_jsonb reads a column that only some versions have."""

_INVALID_INDEXES: Final[LiteralString] = """
select n.nspname || '.' || c.relname
from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where not i.indisvalid and c.relkind = 'i' and n.nspname !~ '^pg_toast'
order by 1
"""
"""That of a partitioned table is invalid as long as a partition lacks it, which may be as at the source."""


async def not_validated(conn: psycopg.AsyncConnection[Any]) -> list[ConstraintName]:
    """Constraints that are NOT VALID."""
    found = await fetch(conn, _NOT_VALIDATED, "looking at the constraints")
    return [ConstraintName(TableName(schema, table), name) for schema, table, name in found]


async def invalid_indexes(conn: psycopg.AsyncConnection[Any]) -> list[str]:
    """Indexes whose making failed or did not end."""
    return [name for (name,) in await fetch(conn, _INVALID_INDEXES, "looking at the indexes")]


_FOREIGN_KEYS: Final[LiteralString] = """
with wanted as (select * from unnest(%(schemas)s::name[], %(names)s::name[]))
select n.nspname as schema, r.relname as name, r.relkind = 'r' as plain, c.conname as key,
       fn.nspname as parent_schema, f.relname as parent, f.relkind = 'r' as parent_plain,
       array(select a.attname::text from unnest(c.conkey) with ordinality k(num, at)
               join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.num order by k.at) as columns,
       array(select a.attname::text from unnest(c.confkey) with ordinality k(num, at)
               join pg_catalog.pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.num order by k.at)
         as parents,
       array(select pg_catalog.format('OPERATOR(%%I.%%s)', s.nspname, o.oprname)
               from unnest(c.conpfeqop) with ordinality k(oid, at) join pg_catalog.pg_operator o on o.oid = k.oid
               join pg_catalog.pg_namespace s on s.oid = o.oprnamespace order by k.at) as operators
from pg_catalog.pg_constraint c
join pg_catalog.pg_class r on r.oid = c.conrelid join pg_catalog.pg_namespace n on n.oid = r.relnamespace
join pg_catalog.pg_class f on f.oid = c.confrelid join pg_catalog.pg_namespace fn on fn.oid = f.relnamespace
where c.contype = 'f' and c.conparentid = 0 and c.convalidated
  and not coalesce((pg_catalog.to_jsonb(c) ->> 'conperiod')::bool, false)
  and ((n.nspname, r.relname) in (select * from wanted) or r.relkind = 'p')
  and ((fn.nspname, f.relname) in (select * from wanted) or f.relkind = 'p')
order by 1, 2, 4
"""
"""Those of wanted tables, and of partitioned tables, as PostgreSQL looks at them (ri_triggers.c): by the operators that
the constraint names. One over a PERIOD (18) compares otherwise."""


async def dangling(conn: psycopg.AsyncConnection[Any], tables: Collection[TableName]) -> list[str]:
    """Foreign keys between these tables that rows violate, as `schema.table constraint`.

    While changes are replayed PostgreSQL checks none: session_replication_role is `replica`.
    """
    try:
        async with conn.cursor(row_factory=dict_row) as cur:
            wanted = {"schemas": [table.schema for table in tables], "names": [table.name for table in tables]}
            keys = await (await cur.execute(_FOREIGN_KEYS, wanted)).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc, "listing the foreign keys") from exc
    guarded = await users_code.by_name(conn)
    return [f"{key['schema']}.{key['name']} {key['key']}" for key in keys if await _dangles(conn, key, guarded)]


async def _dangles(
    conn: psycopg.AsyncConnection[Any], key: dict[str, Any], guarded: Mapping[TableName, Guarded]
) -> bool:
    equal = [
        sql.SQL("p.{} {} c.{}").format(sql.Identifier(parent), sql.SQL(operator), sql.Identifier(column))
        for parent, operator, column in zip(key["parents"], key["operators"], key["columns"], strict=True)
    ]
    known = [sql.SQL("c.{} IS NOT NULL").format(sql.Identifier(column)) for column in key["columns"]]
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} c WHERE {} AND NOT EXISTS (SELECT FROM {} p WHERE {}))").format(
        _only(key["plain"], key["schema"], key["name"]),
        sql.SQL(" AND ").join(known),
        _only(key["parent_plain"], key["parent_schema"], key["parent"]),
        sql.SQL(" AND ").join(equal),
    )
    both = TableName(key["schema"], key["name"]), TableName(key["parent_schema"], key["parent"])
    one = next((guarded[table] for table in both if table in guarded), None)
    tables = [sql.Identifier(*table) for table in both]
    return await _is_true(conn, query, f"foreign key {key['key']}", one, tables)


async def _is_true(
    conn: psycopg.AsyncConnection[Any],
    query: sql.Composed,
    where: str,
    guarded: Guarded | None,
    tables: Sequence[sql.Identifier],
) -> bool:
    if guarded is not None:
        try:
            return await guarded.ask(conn, query, tables) == "true"
        except psycopg.Error as exc:
            raise postgres_error(exc, where) from exc
    async with search_path.of_users(conn):
        [(found,)] = await fetch(conn, query, where)
    return bool(found)


def _only(plain: bool, schema: str, name: str) -> sql.Composed:
    table = sql.Identifier(schema, name)
    return sql.SQL("ONLY {}").format(table) if plain else sql.SQL("{}").format(table)


async def ask(conn: psycopg.AsyncConnection[Any], query: str) -> list[str | None] | None:
    """The first row of the operator's query as text, None if there is none. It may not write. Raises PostgresError."""
    try:
        async with conn.transaction():
            await conn.execute("SET TRANSACTION READ ONLY")
            async with search_path.of_users(conn):
                result = (await conn.execute(query.encode())).pgresult
    except psycopg.Error as exc:
        raise postgres_error(exc, "drill.query") from exc
    if result is None or result.ntuples == 0:
        return None
    values = [result.get_value(0, column) for column in range(result.nfields)]
    return [None if value is None else value.decode() for value in values]
