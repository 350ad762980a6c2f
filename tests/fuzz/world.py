"""What one connection sees of the database: names to choose from, in an order that does not depend on OIDs.

The generator keeps no model of its own: statements fail, and are rolled back, and the catalog knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg


@dataclass(frozen=True, slots=True)
class Column:
    name: str  # quoted, as all names here
    type: str
    kind: str  # pg_type.typtype of what is below domains and arrays
    not_null: bool
    identity: str
    generated: str
    default: bool

    @property
    def writable(self) -> bool:
        return self.identity != "a" and not self.generated


@dataclass(frozen=True, slots=True)
class Table:
    schema: str
    name: str
    oid: int
    kind: str  # r, p, v, m or S
    persistence: str
    partition: bool
    strategy: str
    parents: int
    visible: bool
    columns: Sequence[Column]
    key: Sequence[str]

    @property
    def full(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def writable(self) -> Sequence[Column]:
        return [column for column in self.columns if column.writable]


@dataclass(frozen=True, slots=True)
class Named:
    """Anything else: `kind` as in DROP, `full` its identity, `on` the table it belongs to."""

    kind: str
    full: str
    name: str
    on: str = ""
    detail: Any = None


@dataclass(slots=True)
class World:
    tables: list[Table] = field(default_factory=list)
    others: list[Named] = field(default_factory=list)

    def of(self, kinds: str, persistence: str = "pu") -> list[Table]:
        return [table for table in self.tables if table.kind in kinds and table.persistence in persistence]

    def named(self, *kinds: str) -> list[Named]:
        return [each for each in self.others if each.kind in kinds]

    @property
    def rows(self) -> list[Table]:
        """What rows can be written to."""
        return self.of("rp", "put")


_TABLES = """
SELECT quote_ident(n.nspname), quote_ident(c.relname), c.oid::int8, c.relkind::text, c.relpersistence::text,
       c.relispartition, coalesce((SELECT partstrat::text FROM pg_partitioned_table p WHERE p.partrelid = c.oid), ''),
       (SELECT count(*) FROM pg_inherits h WHERE h.inhrelid = c.oid)::int, pg_table_is_visible(c.oid),
       coalesce((SELECT json_agg(json_build_array(quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), t.typtype,
                                a.attnotnull, a.attidentity, a.attgenerated, a.atthasdef) ORDER BY a.attnum)
          FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
       coalesce((SELECT json_agg(quote_ident(a.attname) ORDER BY a.attnum)
          FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
         WHERE i.indrelid = c.oid AND i.indisprimary), '[]')
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S') AND (n.nspname !~ '^(pg_|archiver$|information_schema$)'
       OR n.oid = pg_my_temp_schema())
 ORDER BY n.oid = pg_my_temp_schema(), n.nspname, c.relname
"""
_USER = "n.nspname !~ '^(pg_|archiver$|information_schema$)'"
_OTHERS = f"""
SELECT 'SCHEMA', quote_ident(n.nspname), quote_ident(n.nspname), '', NULL::json FROM pg_namespace n WHERE {_USER}
UNION ALL SELECT 'INDEX', quote_ident(n.nspname) || '.' || quote_ident(c.relname), quote_ident(c.relname),
       quote_ident(n.nspname) || '.' || quote_ident(t.relname),
       json_build_array(i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL, c.relispartition, t.relkind)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USER}
UNION ALL SELECT 'CONSTRAINT', '', quote_ident(k.conname), quote_ident(n.nspname) || '.' || quote_ident(t.relname),
       json_build_array(k.contype, k.convalidated) FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid
  JOIN pg_namespace n ON n.oid = t.relnamespace WHERE {_USER} AND k.conparentid = 0
UNION ALL SELECT 'TRIGGER', '', quote_ident(g.tgname), quote_ident(n.nspname) || '.' || quote_ident(t.relname), NULL
  FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid JOIN pg_namespace n ON n.oid = t.relnamespace
 WHERE {_USER} AND NOT g.tgisinternal AND g.tgparentid = 0
UNION ALL SELECT 'POLICY', '', quote_ident(p.polname), quote_ident(n.nspname) || '.' || quote_ident(t.relname), NULL
  FROM pg_policy p JOIN pg_class t ON t.oid = p.polrelid JOIN pg_namespace n ON n.oid = t.relnamespace WHERE {_USER}
UNION ALL SELECT 'RULE', '', quote_ident(r.rulename), quote_ident(n.nspname) || '.' || quote_ident(t.relname), NULL
  FROM pg_rewrite r JOIN pg_class t ON t.oid = r.ev_class JOIN pg_namespace n ON n.oid = t.relnamespace
 WHERE {_USER} AND r.rulename <> '_RETURN'
UNION ALL SELECT CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END,
       quote_ident(n.nspname) || '.' || quote_ident(t.typname), quote_ident(t.typname), t.typtype::text,
       (SELECT json_agg(quote_literal(e.enumlabel) ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_class c ON c.oid = t.typrelid
 WHERE {_USER} AND (t.typtype IN ('e', 'd') OR t.typtype = 'c' AND c.relkind = 'c')
UNION ALL SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END,
       format('%s.%I(%s)', quote_ident(n.nspname), p.proname, pg_get_function_identity_arguments(p.oid)),
       format('%s.%I', quote_ident(n.nspname), p.proname), '',
       json_build_array(p.prorettype = 'trigger'::regtype, p.pronargs)
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_USER}
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
UNION ALL SELECT 'STATISTICS', quote_ident(n.nspname) || '.' || quote_ident(s.stxname), quote_ident(s.stxname), '', NULL
  FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE {_USER}
UNION ALL SELECT 'PUBLICATION', quote_ident(p.pubname), quote_ident(p.pubname), '', NULL
  FROM pg_publication p WHERE p.pubname !~ '^archiver'
UNION ALL SELECT 'INHERITS', '', quote_ident(cn.nspname) || '.' || quote_ident(c.relname),
       quote_ident(n.nspname) || '.' || quote_ident(t.relname), to_json(t.relkind)
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_class t ON t.oid = i.inhparent JOIN pg_namespace n ON n.oid = t.relnamespace
 WHERE {_USER} AND t.relkind IN ('r', 'p')
ORDER BY 1, 2, 4, 3
"""


def look(conn: psycopg.Connection[Any]) -> World:
    """Ask the catalog. In an aborted transaction there is nothing to be seen."""
    if conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
        return World()
    cursor = conn.cursor()
    rows = cursor.execute(_TABLES).fetchall()
    tables = [Table(*(*row[:9], [Column(*each) for each in row[9]], row[10])) for row in rows]
    return World(tables, [Named(*row) for row in cursor.execute(_OTHERS.encode()).fetchall()])
