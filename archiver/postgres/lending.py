"""What a role had at the source by what fires no event trigger, and lacks at the target: for one statement it has it.

The triggers told of it when the statement ran: whether the role was a superuser, or the database's owner, might create
in it, and whose member it was. Superuser is lent to nobody, nor is what the restoring role is itself.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.ddl import Event

Conn = psycopg.AsyncConnection[Any]

# Predefined roles, whose OIDs are lower, reach beyond the database.
_LACKED: Final[LiteralString] = """
SELECT o.rolname::pg_catalog.text FROM pg_catalog.pg_roles o, pg_catalog.pg_roles r
 WHERE o.rolname = ANY (%s) AND r.rolname = %s AND o.oid >= 16384
   AND NOT o.rolsuper AND o.rolname <> current_user AND NOT pg_catalog.pg_has_role(r.oid, o.oid, 'USAGE')
"""
_DATABASE: Final[LiteralString] = """
SELECT pg_catalog.pg_get_userbyid(datdba)::pg_catalog.text, pg_catalog.has_database_privilege(%s, oid, 'CREATE'),
       (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
  FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
"""
_OF_ITS_OWNER: Final[LiteralString] = """
SELECT nspname::pg_catalog.text FROM pg_catalog.pg_namespace
 WHERE pg_catalog.pg_get_userbyid(nspowner) = 'pg_database_owner'
   AND NOT pg_catalog.has_schema_privilege(%s, oid, 'CREATE')
"""
OF_RIGHTS: Final = frozenset({"GRANT", "REVOKE", "ALTER DEFAULT PRIVILEGES", "COMMENT", "SECURITY LABEL"})
"""Statements that call no function of users: the restoring role may do them in place of their role."""

Lent = tuple[list[sql.Composed], list[sql.Composed]]
"""The statements that give, and those that take it back."""


async def lent_for(conn: Conn, event: Event) -> Lent:
    """What the role of an event gets for its statement. All errors are psycopg's."""
    give, take = await _of_database(conn, event)
    how: LiteralString = " WITH INHERIT TRUE" if conn.info.server_version >= 160000 else ""
    lacked = await (await conn.execute(_LACKED, (list(event.rights.roles), event.role))).fetchall()
    for (owner,) in lacked:
        grant = (sql.Identifier(owner), sql.Identifier(event.role))
        give.append(sql.SQL("GRANT {} TO {}" + how).format(*grant))
        take.append(sql.SQL("REVOKE {} FROM {}").format(*grant))
    return give, take


async def _of_database(conn: Conn, event: Event) -> Lent:
    role = event.role
    row = await (await conn.execute(_DATABASE, (role,))).fetchone()
    assert row is not None
    owner, may_create, superuser = row
    owned = event.rights.owner and role != owner
    if owned and superuser:
        database = sql.Identifier(conn.info.dbname)
        give = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        return [give.format(database, sql.Identifier(role))], [give.format(database, sql.Identifier(owner))]
    rights = [_create(conn)] if event.rights.create and not may_create else []
    if owned and event.tag not in OF_RIGHTS:  # for a GRANT it would need more than it may have for a moment
        rights += await _in_schemas(conn, role)
    to = sql.Identifier(role)
    give_all = [sql.SQL("GRANT {} TO {}").format(right, to) for right in rights]
    return give_all, [sql.SQL("REVOKE {} FROM {}").format(right, to) for right in rights]


def _create(conn: Conn) -> sql.Composed:
    return sql.SQL("CREATE ON DATABASE {}").format(sql.Identifier(conn.info.dbname))


async def _in_schemas(conn: Conn, role: str) -> list[sql.Composed]:
    """What the owner of a database may do in schemas that are any such owner's."""
    schemas = await (await conn.execute(_OF_ITS_OWNER, (role,))).fetchall()
    return [sql.SQL("CREATE ON SCHEMA {}").format(sql.Identifier(schema)) for (schema,) in schemas]
