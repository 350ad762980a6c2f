"""Reading a consistent base snapshot: transactions that see an exported snapshot, and the rows as COPY text.

In: the name of a snapshot whose exporter keeps its transaction open. Out: rows, verbatim as COPY writes them,
in batches of whole lines. Never: a write to the source, or a table silently read as empty because it was
rewritten or truncated after the snapshot was taken: `begin_copy` finds that, and the snapshot is taken anew; or a lock
of more than one table at a time.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg import sql
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from archiver.errors import SchemaMoved, Unsendable
from archiver.format.digest import RowDigest
from archiver.policy.parts import PageRange
from archiver.postgres import search_path
from archiver.postgres.default_objects import read_comments
from archiver.postgres.session import connect, fetch, postgres_error
from archiver.postgres.snapshot_tables import TableInfo, copy_out_query, needs_query
from archiver.postgres.tables_only import tables_only

BATCH_ROWS: Final = 4096
_ABOUT_VALUES: Final = re.compile(r"(22|54|XX)...")
"""Of a COPY to us: a value that is too large as text, that has no such text in UTF-8, or that is damaged."""
WHOLE_TABLE: Final = PageRange()
LOCK_TIMEOUT: Final = timedelta(milliseconds=200)
"""How long a session of ours waits for a lock, at most."""


@asynccontextmanager
async def snapshot_connection(
    dsn: str, snapshot: str | None, *, purpose: str = "snapshot"
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection in a read-only transaction that sees `snapshot`, or one of its own for None."""
    conn = await connect(dsn, purpose=purpose)
    try:
        await begin_snapshot(conn, snapshot)
        yield conn
    finally:
        await conn.close()


async def begin_snapshot(conn: psycopg.AsyncConnection[Any], snapshot: str | None) -> None:
    """Begin a transaction that sees the snapshot. Raises PostgresError once its exporter has ended."""
    try:
        await conn.execute(_begin(conn, snapshot))
    except psycopg.Error as exc:
        raise postgres_error(exc, f"snapshot {snapshot}") from exc


def _begin(conn: psycopg.AsyncConnection[Any], snapshot: str | None) -> sql.Composed:
    """No query may come before SET TRANSACTION SNAPSHOT."""
    statements = [sql.SQL("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"), *tables_only(conn)]
    seen = [sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot)] if snapshot is not None else []
    return sql.SQL("; ").join([*statements, *seen])


# --- One table -----------------------------------------------------------------------------------------

_LOCK: Final[LiteralString] = """
SET LOCAL lock_timeout = {timeout}; LOCK TABLE ONLY {table} IN ACCESS SHARE MODE;
SELECT {name}::pg_catalog.regclass::pg_catalog.oid = {oid} AND pg_catalog.pg_relation_filenode({oid}) = {filenode}
"""


async def begin_copy(conn: psycopg.AsyncConnection[Any], snapshot: str | None, table: TableInfo) -> None:
    """Begin a transaction that sees the snapshot and has ACCESS SHARE on this table, and no lock beside it.

    Raises PostgresUnavailable when the table was rewritten, truncated, renamed or dropped since the snapshot: to that
    snapshot it would look empty (PostgreSQL documentation, 13.6 Caveats). InTheWay when its lock is not to be had.
    """
    name = sql.Identifier(table.schema, table.name)
    lock = sql.SQL(_LOCK).format(
        timeout=int(LOCK_TIMEOUT.total_seconds() * 1000),
        table=name,
        name=name.as_string(conn),
        oid=table.oid,
        filenode=table.filenode,
    )
    try:
        cursor = await conn.execute(sql.SQL("; ").join([_begin(conn, snapshot), lock]))
        while cursor.nextset():
            pass
        row = await cursor.fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as exc:
        raise _moved(str(exc.diag.message_primary)) from exc
    except psycopg.Error as exc:
        raise postgres_error(exc, f"table {table.label}") from exc
    if row != (True,):
        raise _moved(f"rewritten, truncated or renamed: {table.label}")


async def end_copy(conn: psycopg.AsyncConnection[Any]) -> None:
    """End that transaction, and with it the lock. Raises PostgresError."""
    try:
        await conn.rollback()
    except psycopg.Error as exc:
        raise postgres_error(exc, "ending a copy") from exc


def _moved(what: str) -> SchemaMoved:
    return SchemaMoved(
        f"the schema changed while the snapshot was being taken: {what}", hint="Take the snapshot again."
    )


# --- Rows ----------------------------------------------------------------------------------------------


async def copy_range(
    conn: psycopg.AsyncConnection[Any], table: TableInfo, pages: PageRange = WHOLE_TABLE
) -> AsyncGenerator[list[bytes], None]:
    """The rows of a range of pages in batches: one COPY text line each, its newline included.

    Batches come straight from libpq, at a quarter of the cost of psycopg's row at a time (0.4 against 1.4 µs
    a row). Whoever may stop early closes the generator (`contextlib.aclosing`): that cancels the COPY.
    """
    try:
        query = copy_out_query(table, pages)
        path = search_path.of_users(conn) if needs_query(table, pages) else nullcontext()  # for the planner
        async with path, conn.cursor() as cur, cur.copy(query):
            reader = _BatchReader(conn.pgconn)
            while rows := await conn.wait(reader.next_batch()):
                yield rows
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as exc:
        raise _moved(f"table {table.label}: {exc.diag.message_primary}") from exc
    except psycopg.Error as exc:
        error = postgres_error(exc, f"table {table.label}")
        if _ABOUT_VALUES.fullmatch(exc.sqlstate or ""):
            raise Unsendable(error.message, where=error.where, hint=_TAKE_IT_OUT) from exc
        raise error from exc


_TAKE_IT_OUT: Final = (
    "Look for values of more than 500 MB and split or delete them, then: archiver snapshot; or write the table into"
    " source.exclude."
)


class _BatchReader:
    """Takes from libpq all the rows it holds. Generators in psycopg's manner: they yield what to wait for."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._ended = False

    def next_batch(self) -> Generator[Wait, Ready | int, list[bytes]]:
        """At least one row, waiting only while there is none; an empty list at the end of the COPY."""
        rows: list[bytes] = []
        while not self._ended and len(rows) < BATCH_ROWS:
            size, data = self._pgconn.get_copy_data(1)
            if size > 0:
                rows.append(bytes(data))
            elif size < 0:
                yield from self._end()
            elif rows:
                break
            else:
                yield from self._more_input()
        return rows

    def _end(self) -> Generator[Wait, Ready | int, None]:
        while self._pgconn.is_busy():
            yield from self._more_input()
        result = self._pgconn.get_result()
        while self._pgconn.get_result() is not None:
            pass
        if result is None or result.status != ExecStatus.COMMAND_OK:
            raise _error_of(result)
        self._ended = True

    def _more_input(self) -> Generator[Wait, Ready | int, None]:
        while not (yield Wait.R):
            pass
        self._pgconn.consume_input()


def _error_of(result: PGresult | None) -> psycopg.Error:
    if result is None:
        return psycopg.OperationalError("the COPY ended without a result")
    return error_from_result(result, "utf-8")


async def digest_table(
    conn: psycopg.AsyncConnection[Any], table: TableInfo, pages: PageRange = WHOLE_TABLE
) -> RowDigest:
    """The digest of a table's rows as this connection sees them, columns as in the source's `table`."""
    digest = RowDigest()
    async with aclosing(copy_range(conn, table, pages)) as batches:
        async for rows in batches:
            digest.update(rows)
    return digest


# --- The database --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """What is archived beside the rows.

    `extensions` are (name, version, schema), `materialized_views` (schema, name, populated), `settings` those of
    ALTER DATABASE and ALTER ROLE … IN DATABASE, which a dump of one database leaves out: (role or "", name=value).
    `comments` are those of archiver.postgres.default_objects; older base snapshots have none.
    """

    server_version: int
    database: str
    encoding: str
    collation: str
    character_type: str
    locale_provider: str | None
    locale: str | None
    has_public_schema: bool
    large_objects: int
    extensions: list[tuple[str, str, str]]
    unlogged_tables: list[tuple[str, str]]
    materialized_views: list[tuple[str, str, bool]]
    settings: list[tuple[str, str]]
    roles: list[str]
    comments: dict[str, str | None] = field(default_factory=dict)

    @property
    def search_path(self) -> str | None:
        """That of ALTER DATABASE, if there is one."""
        prefix = "search_path="
        given = (setting for role, setting in self.settings if not role and setting.startswith(prefix))
        return next((setting.removeprefix(prefix) for setting in given), None)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "comments" or value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        pairs = ("extensions", "unlogged_tables", "materialized_views", "settings")
        return cls(**{**data, **{name: [tuple(item) for item in data[name]] for name in pairs}})


_DATABASE: Final[LiteralString] = """
select jsonb_build_object(
  'server_version', current_setting('server_version_num')::int,
  'database', d.datname,
  'encoding', pg_catalog.pg_encoding_to_char(d.encoding),
  'collation', d.datcollate,
  'character_type', d.datctype,
  'locale_provider', to_jsonb(d) -> 'datlocprovider',
  'locale', coalesce(to_jsonb(d) -> 'datlocale', to_jsonb(d) -> 'daticulocale'),
  'has_public_schema', exists (select from pg_catalog.pg_namespace where nspname = 'public'),
  'large_objects', (select count(*) from pg_catalog.pg_largeobject_metadata),
  'extensions', (select coalesce(jsonb_agg(jsonb_build_array(extname, extversion, nspname) order by extname), '[]')
                   from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = extnamespace),
  'unlogged_tables', (select coalesce(jsonb_agg(jsonb_build_array(nspname, relname) order by nspname, relname), '[]')
                        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = relnamespace
                       where relkind = 'r' and relpersistence = 'u' and nspname <> 'archiver'),
  'materialized_views', (select coalesce(jsonb_agg(jsonb_build_array(nspname, relname, relispopulated)
                                                   order by nspname, relname), '[]')
                           from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = relnamespace
                          where relkind = 'm' and nspname <> 'archiver'),
  'settings', (select coalesce(jsonb_agg(jsonb_build_array(coalesce(r.rolname, ''), setting) order by 1), '[]')
                 from pg_catalog.pg_db_role_setting s left join pg_catalog.pg_roles r on r.oid = s.setrole
                cross join unnest(s.setconfig) setting where s.setdatabase = d.oid),
  'roles', (select coalesce(jsonb_agg(rolname order by rolname), '[]') from pg_catalog.pg_roles
             where rolname !~ '^pg_'))
from pg_catalog.pg_database d where d.datname = current_database()
"""
"""to_jsonb(d) reads columns that only some versions have: datlocprovider from 15, datlocale from 17."""


async def describe_database(conn: psycopg.AsyncConnection[Any]) -> DatabaseInfo:
    """Facts about the source that a restore compares with its target or tells its operator."""
    [(described,)] = await fetch(conn, _DATABASE, "describing the database")
    return DatabaseInfo.from_json(described | {"comments": await read_comments(conn)})
