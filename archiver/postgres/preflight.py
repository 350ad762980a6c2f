"""What the source must have before archiver can work with it, as facts with advice; it reads and changes nothing.

In: an ordinary connection to the source. Out: `Check`s, each ok, warn or fail, with what to do about it. A query
that the role may not run is a PostgresError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, LiteralString

from archiver.config import SourceSection
from archiver.errors import PostgresError
from archiver.postgres.catalog_look import captures_ddl
from archiver.postgres.checks import Check, Conn, Status, listed, look_up
from archiver.postgres.client_programs import find_pg_dump
from archiver.postgres.coverage import (
    check_clocks,
    check_coverage,
    check_large_values,
    check_readable,
    check_references,
    check_roles,
)
from archiver.postgres.install import OWN_PUBLICATION, altered, stranger_of
from archiver.postgres.replication_slot import PLUGIN, SlotInfo, slot_info
from archiver.postgres.setup import (
    publishable_tables,
    published_although_excluded,
    publishes_all,
    unpublished_tables,
)
from archiver.postgres.tls_policy import inside, weaknesses
from archiver.postgres.triggers import ListedPublication

OLDEST_MAJOR: Final = 14
NEWEST_TESTED_MAJOR: Final = 18

# --- the server ----------------------------------------------------------------------------------------

_SERVER: Final[LiteralString] = """
select current_setting('wal_level') as wal_level,
       current_setting('server_encoding') as encoding,
       pg_catalog.pg_is_in_recovery() as standby,
       current_setting('max_replication_slots')::int as slots,
       (select count(*) from pg_catalog.pg_replication_slots)::int as slots_used,
       current_setting('max_wal_senders')::int as senders,
       (select count(*) from pg_catalog.pg_stat_replication)::int as senders_used,
       current_setting('max_slot_wal_keep_size') as keep
"""


async def check_server(conn: Conn, source: SourceSection) -> list[Check]:
    """TLS, version, encoding, wal_level, room for slots and walsenders, and what the server keeps for a slot."""
    [facts] = await look_up(conn, _SERVER)
    slot = await slot_info(conn, source.slot)
    streaming = slot is not None and slot.active
    return [
        _tls(conn),
        _version(conn.info.server_version),
        _encoding(facts["encoding"]),
        _wal_level(facts["wal_level"]),
        _primary(facts["standby"]),
        _room("replication slots", "max_replication_slots", facts["slots"], facts["slots_used"], 1 if slot else 2),
        _room("wal senders", "max_wal_senders", facts["senders"], facts["senders_used"], 1 if streaming else 2),
        _keep_size(facts["keep"]),
    ]


def _tls(conn: Conn) -> Check:
    if inside(conn) and not conn.pgconn.ssl_in_use:
        return Check("TLS", "ok", "not needed: the connection does not leave this machine")
    if found := weaknesses(conn):
        hint = "Use sslmode=verify-full and ssl_min_protocol_version=TLSv1.3 in [source] dsn or its service."
        return Check("TLS", "warn", f"{'; '.join(found)}: so the dsn or its service says", hint)
    return Check("TLS", "ok", "the connection is encrypted")


def _version(version: int) -> Check:
    major = version // 10000
    if major < OLDEST_MAJOR:
        hint = f"Upgrade the server to PostgreSQL {OLDEST_MAJOR} or later."
        return Check("version", "fail", f"PostgreSQL {major} cannot stream transactions in progress", hint)
    if major > NEWEST_TESTED_MAJOR:
        hint = (
            "Look for a newer version of archiver; until then run drills, which prove that what is archived comes back."
        )
        return Check("version", "warn", f"PostgreSQL {major}: not tested with this version of archiver", hint)
    return Check("version", "ok", f"PostgreSQL {major}")


def _encoding(name: str) -> Check:
    if name != "SQL_ASCII":
        return Check("encoding", "ok", name)
    detail = "SQL_ASCII, which takes any bytes: where they are not UTF-8 there are gaps, and tables without rows"
    return Check("encoding", "warn", detail, "Move the database to UTF8.")


def _wal_level(level: str) -> Check:
    if level == "logical":
        return Check("wal_level", "ok", level)
    hint = "Set wal_level to logical and restart the server; on RDS, set rds.logical_replication to 1."
    return Check("wal_level", "fail", f"{level}, and logical is needed", hint)


def _primary(standby: bool) -> Check:
    if standby:
        return Check(
            "primary", "fail", "the server is a standby, which cannot be set up", "Give the primary in [source] dsn."
        )
    return Check("primary", "ok", "the server takes writes")


def _room(name: str, setting: str, limit: int, used: int, needed: int) -> Check:
    free = max(0, limit - used)
    detail = f"{free} of {limit} free"
    if free >= needed:
        return Check(name, "ok", detail)
    what = "one for the archive, one while a base snapshot is taken" if needed > 1 else "one for base snapshots"
    hint = f"Raise {setting} (it takes effect with a restart), or drop what nobody needs: {what}."
    return Check(name, "fail", f"{detail}, {needed} needed", hint)


def _keep_size(keep: str) -> Check:
    name = "max_slot_wal_keep_size"
    if keep in {"-1", "-1MB"}:
        hint = "Set it below the free disk space, so that an outage of archiver can never fill the source's disk."
        return Check(name, "warn", "unlimited: a slot that is not read keeps WAL until the disk is full", hint)
    return Check(name, "ok", f"{keep}: past that the slot is lost, and a new base snapshot is taken")


# --- the role ------------------------------------------------------------------------------------------

_ROLE: Final[LiteralString] = """
select r.rolname as name, pg_catalog.quote_ident(r.rolname) as quoted,
       r.rolsuper as superuser, r.rolreplication as replication,
       exists (select from pg_catalog.pg_roles m where m.rolname = 'rds_replication'
                  and pg_catalog.pg_has_role(r.oid, m.oid, 'MEMBER')) as rds,
       pg_catalog.has_database_privilege(r.oid, current_database(), 'CREATE') as may_create,
       pg_catalog.quote_ident(current_database()) as database
from pg_catalog.pg_roles r where r.rolname = current_user
"""


async def check_role(conn: Conn) -> list[Check]:
    """Whether the role may replicate."""
    [role] = await look_up(conn, _ROLE)
    if role["superuser"] or role["replication"] or role["rds"]:
        kind = "superuser" if role["superuser"] else "may replicate"
        return [Check("role", "ok", f"{role['name']}, {kind}")]
    name = role["quoted"]
    hint = f"ALTER ROLE {name} REPLICATION; on RDS: GRANT rds_replication TO {name}."
    return [Check("role", "fail", f"{role['name']} lacks REPLICATION", hint)]


_NOT_OWNED: Final[LiteralString] = """
select n.nspname || '.' || c.relname as name, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) as owner
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where not pg_catalog.pg_has_role(c.relowner, 'USAGE') and c.relkind = 'r'
  and (n.nspname, c.relname) in (select * from unnest(%s::name[], %s::name[]))
order by 1
"""


async def check_set_up_rights(conn: Conn, source: SourceSection) -> list[Check]:
    """Whether the role may make the publication: CREATE in the database, and tables that it owns."""
    [role] = await look_up(conn, _ROLE)
    if role["superuser"] or await publishes_all(conn, source.publication) is not None:
        return []
    name = role["quoted"]
    checks = []
    if not role["may_create"]:
        hint = f"GRANT CREATE ON DATABASE {role['database']} TO {name}"
        checks.append(Check("right to publish", "fail", f"{role['name']} may not create a publication", hint))
    tables = await publishable_tables(conn, source.exclude)
    names = ([table.schema for table in tables], [table.name for table in tables])
    foreign = await look_up(conn, _NOT_OWNED, names)
    if foreign:
        owners = ", ".join(sorted({row["owner"] for row in foreign}))
        detail = f"only its owner can publish a table: {listed(row['name'] for row in foreign)}"
        checks.append(Check("right to publish", "fail", detail, f"GRANT {owners} TO {name}"))
    return checks or [Check("right to publish", "ok", f"{role['name']} owns the tables")]


# --- slot and publication ------------------------------------------------------------------------------


async def check_slot(conn: Conn, source: SourceSection) -> list[Check]:
    """The state of the archive's replication slot."""
    slot = await slot_info(conn, source.slot)
    if slot is None:
        return [Check("slot", "warn", f"there is no replication slot {source.slot}", "Make it with: archiver init")]
    if foreign := _foreign(slot, conn.info.dbname):
        return [foreign]
    if slot.is_lost:
        hint = "archiver run replaces it and takes a base snapshot; what lies between is a gap."
        return [Check("slot", "fail", f"{slot.name} is lost: {slot.invalidation}", hint)]
    use = f"read by walsender {slot.active_pid}" if slot.active else "not being read"
    status: Status = "warn" if slot.wal_status == "unreserved" else "ok"
    advice = "Start archiver run before the server drops the slot's WAL." if status == "warn" else None
    return [Check("slot", status, f"{slot.name} at {slot.confirmed_flush_lsn}, {use}, WAL {slot.wal_status}", advice)]


async def check_slot_name(conn: Conn, source: SourceSection) -> list[Check]:
    """Whether somebody else's slot has the name."""
    slot = await slot_info(conn, source.slot)
    foreign = slot and _foreign(slot, conn.info.dbname)
    return [foreign] if foreign else []


def _foreign(slot: SlotInfo, database: str) -> Check | None:
    if slot.plugin == PLUGIN and slot.database == database:
        return None
    detail = f"{slot.name} is somebody else's: plugin {slot.plugin}, database {slot.database}"
    return Check("slot", "fail", detail, "Choose another name in [source] slot.")


_OPTIONS: Final[LiteralString] = """
select pubviaroot as by_root, pubinsert and pubupdate and pubdelete and pubtruncate as whole
  from pg_catalog.pg_publication where pubname = %s
"""


async def check_publication(conn: Conn, source: SourceSection) -> list[Check]:
    """The publication, and tables that it does not carry though nobody excluded them."""
    name = source.publication
    everything = await publishes_all(conn, name)
    if everything is None:
        return [Check("publication", "warn", f"there is no publication {name}", "Make it with: archiver init")]
    if (owner := await stranger_of(conn, name)) is not None:
        detail = f"{name} belongs to {owner}, who may have it leave out changes"
        return [Check("publication", "fail", detail, OWN_PUBLICATION)]
    [options] = await look_up(conn, _OPTIONS, (name,))
    if options["by_root"] or not options["whole"]:
        what = "publishes partitions as their root" if options["by_root"] else "leaves out kinds of changes"
        return [Check("publication", "fail", f"{name} {what}: changes are lost", "archiver init mends it.")]
    carried = await published_although_excluded(conn, name, source.exclude)
    if carried:
        hint = "archiver init takes them out of a publication that lists its tables; one for all tables drop first."
        return [Check("publication", "warn", f"{name} carries excluded tables: {listed(map(str, carried))}", hint)]
    missing = await unpublished_tables(conn, name, source.exclude)
    if missing:
        hint = "archiver init publishes them, unless they are without a key and were left out on purpose."
        return [Check("publication", "warn", f"{name} leaves out {listed(map(str, missing))}", hint)]
    return [Check("publication", "ok", f"{name}, {'all tables' if everything else 'listed tables'}")]


async def check_ddl(conn: Conn, source: SourceSection) -> list[Check]:
    """Whether schema changes are captured."""
    if await publishes_all(conn, source.publication) is None:
        return []
    if await captures_ddl(conn):
        checks = [Check("schema changes", "ok", "captured by event triggers")]
        return [*checks, *await _installed(conn, source), *await _triggers_before(conn)]
    hint = (
        "Run archiver init as a role that may create event triggers, and each schema change is replayed at its place."
    )
    return [Check("schema changes", "warn", _NOT_CAPTURED, hint), *await _new_tables(conn, source)]


async def _installed(conn: Conn, source: SourceSection) -> list[Check]:
    """Whether the functions are what init made of them: nobody else may own, alter or call them."""
    everything = await publishes_all(conn, source.publication)
    wrong = await altered(
        conn, None if everything else ListedPublication(source.publication, source.exclude, guard=True)
    )
    if not wrong:
        return []
    hint = "Look at who altered them; archiver init makes them anew, also those of an older version."
    detail = f"functions of archiver are not as init makes them: {listed(wrong)}"
    return [Check("functions", "fail", detail, hint)]


_NOT_CAPTURED: Final = (
    "no event triggers of archiver, so none is replayed: the daemon compares the catalog with each change segment, and"
    " takes a base snapshot when it changed; targets between the two are refused. Not seen: what is made and removed"
    " again within one segment, options of user mappings, and REFRESH MATERIALIZED VIEW"
)


_BEFORE: Final[LiteralString] = """
select pg_catalog.quote_ident(evtname) as name from pg_catalog.pg_event_trigger
 where evtevent = 'ddl_command_end' and evtname < 'archiver_before_end' and evtname !~ '^archiver_'
   and evtenabled <> 'D' order by evtname
"""


async def _triggers_before(conn: Conn) -> list[Check]:
    """Event triggers fire in the order of their names: what an earlier one does comes before what it does it for."""
    names = [row["name"] for row in await look_up(conn, _BEFORE)]
    if not names:
        return []
    hint = f"If they run DDL or write rows, let them come later: ALTER EVENT TRIGGER {names[0]} RENAME TO …"
    return [Check("event triggers", "warn", f"they fire before archiver's: {listed(names)}", hint)]


async def _new_tables(conn: Conn, source: SourceSection) -> list[Check]:
    """Without triggers nobody adds a new table to a publication that lists them."""
    if await publishes_all(conn, source.publication):
        return []
    hint = "Run archiver init after each CREATE TABLE of another role's, or have a superuser publish FOR ALL TABLES."
    what = "the daemon publishes a new one only if its role owns it, and it has a key"
    return [Check("new tables", "warn", f"{source.publication} lists its tables: {what}", hint)]


async def check_keys(conn: Conn, source: SourceSection) -> list[Check]:
    """Tables whose UPDATEs would fail if they were published."""
    tables = await publishable_tables(conn, source.exclude)
    keyless = [str(table) for table in tables if not table.keyed]
    if not keyless:
        return [Check("table keys", "ok", f"{len(tables)} tables, each with a replica identity")]
    hint = "Choose: archiver init --keyless full (sets REPLICA IDENTITY FULL) or --keyless exclude."
    return [Check("table keys", "warn", f"no primary key or replica identity: {listed(keyless)}", hint)]


async def check_pg_dump(conn: Conn, configured: str | None) -> list[Check]:
    """A pg_dump that is new enough: a base snapshot takes the schema with it."""
    major = conn.info.server_version // 10000
    try:
        program = await find_pg_dump(major, Path(configured) if configured else None)
    except PostgresError as exc:
        return [Check("pg_dump", "fail", exc.message, exc.hint)]
    return [Check("pg_dump", "ok", f"{program.path}, version {program.major}")]


# --- all of it -----------------------------------------------------------------------------------------

Look = Callable[[Conn, SourceSection], Awaitable[list[Check]]]
_ALL: tuple[Look, ...] = (
    check_server,
    lambda conn, _: check_role(conn),
    check_set_up_rights,
    check_publication,
    check_ddl,
    check_slot,
    check_keys,
    check_readable,
    check_coverage,
    check_large_values,
    check_references,
    check_clocks,
    check_roles,
)
_BEFORE_INIT: tuple[Look, ...] = (
    check_server,
    lambda conn, _: check_role(conn),
    check_set_up_rights,
    check_slot_name,
    check_readable,
)


async def check_source(conn: Conn, source: SourceSection, pg_dump: str | None) -> list[Check]:
    """Every prerequisite at the source."""
    return [check for look in _ALL for check in await look(conn, source)] + await check_pg_dump(conn, pg_dump)


async def check_before_init(conn: Conn, source: SourceSection, pg_dump: str | None) -> list[Check]:
    """Those without which setting the source up would fail, or be of no use."""
    checks = [check for look in _BEFORE_INIT for check in await look(conn, source)]
    return checks + await check_pg_dump(conn, pg_dump)
