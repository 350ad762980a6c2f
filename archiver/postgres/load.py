"""Loading a target: is it empty, its schema entry by entry, rows by COPY, and how far the restore has come.

In: a connection to the target, entries of a dump, COPY text. Out: a loaded database and what had to be left out.
Never: a target that holds anything else is touched.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from archiver.errors import PostgresError
from archiver.format.dump import Entry
from archiver.format.dump_roles import Skipped, split_ownership
from archiver.postgres import calling, dispensable, own_schema, search_path, stand_ins, unchecked_keys
from archiver.postgres.session import connect, fetch, postgres_error
from archiver.postgres.snapshot_tables import copy_in_query
from archiver.postgres.stand_ins import REAL
from archiver.postgres.stored_settings import assignment
from archiver.postgres.users_code import Guarded

# --- The target ----------------------------------------------------------------------------------------

_THERE: Final[LiteralString] = """
with own as (
    select classid, objid from pg_catalog.pg_depend where deptype = 'e'
), names as (
    select oid, nspname from pg_catalog.pg_namespace
     where nspname !~ '^pg_' and nspname not in ('information_schema', 'archiver')
)
select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
                      when 'f' then 'foreign table' else 'table' end, n.nspname || '.' || c.relname
  from pg_catalog.pg_class c join names n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
   and ('pg_catalog.pg_class'::regclass, c.oid) not in (select * from own)
union all
select 'function', n.nspname || '.' || p.proname from pg_catalog.pg_proc p join names n on n.oid = p.pronamespace
 where ('pg_catalog.pg_proc'::regclass, p.oid) not in (select * from own)
union all
select 'type', n.nspname || '.' || t.typname from pg_catalog.pg_type t join names n on n.oid = t.typnamespace
 where t.typtype in ('e', 'd', 'r') and ('pg_catalog.pg_type'::regclass, t.oid) not in (select * from own)
union all
select 'schema', n.nspname from names n
 where n.nspname <> 'public' and ('pg_catalog.pg_namespace'::regclass, n.oid) not in (select * from own)
union all
select 'publication', p.pubname from pg_catalog.pg_publication p
union all
select 'large object', l.oid::text from pg_catalog.pg_largeobject_metadata l
order by 1, 2
"""
_SHOWN: Final = 5


async def ensure_empty(conn: psycopg.AsyncConnection[Any]) -> None:
    """Raise PostgresError when the target holds anything beside extensions and a restore's own progress."""
    found = [f"{kind} {name}" for kind, name in await fetch(conn, _THERE, "looking into the target")]
    if not found:
        return
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise PostgresError(
        f"the target database is not empty: {', '.join(found[:_SHOWN])}{more}",
        where=conn.info.dbname,
        hint="Create a new database and restore into that; nothing in this one was touched.",
    )


_CLAIM: Final = int.from_bytes(b"archiver", "big")
_AT_WORK: Final = _CLAIM + 1
_LOCK: Final[LiteralString] = "SELECT pg_catalog.pg_advisory_lock(%s)"
_SHARE: Final[LiteralString] = "SELECT pg_catalog.pg_advisory_lock_shared(%s)"


async def claim(conn: psycopg.AsyncConnection[Any]) -> None:
    """Keep every other restore out of this database while the connection lives. Raises PostgresError.

    None of its connections are left either: a server finishes the statement of a client that was killed, and a commit
    that was on its way still counts.
    """
    try:
        await _prepare(conn)
        await conn.execute("SET lock_timeout = '15s'")
        await conn.execute(_LOCK, (_CLAIM,))
        await conn.execute(_LOCK, (_AT_WORK,))
        await conn.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (_AT_WORK,))
        await conn.execute("SET lock_timeout = 0")
        await own_schema.require_own(conn)
    except psycopg.errors.LockNotAvailable as exc:
        where, hint = conn.info.dbname, "Wait for it, or end its connections to the target."
        raise PostgresError("another restore into this database is running", where=where, hint=hint) from exc
    except psycopg.Error as exc:
        raise postgres_error(exc, "claiming the target") from exc


@asynccontextmanager
async def worker(dsn: str, *, purpose: str, path: str | None = None) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """One more connection of a restore that has claimed the target. Raises PostgresError.

    `path` is the search_path that functions of the database expect, where it is not the server's own.
    """
    conn = await connect(dsn, purpose=purpose)
    try:
        await expect_path(conn, path)
        await _prepare(conn)
        await conn.execute(_SHARE, (_AT_WORK,))
        yield conn
    except psycopg.Error as exc:
        raise postgres_error(exc, purpose) from exc
    finally:
        await conn.close()


async def expect_path(conn: psycopg.AsyncConnection[Any], path: str | None) -> None:
    """Have functions of the database find what they name, before its settings are restored. Raises PostgresError."""
    try:
        if path is not None:
            await search_path.put_aside(conn, path)
    except psycopg.Error as exc:
        raise postgres_error(exc, "search_path") from exc


async def _prepare(conn: psycopg.AsyncConnection[Any]) -> None:
    """Have the server end a statement whose client is gone, where its system lets it see that."""
    with suppress(psycopg.errors.InvalidParameterValue):
        await conn.execute("SET client_connection_check_interval = '1s'")


async def known_settings(conn: psycopg.AsyncConnection[Any]) -> frozenset[str]:
    """Names of all settings that the target knows. Raises PostgresError."""
    return frozenset(name for (name,) in await fetch(conn, "SELECT name FROM pg_catalog.pg_settings"))


_ROLES: Final[LiteralString] = "select rolname from pg_catalog.pg_roles where __REAL__".replace("__REAL__", REAL)


async def existing_roles(conn: psycopg.AsyncConnection[Any]) -> set[str]:
    """All roles of the server, PostgreSQL's predefined ones included, but no stand-in of a restore."""
    return {name for (name,) in await fetch(conn, _ROLES, "listing the roles")}


async def possible_owners(conn: psycopg.AsyncConnection[Any]) -> set[str]:
    """The roles that the connected role may give objects to."""
    query = _ROLES + " and pg_catalog.pg_has_role(oid, 'MEMBER')"
    return {name for (name,) in await fetch(conn, query, "listing the roles")}


async def unlogged_tables(conn: psycopg.AsyncConnection[Any]) -> list[str]:
    """Those of the target, from the base snapshot or made since: logical decoding never sees their rows."""
    query: LiteralString = """
        select n.nspname || '.' || c.relname from pg_catalog.pg_class c
          join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where c.relkind = 'r' and c.relpersistence = 'u' order by 1"""
    return [label for (label,) in await fetch(conn, query, "listing unlogged tables")]


async def drop_public_schema(conn: psycopg.AsyncConnection[Any]) -> None:
    """For a source without schema `public`, which every new database has. Only an empty one goes."""
    await _run(conn, sql.SQL("DROP SCHEMA IF EXISTS public"), "dropping schema public")


# --- Schema --------------------------------------------------------------------------------------------


@asynccontextmanager
async def transaction(conn: psycopg.AsyncConnection[Any], where: str) -> AsyncIterator[None]:
    """A transaction whose BEGIN and COMMIT, too, fail with errors of ours."""
    try:
        async with conn.transaction():
            yield
    except psycopg.Error as exc:
        raise postgres_error(exc, where) from exc


async def run_script(conn: psycopg.AsyncConnection[Any], preamble: Entry, entries: Iterable[Entry]) -> list[Skipped]:
    """Run entries in order, each on its own; returns those that the target refused and can do without.

    Raises PostgresError that names the entry. Inside the caller's transaction, all or nothing stays.
    """
    await _run(conn, preamble.sql, "the schema's preamble")
    skipped: list[Skipped] = []
    for entry in entries:
        if dispensable.is_entry(entry.type):
            refused = await attempt(conn, [entry.sql.encode()], entry.label, entry.type, dispensable.REFUSALS)
            skipped += [refused] if refused else []
        elif entry.type == "FK CONSTRAINT":
            skipped += await _add_foreign_key(conn, entry)
        else:
            skipped += await _run_owned(conn, entry)
    return skipped


async def _add_foreign_key(conn: psycopg.AsyncConnection[Any], entry: Entry) -> list[Skipped]:
    try:
        return await unchecked_keys.add(conn, entry, f"{entry.schema}.{entry.name}")
    except psycopg.Error as exc:
        raise postgres_error(exc, entry.label) from exc


async def _run_owned(conn: psycopg.AsyncConnection[Any], entry: Entry) -> list[Skipped]:
    """Create an object, then give it to its owner; an owner who may not have it there is for the report."""
    bare, given = split_ownership(entry)
    if bare.type in calling.TYPES:
        return await calling.make(conn, bare, given) or await _give(conn, entry, given)
    await _run(conn, bare.sql, entry.label)
    return await _give(conn, entry, given)


async def _give(conn: psycopg.AsyncConnection[Any], entry: Entry, given: Iterable[str]) -> list[Skipped]:
    denied = psycopg.errors.InsufficientPrivilege
    refused = [await attempt(conn, [part.encode()], entry.label, part.strip(), denied) for part in given]
    return [skipped for skipped in refused if skipped is not None]


async def refresh_views(conn: psycopg.AsyncConnection[Any], views: Sequence[tuple[str, str]]) -> list[Skipped]:
    """Fill materialized views, (schema, name), in whatever order they need; returns those that could not be.

    One that reads another fails until that one is filled: rounds go on while any of them gets through.
    """
    waiting, failed = list(views), list[Skipped]()
    while waiting:
        outcome = {view: await _refresh(conn, view) for view in waiting}
        failed = [skipped for skipped in outcome.values() if skipped is not None]
        if len(failed) == len(waiting):
            break
        waiting = [view for view, skipped in outcome.items() if skipped is not None]
    return failed


async def _refresh(conn: psycopg.AsyncConnection[Any], view: tuple[str, str]) -> Skipped | None:
    label = f"MATERIALIZED VIEW {'.'.join(view)}"
    query = sql.SQL("REFRESH MATERIALIZED VIEW {}").format(sql.Identifier(*view))
    queries: list[sql.Composed | bytes] = [search_path.enter(conn), query, search_path.LEAVE.encode()]
    return await attempt(conn, queries, label, "REFRESH MATERIALIZED VIEW", psycopg.DatabaseError)


async def apply_settings(
    conn: psycopg.AsyncConnection[Any], settings: Iterable[tuple[str, str]], roles: Collection[str]
) -> list[Skipped]:
    """Give the database the settings of ALTER DATABASE and ALTER ROLE … IN DATABASE, as (role or "", name=value).

    The last step of a restore: from the next session on they hold, default_transaction_read_only included.
    """
    skipped: list[Skipped] = []
    for role, setting in settings:
        if role and role not in roles:
            skipped.append(Skipped("DATABASE SETTING", f"no role {role}", setting))
        elif (refused := await _apply_setting(conn, role, setting)) is not None:
            skipped.append(refused)
    return skipped


async def _apply_setting(conn: psycopg.AsyncConnection[Any], role: str, setting: str) -> Skipped | None:
    database = sql.Identifier(conn.info.dbname)
    owner = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), database)
    if not role:
        owner = sql.SQL("DATABASE {}").format(database)
    alter = sql.SQL("ALTER {} SET {}").format(owner, assignment(setting))
    return await attempt(conn, [alter], "DATABASE SETTING", setting, psycopg.DatabaseError)


async def attempt(
    conn: psycopg.AsyncConnection[Any],
    queries: Sequence[sql.Composed | bytes],
    label: str,
    statement: str,
    bearable: type[psycopg.Error] | tuple[type[psycopg.Error], ...],
) -> Skipped | None:
    """Run all or none; what failed in a bearable way is for the report. A broken connection never is."""
    try:
        async with conn.transaction():
            for query in queries:
                await conn.execute(query)
    except psycopg.Error as exc:
        if conn.broken or not isinstance(exc, bearable):
            raise postgres_error(exc, label) from exc
        return Skipped(label, postgres_error(exc).message, statement)
    return None


# --- Rows ----------------------------------------------------------------------------------------------


async def copy_in(
    conn: psycopg.AsyncConnection[Any],
    schema: str,
    table: str,
    columns: Sequence[str],
    chunks: AsyncIterable[bytes],
    *,
    guarded: Guarded | None = None,
) -> int:
    """COPY text into a table; returns its count of rows. A chunk may end anywhere; large ones are cheaper.

    A `guarded` one is written as its owner, inside the caller's transaction.
    """
    try:
        if guarded is not None:
            return await guarded.load(conn, columns, chunks)
        async with search_path.of_users(conn), conn.cursor() as cur:
            async with cur.copy(copy_in_query(schema, table, columns)) as copy:
                async for chunk in chunks:
                    await copy.write(chunk)
            return cur.rowcount
    except psycopg.Error as exc:
        raise postgres_error(exc, f"table {schema}.{table}") from exc


# --- Progress ------------------------------------------------------------------------------------------

_CREATE_PROGRESS: Final[LiteralString] = """
create schema if not exists archiver;
create table if not exists archiver.restore_progress (key text primary key, value jsonb not null);
"""
_WRITE_PROGRESS: Final[LiteralString] = """
insert into archiver.restore_progress as p (key, value) values (%s, %s)
on conflict (key) do update set value = excluded.value
"""


async def create_progress(conn: psycopg.AsyncConnection[Any]) -> None:
    """In the caller's transaction. Raises PostgresError where somebody else has made the schema meanwhile."""
    await _run(conn, _CREATE_PROGRESS + stand_ins.CREATE, "creating the progress table")
    await _holds_progress(conn)


async def _holds_progress(conn: psycopg.AsyncConnection[Any]) -> bool:
    try:
        return await own_schema.holds_progress(conn)
    except psycopg.Error as exc:
        raise postgres_error(exc, "looking for the progress") from exc


async def read_progress(conn: psycopg.AsyncConnection[Any]) -> dict[str, Any] | None:
    """What an interrupted restore left; None where there was none."""
    if not await _holds_progress(conn):
        return None
    return dict(await fetch(conn, "select key, value from archiver.restore_progress", "reading the progress"))


async def write_progress(cursor: psycopg.AsyncCursor[Any], **values: Any) -> None:
    """Set keys, in the transaction of whatever they speak of."""
    try:
        await cursor.executemany(_WRITE_PROGRESS, [(key, Jsonb(value)) for key, value in values.items()])
    except psycopg.Error as exc:
        raise postgres_error(exc, "writing the progress") from exc


async def drop_progress(conn: psycopg.AsyncConnection[Any]) -> None:
    """Remove the progress table and its schema: a restored database holds nothing of archiver's."""
    await _run(
        conn,
        "drop table if exists archiver.restore_progress, archiver.relations, archiver.stand_ins;"
        " drop schema if exists archiver cascade",  # with the functions of run_as
        "dropping the progress",
    )


async def _run(conn: psycopg.AsyncConnection[Any], query: str | sql.Composed | sql.SQL, where: str) -> None:
    try:
        await conn.execute(query.encode() if isinstance(query, str) else query)
    except psycopg.Error as exc:
        raise postgres_error(exc, where) from exc
