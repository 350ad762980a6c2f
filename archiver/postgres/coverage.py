"""What an archive of the source holds and what it cannot: tables and sequences that the role may read, and the rest.

In: an ordinary connection to the source. Out: `Check`s. It reads and changes nothing.
"""

from __future__ import annotations

from typing import Final, LiteralString

from archiver.config import SourceSection
from archiver.postgres.checks import Check, Conn, listed, look_up
from archiver.postgres.exclusion import excluded_tables
from archiver.postgres.roles import may_read_passwords
from archiver.postgres.sequences import read_sequences
from archiver.postgres.session import fetch

_UNREADABLE: Final[LiteralString] = """
select c.oid::bigint as oid, n.nspname || '.' || c.relname as name,
       not (pg_catalog.has_schema_privilege(n.oid, 'USAGE')
            and pg_catalog.has_table_privilege(c.oid, 'SELECT')) as denied,
       pg_catalog.row_security_active(c.oid) as filtered
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence <> 't' and n.nspname <> 'archiver'
  and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
order by 2
"""


async def check_readable(conn: Conn, source: SourceSection) -> list[Check]:
    """Whether the role can read every table and sequence: pg_dump needs excluded tables as well."""
    tables = await look_up(conn, _UNREADABLE)
    denied = [row["name"] for row in tables if row["denied"]]
    excluded = (await excluded_tables(conn, source.exclude)).oids
    filtered = [row["name"] for row in tables if row["filtered"] and row["oid"] not in excluded]
    [(role,)] = await fetch(conn, "SELECT pg_catalog.quote_ident(current_user)")
    checks = []
    if denied:
        hint = f"GRANT pg_read_all_data TO {role}"
        checks.append(Check("readable tables", "fail", f"no SELECT on {listed(denied)}", hint))
    if filtered:
        hint = f"ALTER ROLE {role} BYPASSRLS"
        checks.append(Check("row security", "fail", f"policies hide rows of {listed(filtered)}", hint))
    return [*(checks or [Check("readable tables", "ok", f"{len(tables)} tables")]), await _sequences(conn, role)]


async def _sequences(conn: Conn, role: str) -> Check:
    found = await read_sequences(conn, skip_held=True)
    if found.denied:
        hint = f"GRANT pg_read_all_data TO {role}"
        return Check("readable sequences", "fail", f"no SELECT on {listed(map(str, found.denied))}", hint)
    return Check("readable sequences", "ok", f"{len(found.states)} sequences")


_NOT_COVERED: Final[LiteralString] = """
select (select count(*) from pg_catalog.pg_largeobject_metadata) as large_objects,
       array(select n.nspname || '.' || c.relname
               from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where c.relkind = 'r' and c.relpersistence = 'u' order by 1) as unlogged
"""


async def check_coverage(conn: Conn, _source: SourceSection) -> list[Check]:
    """What an archive cannot hold: large objects, and the rows of unlogged tables."""
    [facts] = await look_up(conn, _NOT_COVERED)
    large, unlogged = facts["large_objects"], facts["unlogged"]
    checks = [Check("large objects", "ok", "none")]
    if large:
        hint = "Logical replication does not carry them: move them into a bytea column, or back them up with pg_dump."
        checks = [Check("large objects", "warn", f"{large}, which are not archived", hint)]
    if unlogged:
        hint = "ALTER TABLE … SET LOGGED if their rows matter."
        checks.append(Check("unlogged tables", "warn", f"their rows are not archived: {listed(unlogged)}", hint))
    return checks


LARGE_VALUE: Final = 256 << 20
"""Bytes. As text a bytea takes twice as many, and a row may not be longer than 1 GB (stringinfo.h)."""

_LARGE: Final[LiteralString] = """
select n.nspname || '.' || c.relname as name
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.reltoastrelid <> 0 and c.oid::bigint <> all (%(excluded)s) and n.nspname <> 'archiver'
  and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
  and pg_catalog.pg_relation_size(c.reltoastrelid)
      >= %(large)s * greatest(c.reltuples, pg_catalog.pg_stat_get_live_tuples(c.oid), 1)
order by 1
"""
"""The mean of what rows have out of line. pg_stats would say 18 bytes for a value there, whatever its size."""


async def check_large_values(conn: Conn, source: SourceSection) -> list[Check]:
    """Tables whose rows are so large, as far as statistics tell, that the server may be unable to send one."""
    excluded = (await excluded_tables(conn, source.exclude)).oids
    rows = await look_up(conn, _LARGE, {"excluded": list(excluded), "large": LARGE_VALUE})
    if not rows:
        return [Check("large values", "ok", "no table has rows of 256 MiB, as far as statistics tell")]
    hint = "A row of more than 1 GB as text (a bytea of 512 MB) costs a gap: split such values, or exclude the table."
    found = listed(row["name"] for row in rows)
    return [Check("large values", "warn", f"rows of 256 MiB or more, which may be too large to send: {found}", hint)]


_REFERENCES: Final[LiteralString] = """
select distinct pg_catalog.format('%%s.%%s %%s', n.nspname, t.relname, k.conname) as name
from pg_catalog.pg_constraint k
join pg_catalog.pg_class t on t.oid = k.conrelid join pg_catalog.pg_namespace n on n.oid = t.relnamespace
where k.contype = 'f' and k.conparentid = 0 and k.conrelid::bigint <> all (%(excluded)s)
  and (k.confrelid::bigint = any (%(excluded)s)
       or exists (select from pg_catalog.pg_partition_tree(k.confrelid) p where p.relid::bigint = any (%(excluded)s)))
order by 1
"""


async def check_references(conn: Conn, source: SourceSection) -> list[Check]:
    """Foreign keys from archived tables to excluded ones."""
    excluded = (await excluded_tables(conn, source.exclude)).oids
    names = [row["name"] for row in await look_up(conn, _REFERENCES, {"excluded": list(excluded)})]
    if not names:
        return []
    hint = "Archive the tables that they refer to, or see to these keys after a restore."
    return [
        Check("foreign keys", "warn", f"they refer to excluded tables, and come back NOT VALID: {listed(names)}", hint)
    ]


async def check_roles(conn: Conn, _source: SourceSection) -> list[Check]:
    """Whether base snapshots hold the roles' passwords."""
    if await may_read_passwords(conn):
        return [Check("roles", "ok", "archived with their passwords' hashes")]
    hint = "GRANT SELECT ON pg_authid would give it; on a managed service set passwords after restore --globals."
    return [Check("roles", "warn", "archived without their passwords, which the role may not read", hint)]


_FOREIGN_CLOCKS: Final[LiteralString] = """
select 'subscription ' || s.subname as name from pg_catalog.pg_subscription s
  join pg_catalog.pg_database d on d.oid = s.subdbid where d.datname = pg_catalog.current_database()
union all
select 'replication origin ' || o.roname from pg_catalog.pg_replication_origin o
 where o.roname !~ '^pg_[0-9]+$' order by 1
"""


async def check_clocks(conn: Conn, _source: SourceSection) -> list[Check]:
    """Whether commits may bear the time of another server: those that a subscription or another replication applies."""
    names = [row["name"] for row in await look_up(conn, _FOREIGN_CLOCKS)]
    if not names:
        return []
    hint = "A target by time among their commits is refused; use --target-lsn or a restore point there."
    return [Check("commit times", "warn", f"some are by other servers' clocks: {listed(names)}", hint)]
