"""What must be the same after a restore: the server's roles and files, what others own, what they hold.

Reads by COPY, which has no planner, and from the catalog: a query of evil's tables would run his code as us.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.dumps import difference, pg_dump

OTHERS: Final = ("vault", "ops", "hood", "public")
"""Schemas where evil can make nothing."""
_MARKS: Final = (b"OWNED", b"LOOT")
_MAX_LINES: Final = 25

_CLUSTER: Final = {
    "role": "SELECT rolname, (to_jsonb(a) - 'oid')::text FROM pg_authid a WHERE rolname !~ '^pg_'",
    "member": "SELECT roleid::regrole::text, member::regrole::text || (to_jsonb(m) - ARRAY['oid', 'roleid', 'member', 'grantor'])::text FROM pg_auth_members m",
    "setting": "SELECT setrole::text, setconfig::text FROM pg_db_role_setting",
    "database": "SELECT datname, concat(datdba::regrole, datacl) FROM pg_database WHERE datname !~ '^(restored|hostile)_'",
    "slot": "SELECT slot_name, plugin FROM pg_replication_slots WHERE database IS NULL",
    "prepared": "SELECT gid, owner FROM pg_prepared_xacts",
    "tablespace": "SELECT spcname, spcowner::regrole::text FROM pg_tablespace",
    "parameter": "SELECT parname, paracl::text FROM pg_parameter_acl",
    "origin": "SELECT roname, '' FROM pg_replication_origin",
}
# Every object that has an owner, by what PostgreSQL calls it.
_OWNED: Final = """
SELECT i.type, i.identity, o.owner::regrole::text,
       coalesce(o.acl, acldefault(o.rights, o.owner))::text, o.runs FROM (
    SELECT 'pg_class'::regclass AS class, oid, relowner AS owner, relacl AS acl,
           relkind IN ('v', 'm') OR relhasrules AS runs, CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char" AS rights
      FROM pg_class WHERE relkind NOT IN ('i', 'I', 't') AND relnamespace <> ALL (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_(toast|temp)')
    UNION ALL SELECT 'pg_proc'::regclass, oid, proowner, proacl, prosecdef, 'f' FROM pg_proc
    UNION ALL SELECT 'pg_namespace'::regclass, oid, nspowner, nspacl, false, 'n' FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp)'
    UNION ALL SELECT 'pg_type'::regclass, oid, typowner, typacl, false, 'T' FROM pg_type WHERE typrelid = 0 AND typcategory <> 'A'
    UNION ALL SELECT 'pg_operator'::regclass, oid, oprowner, NULL, false, NULL FROM pg_operator
    UNION ALL SELECT 'pg_collation'::regclass, oid, collowner, NULL, false, NULL FROM pg_collation
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxowner, NULL, false, NULL FROM pg_statistic_ext
    UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictowner, NULL, false, NULL FROM pg_ts_dict
    UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgowner, NULL, false, NULL FROM pg_ts_config
    UNION ALL SELECT 'pg_largeobject'::regclass, oid, lomowner, lomacl, false, 'L' FROM pg_largeobject_metadata
    UNION ALL SELECT 'pg_event_trigger'::regclass, oid, evtowner, NULL, true, NULL FROM pg_event_trigger WHERE evtname !~ '^archiver_'
    UNION ALL SELECT 'pg_extension'::regclass, oid, extowner, NULL, false, NULL FROM pg_extension
    UNION ALL SELECT 'pg_publication'::regclass, oid, pubowner, NULL, false, NULL FROM pg_publication WHERE pubname !~ '^archiver'
    UNION ALL SELECT 'pg_default_acl'::regclass, oid, defaclrole, defaclacl, false, NULL FROM pg_default_acl
) AS o, pg_identify_object(o.class, o.oid, 0) AS i
WHERE (o.oid >= 16384 OR o.acl IS DISTINCT FROM NULL AND i.schema IS DISTINCT FROM 'information_schema' AND i.schema IS DISTINCT FROM 'pg_catalog')
  AND i.identity !~ '^archiver([.]|$)'
"""
_TABLES: Final = """
SELECT c.oid::regclass::text, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema$|archiver$)'
"""


def cluster(dsn: str, marker: Path) -> dict[str, Any]:
    with psycopg.connect(dsn) as conn:
        found: dict[str, Any] = {kind: sorted(conn.execute(query).fetchall()) for kind, query in _CLUSTER.items()}
        row = conn.execute("SELECT pg_read_file('postgresql.auto.conf')").fetchone()
    return found | {"postgresql.auto.conf": row, "files": sorted(path.name for path in marker.iterdir())}


@dataclass
class Held:
    """What is in a database: definitions and rows of others, who owns what, and traces of what evil did."""

    dump: list[str]
    rows: dict[str, list[bytes]]
    owned: dict[tuple[str, str], tuple[str, str, bool]]
    traces: list[str]


def held(dsn: str, evil: set[str], *, owners: bool = True) -> Held:
    """`evil`: roles as PostgreSQL quotes them. `owners`: that of each object, and its rights, are part of its definition."""
    schemas = [f"--schema={name}" for name in OTHERS]
    dump = pg_dump(dsn, "--schema-only", *schemas, *([] if owners else ["--no-owner", "--no-acl"]))
    # An identity copied by LIKE is a bigint's with an integer's bound; after pg_dump it is an integer's without.
    dump = ["    NO MAXVALUE" if line == "    MAXVALUE 2147483647" else line for line in dump]
    rows, traces = {}, []
    with psycopg.connect(dsn) as conn:
        conn.execute("SET search_path = ''")
        for name, schema in conn.execute(_TABLES.encode()).fetchall():
            found = _rows(conn, name)
            traces += [f"{name}: {row!r}" for row in found if any(mark in row for mark in _MARKS)]
            if schema in OTHERS or name == "shared.ledger":
                rows[name] = found
        owned = {(kind, name): (owner, acl, runs) for kind, name, owner, acl, runs in conn.execute(_OWNED.encode())}
    return Held(dump, rows, {key: each for key, each in owned.items() if each[0] not in evil}, traces)


def _rows(conn: psycopg.Connection[Any], table: str) -> list[bytes]:
    with conn.cursor() as cur, cur.copy(f"COPY {table} TO STDOUT".encode()) as copy:
        return sorted(bytes(row) for row in copy)


def compared(found: Held, expected: Held, *, owners: bool) -> list[str]:
    """What is wrong with a restored database."""
    wrong = [f"{len(found.traces)} traces of evil: {found.traces[:3]}"] if found.traces else []
    if differs := difference(found.dump, expected.dump):
        wrong.append("what others own is defined otherwise:\n" + _short(differs))
    for name in sorted(found.rows.keys() | expected.rows.keys()):
        if found.rows.get(name) != expected.rows.get(name):
            missing = [row for row in expected.rows.get(name, []) if row not in found.rows.get(name, [])]
            more = [row for row in found.rows.get(name, []) if row not in expected.rows.get(name, [])]
            wrong.append(f"rows of {name}: {len(missing)} missing {missing[:3]}, {len(more)} more {more[:3]}")
    if owners and (differs := difference(_lines(found.owned), _lines(expected.owned))):
        wrong.append("others own something else:\n" + _short(differs))
    if not owners:  # what runs with its owner's rights, whoever restored it
        running = {key for key, each in found.owned.items() if each[2]}
        if gained := running - {key for key, each in expected.owned.items() if each[2]}:
            wrong.append(f"runs with rights that are not evil's: {sorted(gained)[:5]}")
    return wrong


def changed(after: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What a restore changed outside of its database."""
    return [
        f"{kind} changed: {[each for each in after[kind] or [] if each not in (before[kind] or [])]} came,"
        f" {[each for each in before[kind] or [] if each not in (after[kind] or [])]} went"
        for kind in before
        if after[kind] != before[kind]
    ]


def _lines(owned: dict[tuple[str, str], tuple[str, str, bool]]) -> list[str]:
    return sorted(f"{' '.join(key)!r}: {owner!r} {acl!r}" for key, (owner, acl, _) in owned.items())


def _short(text: str) -> str:
    return "\n".join(line[:220] for line in text.splitlines()[:_MAX_LINES])
