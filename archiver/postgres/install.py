"""What archiver puts into the source database beside the publication, and takes out again: schema `archiver`.

In: a connection to the source, in a transaction of the caller's. Out: the journal, the functions, the event triggers,
each owned by the role that installs; the caller calls `require_ours` before and, in the same transaction, behind it:
what was taken for ours may have come in between. A schema of that name that is somebody else's is refused, and so is
one that holds what is somebody else's: its owner could have our triggers run his code as whoever runs DDL. An older
installation is replaced. All errors but PostgresError are psycopg's.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.errors import PostgresError
from archiver.postgres import triggers
from archiver.postgres.triggers import ListedPublication

Conn = psycopg.AsyncConnection[Any]

# An owner who is a superuser has nothing to gain; any other must be the one who installs. Who owns what the server
# was made with is not in pg_shdepend: a superuser.
_FOREIGN: Final[LiteralString] = """
WITH own AS (
    SELECT n.oid, n.nspowner FROM pg_catalog.pg_namespace n WHERE n.nspname = 'archiver'
), held (what, owner) AS (
    SELECT 'schema archiver', nspowner FROM own
    UNION ALL SELECT 'function archiver.' || proname, proowner FROM pg_catalog.pg_proc
     WHERE pronamespace IN (SELECT oid FROM own)
    UNION ALL SELECT 'relation archiver.' || relname, relowner FROM pg_catalog.pg_class
     WHERE relnamespace IN (SELECT oid FROM own) AND relkind <> 'i'
    UNION ALL SELECT 'trigger ' || tgname || ' of archiver.' || relname, proowner
      FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
      JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid WHERE relnamespace IN (SELECT oid FROM own)
    UNION ALL SELECT pg_catalog.pg_describe_object(d.classid, d.objid, 0), s.refobjid
      FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_shdepend s ON s.classid = d.classid AND s.objid = d.objid
     WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid IN (SELECT oid FROM own)
       AND d.classid <> ALL ('{pg_catalog.pg_class,pg_catalog.pg_proc}'::regclass[]) AND s.deptype = 'o'
       AND s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    UNION ALL SELECT 'event trigger ' || evtname, evtowner FROM pg_catalog.pg_event_trigger
     WHERE evtname = ANY (%s)
    UNION ALL SELECT 'publication ' || pubname, pubowner FROM pg_catalog.pg_publication WHERE pubname = %s
)
SELECT what, pg_catalog.pg_get_userbyid(owner) FROM held JOIN pg_catalog.pg_roles r ON r.oid = owner
 WHERE NOT r.rolsuper AND r.rolname <> current_user ORDER BY 1
"""
_SHAPE: Final[LiteralString] = """
SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum) FROM pg_catalog.pg_attribute
 WHERE attrelid = pg_catalog.to_regclass('archiver.journal') AND attnum > 0 AND NOT attisdropped
"""
_EXPECTED_SHAPE: Final = "id uuid, kind text, key text, about text, content text"

# Default privileges may have given them to somebody.
_REVOKE: Final[LiteralString] = """
SELECT what, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)) END
  FROM (
    SELECT 'SCHEMA archiver' AS what, nspowner AS owner, coalesce(nspacl, pg_catalog.acldefault('n', nspowner)) AS acl
      FROM pg_catalog.pg_namespace WHERE nspname = 'archiver'
    UNION ALL
    SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || oid::regclass, relowner, relacl
      FROM pg_catalog.pg_class WHERE relnamespace = 'archiver'::regnamespace AND relkind IN ('r', 'S')
    UNION ALL
    SELECT 'FUNCTION ' || oid::regprocedure, proowner, coalesce(proacl, pg_catalog.acldefault('f', proowner))
      FROM pg_catalog.pg_proc WHERE pronamespace = 'archiver'::regnamespace
  ) AS each, pg_catalog.aclexplode(acl) AS given
 WHERE given.grantee <> owner GROUP BY 1, 2
"""
_FUNCTIONS: Final[LiteralString] = """
SELECT oid::regprocedure::text FROM pg_catalog.pg_proc WHERE pronamespace = pg_catalog.to_regnamespace('archiver')
"""


async def install(conn: Conn, listed: ListedPublication | None, *, superuser: bool) -> bool:
    """Put in what the role may: event triggers only where it may create any. Raises PostgresError.

    `listed`: the publication, where it is not for all tables. Returns whether there is a journal: not where the role
    may not create a schema.
    """
    try:
        async with conn.transaction():
            await conn.execute("CREATE SCHEMA IF NOT EXISTS archiver")
    except psycopg.errors.InsufficientPrivilege:
        return False
    await _drop_functions(conn)
    shape = await (await conn.execute(_SHAPE)).fetchone()
    if shape not in {None, (None,), (_EXPECTED_SHAPE,)}:
        await conn.execute("DROP TABLE archiver.journal")
    await conn.execute(triggers.journal_statements().encode())
    await conn.execute(triggers.function_statements(listed, superuser=superuser).encode())
    await _revoke_all(conn)
    with suppress(psycopg.errors.InsufficientPrivilege):  # `check` says that schema changes are not captured
        async with conn.transaction():
            await conn.execute(triggers.trigger_statements(listed).encode())
    return True


async def require_ours(conn: Conn, publication: str) -> None:
    """Raise PostgresError where the publication, schema `archiver`, or something in it, is somebody else's."""
    found = await (await conn.execute(_FOREIGN, [list(triggers.NAMES), publication])).fetchall()
    if found:
        what, owner = found[0]
        raise PostgresError(
            f"{what} belongs to {owner}, not to the role that runs this",
            where="the source",
            hint="Look at what it holds: archiver never uses it. Drop it, or run this as its owner if that is you.",
        )


_OWNER: Final[LiteralString] = """
SELECT r.rolname FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_roles r ON r.oid = p.pubowner
 WHERE p.pubname = %s AND NOT r.rolsuper AND r.rolname <> current_user
"""

OWN_PUBLICATION: Final = "Drop it, or have a superuser or the role of [source] dsn own it; then run archiver init."


async def stranger_of(conn: Conn, publication: str) -> str | None:
    """Who owns the publication, and with it says what it leaves out, where that is neither a superuser nor we."""
    row = await (await conn.execute(_OWNER, [publication])).fetchone()
    return None if row is None else str(row[0])


async def require_own_publication(conn: Conn, publication: str) -> None:
    """Raise PostgresError where it is somebody else's."""
    if (owner := await stranger_of(conn, publication)) is not None:
        raise PostgresError(
            f"publication {publication} belongs to {owner}, who may have it leave out changes",
            hint=OWN_PUBLICATION,
        )


async def _drop_functions(conn: Conn) -> None:
    """All of them, and the event triggers before: what an older version made may have other arguments."""
    await conn.execute(triggers.drop_statements().encode())
    for (function,) in await (await conn.execute(_FUNCTIONS)).fetchall():
        await conn.execute(f"DROP FUNCTION {function}".encode())


async def _revoke_all(conn: Conn) -> None:
    """Nobody but the owner may write the journal or execute a function, whatever the default privileges say."""
    for what, grantee in await (await conn.execute(_REVOKE)).fetchall():
        await conn.execute(f"REVOKE ALL ON {what} FROM {grantee}".encode())


async def remove(conn: Conn) -> list[str]:
    """Take everything out that is ours. Returns what else is in schema `archiver`: then the schema stays."""
    await _drop_functions(conn)
    await conn.execute("DROP TABLE IF EXISTS archiver.journal")
    await conn.execute("DROP SEQUENCE IF EXISTS archiver.losses")
    left = [name for (name,) in await (await conn.execute(_LEFT)).fetchall()]
    if not left:
        await conn.execute(sql.SQL("DROP SCHEMA IF EXISTS archiver"))
    return left


_LEFT: Final[LiteralString] = """
SELECT pg_catalog.pg_describe_object(d.classid, d.objid, 0) FROM pg_catalog.pg_depend d
 WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = pg_catalog.to_regnamespace('archiver')
   AND d.deptype = 'n' ORDER BY 1
"""

# --- Is it as it was installed? -------------------------------------------------------------------------------

_TRUSTED: Final[LiteralString] = """
SELECT c.oid::bigint
  FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'journal'
  JOIN pg_catalog.pg_roles s ON s.oid = n.nspowner JOIN pg_catalog.pg_roles w ON w.oid = c.relowner
 WHERE n.nspname = 'archiver' AND c.relkind = 'r'
   AND (s.oid = w.oid AND s.rolname = current_user OR s.rolsuper AND w.rolsuper)
   AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(c.relacl) a
                    WHERE a.grantee <> c.relowner AND a.privilege_type <> 'SELECT')
"""


async def trusted_journal(conn: Conn) -> int | None:
    """The OID of the journal, if nobody but its owner may write it, and that is the connected role, or a superuser."""
    row = await (await conn.execute(_TRUSTED)).fetchone()
    return None if row is None else int(row[0])


_STANDING: Final[LiteralString] = """
SELECT p.proname::text, p.prosrc, p.proowner = n.nspowner,
       EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
                WHERE a.grantee <> p.proowner AND p.proname <> 'restore_point')
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'archiver' ORDER BY 1
"""


async def altered(conn: Conn, listed: ListedPublication | None) -> list[str]:
    """What of the functions is not as `install` makes it: their bodies, their owner, or who may execute them."""
    expected = triggers.function_bodies(listed)
    found = await (await conn.execute(_STANDING)).fetchall()
    wrong = [name for name, body, owned, shared in found if body != expected.get(name) or not owned or shared]
    unguarded = {*triggers.GUARDS.values()} if listed else set()  # where keyless tables are left out
    return sorted({*wrong, *(expected.keys() - {name for name, *_ in found} - unguarded)})


async def sweep(conn: Conn) -> None:
    """Delete what texts of several statements have left in the journal, but for those that somebody writes just now.

    Nothing waits for it, and where the role may not delete, nothing is lost: a few rows stay.
    """
    with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
        await conn.execute("DELETE FROM archiver.journal")
