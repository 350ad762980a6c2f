"""Runs SQL that brings users' code with it as the role that it belongs to, so that it can become nobody else.

SET ROLE would be no containment: RESET ROLE undoes it. So a statement runs inside a function SECURITY DEFINER that its
role owns, where PostgreSQL refuses to change roles. It stands in schema `archiver` of the target, which that role may
not use: it cannot name the function, and so can neither change nor replace it.

What the code could leave behind, to be run later with the restoring role's rights, is gone before anything else is:
cursors WITH HOLD, whose queries run at the commit; deferred triggers, which do the same; settings; temporary objects,
which would stand for what the next role's statement names; and prepared statements, of which we use none from the first
time on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from weakref import WeakKeyDictionary

import psycopg
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import TransactionStatus

from archiver.errors import PostgresError
from archiver.postgres import own_schema, search_path

Conn = psycopg.AsyncConnection[Any]

CONTEXT: Final = "PL/pgSQL function archiver.run_as_"
"""In the context of an error, where its statement was run by us."""

_BODY: Final[LiteralString] = """
DECLARE
    statement pg_catalog.text;
    found pg_catalog.int8;
    counts pg_catalog.int8[] := '{}';
BEGIN
    FOREACH statement IN ARRAY statements LOOP
        EXECUTE statement;
        GET DIAGNOSTICS found = ROW_COUNT;
        counts := pg_catalog.array_append(counts, found);
    END LOOP;
    RETURN counts;
END
"""
_ROLE: Final[LiteralString] = """
SELECT r.oid, me.rolname::pg_catalog.text, me.rolsuper, p.oid IS NOT NULL
  FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_roles me ON me.rolname = current_user
  LEFT JOIN pg_catalog.pg_proc p
    ON p.oid = pg_catalog.to_regprocedure(pg_catalog.concat('archiver.run_as_', r.oid, '(pg_catalog.text[])'))
   AND p.proowner = r.oid AND p.prosecdef AND p.prosrc = %s AND p.proconfig IS NULL
 WHERE r.rolname = %s
"""
_MAKE: Final[LiteralString] = """
SELECT pg_catalog.pg_advisory_xact_lock({lock});
CREATE OR REPLACE FUNCTION {function}(statements pg_catalog.text[]) RETURNS pg_catalog.int8[]
LANGUAGE plpgsql SECURITY DEFINER AS {body};
REVOKE ALL ON FUNCTION {function} FROM PUBLIC;
"""
_GIVE: Final[LiteralString] = """
GRANT USAGE, CREATE ON SCHEMA archiver TO {role};
ALTER FUNCTION {function} OWNER TO {role};
SET LOCAL ROLE {role};
GRANT EXECUTE ON FUNCTION {function} TO {me};
RESET ROLE;
REVOKE USAGE, CREATE ON SCHEMA archiver FROM {role};
"""
_OURS: Final[LiteralString] = """
SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings
 WHERE source = 'session' AND name <> 'search_path' AND name !~ '[.]'
"""
_KNOWN: Final[LiteralString] = "SELECT pg_catalog.lower(name) FROM pg_catalog.pg_settings"
# Their functions could make a cursor, or another of the kind, at the commit.
_DEFERRED: Final[LiteralString] = """
SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.quote_ident(c.relname), pg_catalog.quote_ident(t.tgname),
       CASE t.tgenabled WHEN 'A' THEN 'ALWAYS' WHEN 'R' THEN 'REPLICA' ELSE '' END,
       pg_catalog.has_schema_privilege(%s, n.oid, 'USAGE')
  FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE t.tgdeferrable AND NOT t.tgisinternal AND t.tgenabled <> 'D'
"""
_REPLICATION: Final[LiteralString] = "SELECT pg_catalog.current_setting('session_replication_role')"
_LOCK: Final = int.from_bytes(b"run as", "big")


@dataclass(slots=True)
class _Session:
    """Settings of ours, and the names, in lower case, of all that the server knows: another version may lack some."""

    ours: dict[str, str]
    known: frozenset[str]
    calls: int = 0


_sessions: WeakKeyDictionary[Conn, _Session] = WeakKeyDictionary()


async def run(
    conn: Conn, role: str, statement: str, settings: Mapping[str, str] | None = None, *, silenced: bool = False
) -> int:
    """Run one statement as a role that the connected role may become; returns how many rows it concerned.

    By default names are found as `search_path.of_users` finds them. Inside the caller's transaction, which an error
    leaves failed, or in one of its own. `silenced`: the caller disables all triggers that fire before it commits.
    All errors are psycopg's, but PostgresError for a role that is not there.
    """
    [count] = await run_all(conn, role, [statement], settings, silenced=silenced)
    return count


async def run_all(
    conn: Conn,
    role: str,
    statements: Sequence[str | bytes],
    settings: Mapping[str, str] | None = None,
    *,
    silenced: bool = False,
) -> list[int]:
    """The same with several statements one after the other; how many rows each concerned."""
    async with in_transaction(conn):
        counts = await _run(conn, role, statements, settings or {}, silenced=silenced)
        await conn.execute("DISCARD TEMP")
        _sessions[conn].calls += 1
    return counts


def calls(conn: Conn) -> int:
    """How often code of users may have run in the session: nothing temporary outlives that."""
    return _sessions[conn].calls if conn in _sessions else 0


async def _run(
    conn: Conn, role: str, statements: Sequence[str | bytes], settings: Mapping[str, str], *, silenced: bool
) -> list[int]:
    """In a transaction. Temporary objects stay."""
    await _know_session(conn)
    function = await _function(conn, role)
    await _enter(conn, settings)
    counts = await _call(conn, function, statements)
    if await _leave(conn) or not silenced:
        await _fire_deferred(conn, role, function)
    return counts


_ASK: Final[LiteralString] = """
CREATE SCHEMA IF NOT EXISTS archiver;
CREATE TEMPORARY TABLE archiver_answer (answer pg_catalog.text);
GRANT INSERT ON pg_temp.archiver_answer TO {role};
"""


async def ask(conn: Conn, role: str, query: sql.Composed, lent: Sequence[sql.Composed] = ()) -> str | None:
    """The one value that a query gives to a role, as text; nothing of it stays, nor of what is `lent` for it.

    Also where there is no restore. All errors are as those of `run`.
    """
    insert = sql.SQL("INSERT INTO pg_temp.archiver_answer SELECT ({})::pg_catalog.text").format(query)
    async with conn.transaction(force_rollback=True):
        await conn.execute(sql.SQL(_ASK).format(role=sql.Identifier(role)))
        await own_schema.require_own(conn)
        for statement in lent:
            await conn.execute(statement)
        await _run(conn, role, [insert.as_string(conn)], {}, silenced=False)  # what it made is rolled back
        row = await (await conn.execute("SELECT answer FROM pg_temp.archiver_answer")).fetchone()
    return row[0] if row is not None else None


class _Text(Dumper):
    """A statement as it is: in the encoding of the client, whichever that is."""

    def dump(self, obj: Any) -> bytes:
        statement: bytes = obj
        return statement


async def _call(conn: Conn, function: sql.Identifier, statements: Sequence[str | bytes]) -> list[int]:
    cursor = conn.cursor()
    cursor.adapters.register_dumper(bytes, _Text)
    array = sql.SQL(", ").join(sql.Placeholder() * len(statements))
    call = sql.SQL("SELECT {}(ARRAY[{}]::pg_catalog.text[])").format(function, array)
    row = await (await cursor.execute(call, statements)).fetchone()
    assert row is not None
    return list(row[0])


async def prepare(conn: Conn, role: str) -> None:
    """Make what `run` needs for a role, before several connections want it at once."""
    await _function(conn, role)


@asynccontextmanager
async def in_transaction(conn: Conn) -> AsyncIterator[None]:
    """The caller's or, without one, another: a cursor that was held would be read at the commit, so it goes before."""
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        async with conn.transaction():
            yield
    else:
        yield


async def _know_session(conn: Conn) -> None:
    """What the session's settings are, as long as no code of users has run in it."""
    if conn not in _sessions:
        conn.prepare_threshold = None  # others could put their own in place of a statement that has a name
        ours = dict(await (await conn.execute(_OURS)).fetchall())
        known = await (await conn.execute(_KNOWN)).fetchall()
        _sessions[conn] = _Session(ours, frozenset(name for (name,) in known))


@dataclass(frozen=True, slots=True)
class _Role:
    """`me` is the connected role, and `superuser` whether that is one."""

    oid: int
    me: str
    superuser: bool
    has_function: bool


async def _function(conn: Conn, role: str) -> sql.Identifier:
    """The role's function, made if it is not there as it should be: DROP OWNED takes it along."""
    row = await (await conn.execute(_ROLE, (_BODY, role))).fetchone()
    if row is None:
        raise PostgresError(f"the target has no role {role}")
    found = _Role(*row)
    function = sql.Identifier("archiver", f"run_as_{found.oid}")
    if not found.has_function:
        await conn.execute(sql.SQL(_MAKE).format(lock=_LOCK, function=function, body=_BODY))
        if role != found.me:
            give = "ALTER FUNCTION {function} OWNER TO {role}" if found.superuser else _GIVE
            me = sql.Identifier(found.me)
            await conn.execute(sql.SQL(give).format(function=function, role=sql.Identifier(role), me=me))
    return function


async def _enter(conn: Conn, settings: Mapping[str, str]) -> None:
    given = {"search_path": search_path.path_of_users(conn), **settings}
    known = _sessions[conn].known
    await conn.execute(_set({name: value for name, value in given.items() if name.lower() in known}, local=True))


def _set(settings: Mapping[str, str], *, local: bool) -> sql.Composed:
    each = sql.SQL("pg_catalog.set_config({}, {}, {})")
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(each.format(*item, local) for item in settings.items()))


async def _leave(conn: Conn) -> bool:
    """Whether ordinary triggers may have fired: who may not set session_replication_role can RESET ALL for all that."""
    ours = {"search_path": search_path.RESTING, **_sessions[conn].ours}
    back = _set(ours, local=False)
    found = await conn.execute(sql.SQL("{}; CLOSE ALL; RESET ALL; {}").format(sql.SQL(_REPLICATION), back))
    return await found.fetchone() != (ours.get("session_replication_role", "origin"),)


async def _fire_deferred(conn: Conn, role: str, function: sql.Identifier) -> None:
    """Now, as their role. One that puts off another again is refused: ALTER TABLE finds it.

    And so is one in a schema that the role may not name, should its statement have come there by others' functions.
    """
    found = await (await conn.execute(_DEFERRED, (role,))).fetchall()
    if not found:
        return
    if named := ", ".join(f"{schema}.{trigger}" for schema, _, trigger, _, usable in found if usable):
        await _call(conn, function, [f"SET CONSTRAINTS {named} IMMEDIATE"])
        await _leave(conn)
    for schema, table, trigger, when, _ in found:
        await conn.execute(f"ALTER TABLE ONLY {schema}.{table} ENABLE {when} TRIGGER {trigger}".encode())
    names = ", ".join(f"{schema}.{trigger}" for schema, _, trigger, _, _ in found)
    await conn.execute(f"SET CONSTRAINTS {names} DEFERRED".encode())
