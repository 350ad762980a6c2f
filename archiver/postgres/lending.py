"""What a role had at the source by what fires no event trigger, and lacks at the target: for one statement it has it.

The database's owner there is none here, who might create in it may not, and memberships that were granted since the
base snapshot are unknown. Superuser is lent to nobody, nor is what the restoring role is itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.ddl import Event

Conn = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class SourceRights:
    """As of the base snapshot: the database's owner, who may create in it ("" for all), and the superusers."""

    owner: str = ""
    creators: frozenset[str] = frozenset()
    superusers: frozenset[str] = frozenset()


# Of what a statement may name: the owners of these objects and of the schemas that they stand in.
_OWNERS: Final[LiteralString] = """
WITH named AS (
    SELECT nspowner AS owner FROM pg_catalog.pg_namespace WHERE nspname = ANY (%(schemas)s)
    UNION SELECT relowner FROM pg_catalog.pg_class
     WHERE oid IN (SELECT pg_catalog.to_regclass(i) FROM unnest(%(names)s::pg_catalog.text[]) AS i)
    UNION SELECT typowner FROM pg_catalog.pg_type
     WHERE oid IN (SELECT pg_catalog.to_regtype(i) FROM unnest(%(types)s::pg_catalog.text[]) AS i)
    UNION SELECT proowner FROM pg_catalog.pg_proc
     WHERE oid IN (SELECT pg_catalog.to_regprocedure(i) FROM unnest(%(routines)s::pg_catalog.text[]) AS i)
) SELECT o.rolname::pg_catalog.text FROM pg_catalog.pg_roles o, pg_catalog.pg_roles r
   WHERE o.oid IN (SELECT owner FROM named) AND r.rolname = %(role)s AND o.oid >= 16384
     AND NOT o.rolsuper AND o.rolname <> current_user AND NOT pg_catalog.pg_has_role(r.oid, o.oid, 'MEMBER')
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
_RELATIONS: Final = frozenset({"table", "view", "materialized view", "index", "sequence", "foreign table"})
_TYPES: Final = frozenset({"type", "domain"})
_ROUTINES: Final = frozenset({"function", "procedure", "aggregate"})

Lent = tuple[list[sql.Composed], list[sql.Composed]]
"""The statements that give, and those that take it back."""


async def lent_for(conn: Conn, event: Event, source: SourceRights) -> Lent:
    """What the role of an event gets for its statement. All errors are psycopg's."""
    give, take = await _of_database(conn, event, source)
    for owner in await owners(conn, event):
        grant = (sql.Identifier(owner), sql.Identifier(event.role))
        give.append(sql.SQL("GRANT {} TO {}").format(*grant))
        take.append(sql.SQL("REVOKE {} FROM {}").format(*grant))
    return give, take


async def _of_database(conn: Conn, event: Event, source: SourceRights) -> Lent:
    role = event.role
    row = await (await conn.execute(_DATABASE, (role,))).fetchone()
    assert row is not None
    owner, may_create, superuser = row
    owned = role == source.owner and role != owner
    if owned and superuser:
        database = sql.Identifier(conn.info.dbname)
        give = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        return [give.format(database, sql.Identifier(role))], [give.format(database, sql.Identifier(owner))]
    rights = [] if may_create or not {role, ""} & source.creators else [_create(conn)]
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


async def owners(conn: Conn, event: Event) -> list[str]:
    """Of what an event names, those that its role is no member of."""
    values = {
        "role": event.role,
        "schemas": [*{str(each["schema"]) for each in event.objects if each.get("schema")}, *event.schemas],
        "names": _identities(event.objects, _RELATIONS),
        "types": _identities(event.objects, _TYPES),
        "routines": _identities(event.objects, _ROUTINES),
    }
    return [owner for (owner,) in await (await conn.execute(_OWNERS, values)).fetchall()]


def _identities(objects: Iterable[Mapping[str, Any]], kinds: frozenset[str]) -> list[str]:
    return [str(each["identity"]) for each in objects if each.get("type") in kinds]
