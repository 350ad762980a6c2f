"""Roles: read from the source for a base snapshot, made at the target by `restore --globals`.

In: a connection. Never: a role that is there already is altered, and no password is in a message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.errors import PostgresError
from archiver.format.dump_roles import Skipped
from archiver.format.roles import Globals, Membership, Role
from archiver.postgres.load import attempt, transaction
from archiver.postgres.session import fetch, postgres_error
from archiver.postgres.stand_ins import REAL
from archiver.postgres.stored_settings import assignment

_READING: Final = "reading the roles"
_READABLE: Final[LiteralString] = "select pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')"
_ROLES: Final[LiteralString] = """
select r.rolname,
       array_remove(array[case when rolsuper then 'SUPERUSER' end,
                          case when rolinherit then 'INHERIT' else 'NOINHERIT' end,
                          case when rolcreaterole then 'CREATEROLE' end, case when rolcreatedb then 'CREATEDB' end,
                          case when rolcanlogin then 'LOGIN' end, case when rolreplication then 'REPLICATION' end,
                          case when rolbypassrls then 'BYPASSRLS' end], null),
       r.rolconnlimit, r.rolvaliduntil::text, null, pg_catalog.shobj_description(r.oid, 'pg_authid'),
       coalesce((select setconfig from pg_catalog.pg_db_role_setting
                  where setrole = r.oid and setdatabase = 0), '{}')
  from pg_catalog.pg_roles r where r.rolname !~ '^pg_' order by 1
"""
_PASSWORDS: Final[LiteralString] = "select rolname, rolpassword from pg_catalog.pg_authid"
_MEMBERSHIPS: Final[LiteralString] = """
select r.rolname, m.rolname, bool_or(a.admin_option),
       bool_or((to_jsonb(a) ->> 'inherit_option')::bool), bool_or((to_jsonb(a) ->> 'set_option')::bool)
  from pg_catalog.pg_auth_members a
  join pg_catalog.pg_roles r on r.oid = a.roleid join pg_catalog.pg_roles m on m.oid = a.member
 where m.rolname !~ '^pg_' group by 1, 2 order by 1, 2
"""
"""Several grants of one membership, by different grantors from 16 on, are one with the rights of all."""


async def may_read_passwords(conn: psycopg.AsyncConnection[Any]) -> bool:
    return bool((await fetch(conn, _READABLE, _READING))[0][0])


async def read_globals(conn: psycopg.AsyncConnection[Any]) -> Globals:
    """The server's roles and memberships, with the hashes of passwords where the connected role may read them."""
    readable = await may_read_passwords(conn)
    passwords: dict[str, str | None] = dict(await fetch(conn, _PASSWORDS, _READING)) if readable else {}
    roles = [
        Role(name, tuple(attributes), limit, until, passwords.get(name), comment, tuple(settings))
        for name, attributes, limit, until, _, comment, settings in await fetch(conn, _ROLES, _READING)
    ]
    memberships = [Membership(*row) for row in await fetch(conn, _MEMBERSHIPS, _READING)]
    return Globals(readable, tuple(roles), tuple(memberships))


# --- Making --------------------------------------------------------------------------------------------

_EVERYONES: Final = frozenset({"LOGIN", "INHERIT", "NOINHERIT"})
"""Attributes that whoever may create roles may give. The others are tried one by one: managed services deny some."""

_WORDS: Final[dict[str, sql.SQL]] = {
    "SUPERUSER": sql.SQL("SUPERUSER"),
    "INHERIT": sql.SQL("INHERIT"),
    "NOINHERIT": sql.SQL("NOINHERIT"),
    "CREATEROLE": sql.SQL("CREATEROLE"),
    "CREATEDB": sql.SQL("CREATEDB"),
    "LOGIN": sql.SQL("LOGIN"),
    "REPLICATION": sql.SQL("REPLICATION"),
    "BYPASSRLS": sql.SQL("BYPASSRLS"),
}
_BEARABLE: Final = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.InvalidGrantOperation,
    psycopg.errors.CantChangeRuntimeParam,  # a setting that this version lets nobody change
)


async def create_roles(conn: psycopg.AsyncConnection[Any], wanted: Globals) -> list[Skipped]:
    """Make these roles and memberships, all or none; returns what the target refused and can do without.

    Raises PostgresError when the connected role may not create roles.
    """
    skipped: list[Skipped] = []
    async with transaction(conn, "creating roles"):
        owner = await _prepare_owning(conn)
        for role in wanted.roles:
            skipped += await _create(conn, role)
            if owner is not None:
                skipped += await _tried(conn, f"MEMBERSHIP of {owner} in {role.name}", _grant_to(role.name, owner))
        for membership in wanted.memberships:
            label = f"MEMBERSHIP of {membership.member} in {membership.role}"
            skipped += await _tried(conn, label, _grant(membership, conn.info.server_version))
        for role in wanted.roles:
            for setting in role.settings:
                skipped += await _set(conn, role.name, setting)
    return skipped


async def _prepare_owning(conn: psycopg.AsyncConnection[Any]) -> str | None:
    """Whoever is no superuser must be a member of the roles that objects go to. Up to 15: the name to make a member."""
    query: LiteralString = "select rolsuper, rolname from pg_catalog.pg_roles where rolname = current_user"
    [(superuser, name)] = await fetch(conn, query, _READING)
    if superuser:
        return None
    if conn.info.server_version < 160000:
        return str(name)
    await conn.execute("SET LOCAL createrole_self_grant = 'set, inherit'")
    return None


def _grant_to(role: str, member: str) -> sql.Composed:
    return sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(member))


async def _create(conn: psycopg.AsyncConnection[Any], role: Role) -> list[Skipped]:
    name = sql.Identifier(role.name)
    everyones = [word for word in role.attributes if word in _EVERYONES]
    how = "ALTER" if await _stands_in(conn, role.name) else "CREATE"
    create = sql.SQL(how + " ROLE {} {} CONNECTION LIMIT {}").format(name, _words(everyones), role.connection_limit)
    if role.valid_until is not None:
        create += sql.SQL(" VALID UNTIL {}").format(role.valid_until)
    try:
        await conn.execute(create)
    except psycopg.errors.InsufficientPrivilege as exc:
        hint = "Give the restoring role CREATEROLE, or restore without --globals: what names such a role is left out."
        raise PostgresError(postgres_error(exc).message, where=f"role {role.name}", hint=hint) from exc
    except psycopg.Error as exc:
        raise postgres_error(exc, f"role {role.name}") from exc
    label, skipped = f"ROLE {role.name}", list[Skipped]()
    for word in role.attributes:
        if word not in _EVERYONES:
            alter = sql.SQL("ALTER ROLE {} {}").format(name, _words([word]))
            skipped += await _tried(conn, f"{word} of {label}", alter)
    if role.password is not None:
        alter = sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, role.password)
        skipped += await _tried(conn, f"PASSWORD of {label}", alter)
    if role.comment is not None or how == "ALTER":
        comment = sql.SQL("COMMENT ON ROLE {} IS {}").format(name, role.comment)
        skipped += await _tried(conn, f"COMMENT of {label}", comment)
    return skipped


_STANDS_IN: Final[LiteralString] = "SELECT FROM pg_catalog.pg_roles WHERE rolname = %s AND NOT " + REAL


async def _stands_in(conn: psycopg.AsyncConnection[Any], name: str) -> bool:
    """Whether a restore without roles has left it behind."""
    return await (await conn.execute(_STANDS_IN, (name,))).fetchone() is not None


def _words(words: Iterable[str]) -> sql.Composed:
    return sql.SQL(" ").join(_WORDS[word] for word in words)


def _grant(membership: Membership, server_version: int) -> sql.Composed:
    grant = _grant_to(membership.role, membership.member)
    if server_version < 160000:
        return grant + sql.SQL(" WITH ADMIN OPTION") if membership.admin else grant
    given = [sql.SQL("ADMIN {}").format(membership.admin)]
    if membership.inherit is not None:
        given.append(sql.SQL("INHERIT {}").format(membership.inherit))
    if membership.set is not None:
        given.append(sql.SQL("SET {}").format(membership.set))
    return grant + sql.SQL(" WITH ") + sql.SQL(", ").join(given)


async def _set(conn: psycopg.AsyncConnection[Any], role: str, setting: str) -> list[Skipped]:
    name = setting.partition("=")[0]
    alter = sql.SQL("ALTER ROLE {} SET {}").format(sql.Identifier(role), assignment(setting))
    return await _tried(conn, f"SETTING {name} of ROLE {role}", alter)


async def _tried(conn: psycopg.AsyncConnection[Any], label: str, query: sql.Composed) -> list[Skipped]:
    refused = await attempt(conn, [query], label, label, _BEARABLE)
    return [refused] if refused else []
