"""Stand-ins: roles of the names that a target lacks, without any attribute, for as long as a restore takes.

With them every statement runs unchanged, as the role that ran it and with no more rights than that one had. At the end
all that is theirs goes to the restoring role, what was granted to them is gone, and so are they; but for those that own
code which runs with its owner's rights, for it must not get the restoring role's: they stay. An interrupted restore
knows them again: they are listed in the target, and their comment says what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from archiver.format.dump_roles import Skipped
from archiver.postgres import users_code
from archiver.postgres.session import fetch, postgres_error

Conn = psycopg.AsyncConnection[Any]

MARK: Final[LiteralString] = "archiver: stands in for a role that was missing when a database was restored"
REAL: Final[LiteralString] = (
    "(rolcanlogin OR pg_catalog.shobj_description(oid, 'pg_authid') IS DISTINCT FROM '" + MARK + "')"
)
"""Of a row of pg_roles: it is no stand-in, or has been made a role of its own since."""

CREATE: Final[LiteralString] = "CREATE TABLE IF NOT EXISTS archiver.stand_ins (name text PRIMARY KEY)"
_THERE: Final[LiteralString] = """
SELECT rolname::pg_catalog.text FROM pg_catalog.pg_roles WHERE NOT (__REAL__) AND rolname = ANY (%s)
""".replace("__REAL__", REAL)
_ME: Final[LiteralString] = """
SELECT rolname::pg_catalog.text, rolsuper, rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user
"""
_BEGUN: Final[LiteralString] = "SELECT pg_catalog.to_regclass('archiver.stand_ins') IS NOT NULL"
_LISTED: Final[LiteralString] = """
SELECT r.rolname::pg_catalog.text FROM archiver.stand_ins s JOIN pg_catalog.pg_roles r ON r.rolname = s.name
 WHERE pg_catalog.shobj_description(r.oid, 'pg_authid') = %s ORDER BY 1
"""
_LIST: Final[LiteralString] = "INSERT INTO archiver.stand_ins VALUES (%s) ON CONFLICT DO NOTHING"
_MAKING: Final = "making a stand-in for a role"


class StandIns:
    """Those of one restore, as one of its connections knows them. `possible`: whether the role may make any."""

    def __init__(self, me: str, names: Iterable[str], *, superuser: bool, possible: bool) -> None:
        self.me = me
        self.names = set(names)
        self.possible = possible
        self._superuser = superuser

    @classmethod
    async def open(cls, conn: Conn) -> StandIns:
        """Raises PostgresError."""
        [(me, superuser, may_create)] = await fetch(conn, _ME, _MAKING)
        [(begun,)] = await fetch(conn, _BEGUN, _MAKING)
        listed = await _listed(conn) if begun else []
        return cls(me, listed, superuser=superuser, possible=superuser or may_create)

    async def make(self, conn: Conn, names: Iterable[str]) -> None:
        """For roles that are not there; `CREATE` came before. In the caller's transaction. All errors are psycopg's."""
        wanted = sorted(name for name in {*names} - self.names if not name.startswith("pg_"))
        if not wanted or not self.possible:
            return
        there = {name for (name,) in await (await conn.execute(_THERE, (wanted,))).fetchall()}
        for name in wanted:  # that is there: another restore made it, into another database
            await conn.execute(_LIST, (name,))
            if name not in there:
                await self._create(conn, name)
            self.names.add(name)

    async def _create(self, conn: Conn, name: str) -> None:
        role = sql.Identifier(name)
        inherits = not self._superuser and conn.info.server_version >= 160000
        if inherits:
            await conn.execute("SET LOCAL createrole_self_grant = 'set, inherit'")
        await conn.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(role))
        if not self._superuser and not inherits:
            await conn.execute(sql.SQL("GRANT {} TO {}").format(role, sql.Identifier(self.me)))
        await conn.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(role, MARK))


# Functions SECURITY DEFINER, the rights of views and rules, and what a REFRESH computes, are their owners'.
_OWNING_CODE: Final[LiteralString] = """
SELECT pg_catalog.pg_get_userbyid(proowner)::pg_catalog.text, 'function ' || oid::pg_catalog.regprocedure
  FROM pg_catalog.pg_proc WHERE prosecdef AND pronamespace <> pg_catalog.to_regnamespace('archiver')
UNION ALL
SELECT pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text,
       CASE c.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' ELSE 'rules of table ' END
       || c.oid::pg_catalog.regclass
  FROM pg_catalog.pg_class c WHERE c.relhasrules
   AND NOT (c.relkind = 'v' AND EXISTS (
       SELECT FROM pg_catalog.pg_options_to_table(c.reloptions) AS o
        WHERE o.option_name = 'security_invoker' AND o.option_value::pg_catalog.bool))
"""


async def owning_code(conn: Conn) -> dict[str, str]:
    """The stand-ins that own code which runs with its owner's rights, and what it is of. All errors are psycopg's."""
    guarded = [(each.owner, f"table {each.schema}.{each.name}") for each in await users_code.find_all(conn)]
    found = dict([*guarded, *await (await conn.execute(_OWNING_CODE)).fetchall()])
    return {name: found[name] for name in await _listed(conn) if name in found}


async def drop_all(conn: Conn) -> list[Skipped]:
    """In the caller's transaction. Returns those that stay. All errors are psycopg's."""
    staying = await owning_code(conn)
    stay = [_kept(name, f"its {what} runs code with its owner's rights") for name, what in staying.items()]
    names = [name for name in await _listed(conn) if name not in staying]
    return stay + [kept for name in names if (kept := await _drop(conn, name)) is not None]


def _kept(name: str, why: str) -> Skipped:
    return Skipped(f"DROP ROLE {name}, which was missing and cannot log in,", why, "DROP ROLE")


async def _listed(conn: Conn) -> list[str]:
    return [name for (name,) in await (await conn.execute(_LISTED, (MARK,))).fetchall()]


async def _drop(conn: Conn, name: str) -> Skipped | None:
    role = sql.Identifier(name)
    await conn.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(role))
    await conn.execute(sql.SQL("DROP OWNED BY {}").format(role))
    try:
        async with conn.transaction():
            await conn.execute(sql.SQL("DROP ROLE {}").format(role))
    except psycopg.errors.DependentObjectsStillExist as exc:
        return _kept(name, postgres_error(exc).message)
    return None


_OWNED: Final[LiteralString] = """
SELECT n.nspname, c.relname, c.relkind FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
 WHERE r.rolname = ANY (%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') LIMIT %s
"""
_AT_ONCE: Final = 200  # with their indexes and sequences: as many locks as a transaction may hold
_KINDS: Final[dict[str, LiteralString]] = {"v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE"}


async def hand_over(conn: Conn) -> None:
    """Give the tables of all to the restoring role, some in a transaction: each keeps locks, of which there are few.

    From here on no code of users must run. All errors are psycopg's.
    """
    staying = await owning_code(conn)
    names = [name for name in await _listed(conn) if name not in staying]
    while names and (owned := await (await conn.execute(_OWNED, (names, _AT_ONCE))).fetchall()):
        async with conn.transaction():
            for schema, table, kind in owned:
                await _give(conn, sql.Identifier(schema, table), _kind(kind))


def _kind(letter: str | bytes) -> LiteralString:
    return _KINDS.get(letter if isinstance(letter, str) else letter.decode(), "TABLE")


async def _give(conn: Conn, table: sql.Identifier, kind: LiteralString) -> None:
    await conn.execute(sql.SQL("ALTER " + kind + " {} OWNER TO CURRENT_USER").format(table))
