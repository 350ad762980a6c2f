"""Whether the schema of the source changed, where no event trigger tells: a digest of its catalog.

In: a connection to the source. Out: a `Look`. It reads catalogs only, under one snapshot, and no lock of a table.
The digest covers what pg_dump shows of a database: not what a server keeps for itself (sizes, file names, statistics),
not temporary objects, and nothing of archiver's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any, Final, LiteralString

import psycopg

from archiver.errors import PostgresUnavailable
from archiver.format.pgmessages import Relation
from archiver.lsn import Lsn
from archiver.policy.schema_watch import ColumnShape, Look, is_stranger
from archiver.postgres.install import trusted_journal
from archiver.postgres.session import postgres_error
from archiver.postgres.triggers import CAPTURING

Conn = psycopg.AsyncConnection[Any]

_SHOWN: Final[LiteralString] = "NOT IN (SELECT oid FROM hidden)"
_OF_SHOWN: Final[LiteralString] = "NOT IN (SELECT oid FROM hidden_relations)"
_OBJECT_SHOWN: Final[LiteralString] = (
    "NOT (t.classoid = 'pg_catalog.pg_class'::regclass AND t.objoid IN (SELECT oid FROM hidden_relations))"
)
# Who owns a sequence, what belongs to an extension, and user mappings (not every role may read them) are in pg_depend.
_DEPENDENCIES: Final[LiteralString] = """
    t.deptype IN ('e', 'x') OR t.classid = 'pg_catalog.pg_user_mapping'::regclass
    OR t.classid = 'pg_catalog.pg_class'::regclass AND t.refclassid = t.classid AND t.deptype IN ('a', 'i')
       AND t.objid IN (SELECT seqrelid FROM pg_catalog.pg_sequence)
       AND t.objid NOT IN (SELECT oid FROM hidden_relations)
"""
_CATALOGS: Final[dict[LiteralString, LiteralString]] = {
    "pg_class": f"t.relnamespace {_SHOWN}",
    "pg_attribute": f"t.attnum > 0 AND t.attrelid {_OF_SHOWN}",
    "pg_attrdef": f"t.adrelid {_OF_SHOWN}",
    "pg_constraint": f"t.connamespace {_SHOWN}",
    "pg_index": f"t.indexrelid {_OF_SHOWN}",
    "pg_inherits": f"t.inhrelid {_OF_SHOWN}",
    "pg_partitioned_table": f"t.partrelid {_OF_SHOWN}",
    "pg_foreign_table": f"t.ftrelid {_OF_SHOWN}",
    "pg_sequence": f"t.seqrelid {_OF_SHOWN}",
    "pg_rewrite": f"t.ev_class {_OF_SHOWN}",
    "pg_trigger": f"t.tgrelid {_OF_SHOWN}",
    "pg_policy": f"t.polrelid {_OF_SHOWN}",
    "pg_statistic_ext": f"t.stxnamespace {_SHOWN}",
    "pg_type": f"t.typnamespace {_SHOWN}",
    "pg_proc": f"t.pronamespace {_SHOWN}",
    "pg_namespace": f"t.oid {_SHOWN}",
    "pg_description": _OBJECT_SHOWN,
    "pg_seclabel": _OBJECT_SHOWN,
    "pg_depend": _DEPENDENCIES,
    "pg_event_trigger": "t.evtname !~ '^archiver_'",
    "pg_db_role_setting": "t.setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
    **dict.fromkeys(
        (
            *("pg_aggregate", "pg_am", "pg_amop", "pg_amproc", "pg_cast", "pg_collation", "pg_conversion"),
            *("pg_default_acl", "pg_enum", "pg_extension", "pg_foreign_data_wrapper", "pg_foreign_server"),
            *("pg_language", "pg_opclass", "pg_operator", "pg_opfamily", "pg_publication", "pg_publication_rel"),
            *("pg_range", "pg_transform", "pg_ts_config", "pg_ts_config_map", "pg_ts_dict", "pg_ts_parser"),
            "pg_ts_template",
        ),
        "true",
    ),
}
_FROM_15: Final[dict[LiteralString, LiteralString]] = {"pg_publication_namespace": "true"}
# What VACUUM, TRUNCATE, CLUSTER or CREATE INDEX CONCURRENTLY change by the way, and no dump shows.
_NO_SCHEMA: Final[LiteralString] = (
    "{relpages,reltuples,relallvisible,relallfrozen,relfilenode,relfrozenxid,relminmxid,relhasindex,relhasrules,"
    "relhastriggers,relhassubclass,reltoastrelid,relrewrite,reltablespace,attcacheoff,atthasmissing,attmissingval,"
    "indcheckxmin,indisready,indislive}"
)
# Every change of a row gives it another xmin, which costs a hundredth of the content; temporary tables aside, a catalog
# whose rows are the same ones says the same.
_ROWS: Final[LiteralString] = "pg_catalog.hashint8extended(t.xmin::text::bigint, 0)"
CONTENT: Final[LiteralString] = (
    f"pg_catalog.hashtextextended((pg_catalog.to_jsonb(t) - '{_NO_SCHEMA}'::text[])::text, 0)"
)
HIDDEN: Final[LiteralString] = """
WITH hidden AS (
    SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ '^pg_(toast|temp_)' OR nspname = 'archiver'
), hidden_relations AS (
    SELECT oid FROM pg_catalog.pg_class WHERE relnamespace IN (SELECT oid FROM hidden)
)
"""
_DIGEST: Final[LiteralString] = """
SELECT pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', name, rows, hash), ',' ORDER BY name))
  FROM ({}) AS each (name, rows, hash)
"""
_POSITION: Final[LiteralString] = """
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_insert_lsn() END::text
"""
_CAPTURED: Final[LiteralString] = """
SELECT (SELECT count(*) = pg_catalog.cardinality(%(names)s::text[]) FROM pg_catalog.pg_event_trigger
         WHERE evtname = ANY (%(names)s) AND evtenabled IN ('A', 'O'))
   AND coalesce(current_setting('event_triggers', true), 'on') = 'on'
"""
_LOSSES: Final[LiteralString] = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM archiver.losses"
_SNAPSHOT: Final[LiteralString] = """
SELECT ARRAY(SELECT pg_catalog.pg_snapshot_xip(s)::text::bigint), pg_catalog.pg_snapshot_xmax(s)::text::bigint
  FROM pg_catalog.pg_current_snapshot() AS s
"""


async def captures_ddl(conn: Conn) -> bool:
    """Whether our event triggers are there and fire, and write what can be believed. Raises PostgresError."""
    try:
        fires = bool(await _value(conn, _CAPTURED, {"names": list(CAPTURING)}))
        return fires and await trusted_journal(conn) is not None
    except psycopg.Error as exc:
        raise postgres_error(exc) from exc


class CatalogReader:
    """Takes looks. It remembers which rows gave the last digest: the content is read only when they changed."""

    def __init__(self) -> None:
        self._rows: str | None = None
        self._digest = ""
        self._tables: set[int] | None = None
        self._losses: int | None = None

    async def look(
        self,
        conn: Conn,
        described: Collection[Relation] = (),
        announced: Set[int] = frozenset(),
        named: Mapping[int, str] | None = None,
    ) -> Look:
        """Over a connection in autocommit. `described`: what the stream said of tables; `announced`: those made since;
        `named`: those that DDL changed.

        Raises PostgresError, PostgresUnavailable.
        """
        try:
            before = await _position(conn)
            async with conn.transaction():
                await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                running, next_xid = await _row(conn, _SNAPSHOT)
                digest = None if await captures_ddl(conn) else await self._read(conn)
                strangers = await _strangers(conn, described) if digest is not None else ()
                journal = await trusted_journal(conn)
                losses = await _value(conn, _LOSSES) if journal is not None else None
                if losses != self._losses:  # what could not be announced is a loss already
                    self._tables, self._losses = None, losses
                met = {relation.id: str(relation) for relation in described} | dict(named or {})
                unannounced = await self._unannounced(conn, met, announced) if digest is None else ()
            after = await _position(conn)
            if self._tables is not None:  # not before: a look that fails is taken again
                self._tables |= met.keys()
            return Look(digest, before, after, frozenset(running), next_xid, strangers, unannounced, losses, journal)
        except psycopg.Error as exc:
            raise postgres_error(exc, "looking at the catalog") from exc

    async def _unannounced(self, conn: Conn, met: Mapping[int, str], announced: Set[int]) -> tuple[str, ...]:
        """EXPLAIN ANALYZE of CREATE TABLE AS fires no event. What an extension's script makes comes with it."""
        if self._tables is None:
            self._tables = set(await _value(conn, _ALL_TABLES))
        self._tables |= announced
        new = {oid: name for oid, name in met.items() if oid not in self._tables}
        if not new:
            return ()
        members = {oid for (oid,) in await (await conn.execute(_OF_EXTENSIONS, (list(new),))).fetchall()}
        return tuple(sorted(name for oid, name in new.items() if oid not in members))

    async def _read(self, conn: Conn) -> str:
        rows = str(await _value(conn, _query(conn, _ROWS)))
        if rows != self._rows:
            self._digest = str(await _value(conn, _query(conn, CONTENT)))
            self._rows = rows
        return self._digest


_ALL_TABLES: Final[LiteralString] = (
    "SELECT ARRAY(SELECT oid::bigint FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'm'))"
)
_OF_EXTENSIONS: Final[LiteralString] = """
SELECT objid::bigint FROM pg_catalog.pg_depend
 WHERE classid = 'pg_catalog.pg_class'::regclass AND objid = ANY (%s::oid[]) AND deptype = 'e'
"""
_TABLES: Final[LiteralString] = """
SELECT c.oid, n.nspname || '.' || c.relname, (
           SELECT json_agg(json_build_array(a.attname, a.atttypid::bigint, a.atttypmod) ORDER BY a.attnum)
             FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY (%s::oid[])
"""


async def _strangers(conn: Conn, described: Iterable[Relation]) -> tuple[str, ...]:
    relations = list(described)
    if not relations:
        return ()
    rows = await (await conn.execute(_TABLES, ([relation.id for relation in relations],))).fetchall()
    tables: dict[int, tuple[str, list[ColumnShape]]] = {
        oid: (name, [(column, type_id, modifier) for column, type_id, modifier in columns or ()])
        for oid, name, columns in rows
    }
    found = {str(each) for each in relations if is_stranger(each, *tables.get(each.id, (None, ())))}
    return tuple(sorted(found))


def _query(conn: Conn, hashed: LiteralString) -> LiteralString:
    parts: list[LiteralString] = [
        f"SELECT '{name}', count(*), sum({hashed}) FROM pg_catalog.{name} AS t WHERE {condition}"  # noqa: S608 - constants
        for name, condition in catalogs(conn).items()
    ]
    return HIDDEN + _DIGEST.format(" UNION ALL ".join(parts))


def catalogs(conn: Conn) -> dict[LiteralString, LiteralString]:
    """The catalogs that a dump of the database shows, each with the condition for its rows `t`, behind HIDDEN."""
    return _CATALOGS | (_FROM_15 if conn.info.server_version >= 150000 else {})


async def _position(conn: Conn) -> Lsn:
    lsn = await _value(conn, _POSITION)
    if lsn is None:
        raise PostgresUnavailable("the standby has not replayed any WAL yet")
    return Lsn.parse(lsn).before_page_header()


async def _value(conn: Conn, query: LiteralString, params: dict[str, Any] | None = None) -> Any:
    return (await _row(conn, query, params))[0]


async def _row(conn: Conn, query: LiteralString, params: dict[str, Any] | None = None) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = await (await conn.execute(query, params)).fetchone()
    assert row is not None
    return row
