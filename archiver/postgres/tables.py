"""What the target's catalog says of a table that the stream names: its columns, and a key to find rows by.

One look-up per relation. A table or a column that is missing in the target raises PostgresError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from archiver.errors import PostgresError
from archiver.format.pgmessages import Relation
from archiver.policy.batch import Shape
from archiver.postgres import users_code
from archiver.postgres.no_input import WRITABLE
from archiver.postgres.relations import Place, find
from archiver.postgres.users_code import Guarded

# Operators are looked up because `=` of an extension's type is not found with search_path set to pg_catalog.
_KEYS = """
SELECT i.indexrelid, a.attname, o.oprname, n.nspname
  FROM pg_catalog.pg_index i
 CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k (attnum, opclass, position)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN pg_catalog.pg_opclass c ON c.oid = k.opclass
  JOIN pg_catalog.pg_amop p ON p.amopfamily = c.opcfamily AND p.amopstrategy = 3 AND p.amopmethod = 403
   AND p.amoplefttype = c.opcintype AND p.amoprighttype = c.opcintype
  JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
  JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
 WHERE i.indrelid = $1::oid AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
   AND k.position <= i.indnkeyatts
   AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS e (attnum, position)
                     LEFT JOIN pg_catalog.pg_attribute ea ON ea.attrelid = i.indrelid AND ea.attnum = e.attnum
                    WHERE e.position <= i.indnkeyatts AND ea.attnotnull IS NOT TRUE)
 ORDER BY NOT i.indisprimary, i.indexrelid, k.position
"""
# Types of which equal text means equal values.
_COLUMNS = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), __WRITABLE__, a.attidentity = 'a',
       a.atttypid = ANY ('{int2,int4,int8,oid,numeric,text,varchar,bpchar,uuid,date,timestamp,timestamptz}'::regtype[]),
       EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                 JOIN pg_catalog.pg_am m ON m.oid = x.relam
                WHERE i.indrelid = a.attrelid AND i.indkey[0] = a.attnum AND m.amname IN ('btree', 'hash')
                  AND i.indisvalid AND i.indpred IS NULL)
  FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
""".replace("__WRITABLE__", WRITABLE)
_DEFAULT_EQUALITY = ("pg_catalog", "=")


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """`comparable`: rows with the same text have equal values there; `indexed`: an index finds rows by it."""

    name: str
    type: str
    writable: bool
    always_identity: bool
    comparable: bool
    indexed: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A relation of the stream in the target. Columns are named by their place in the relation.

    `place` has its name in the target. `equality` holds, for each key column, schema and name of the operator that
    its index uses. `guarded`: it is to be written as its owner.
    """

    shape: Shape
    place: Place
    columns: tuple[TargetColumn, ...]
    equality: tuple[tuple[str, str], ...]
    guarded: Guarded | None = None

    @property
    def written(self) -> tuple[int, ...]:
        """The columns that take values."""
        return tuple(at for at, column in enumerate(self.columns) if column.writable)

    @property
    def narrowing(self) -> tuple[int, ...]:
        """The columns that can narrow down where a row is before all of it is compared, the best first."""
        comparable = [at for at in self.written if self.columns[at].comparable]
        return tuple(sorted(comparable, key=lambda at: not self.columns[at].indexed))


async def look_up(cursor: psycopg.AsyncRawCursor[Any], relation: Relation) -> Table:
    """Find a relation in the target. Raises PostgresError naming what is missing, IntegrityError."""
    place = await find(cursor, relation)
    await cursor.execute(_COLUMNS, [place.oid])
    columns = _match(relation, {row[0]: TargetColumn(*row) for row in await cursor.fetchall()})
    await cursor.execute(_KEYS, [place.oid])
    shape, equality = _with_key(relation, await cursor.fetchall())
    return Table(shape, place, columns, equality, await users_code.find(cursor.connection, place.oid))


def _match(relation: Relation, present: dict[str, TargetColumn]) -> tuple[TargetColumn, ...]:
    missing = [column.name for column in relation.columns if column.name not in present]
    if missing:
        raise PostgresError(
            f"table {relation} of the target lacks columns of the source: {', '.join(missing)}",
            hint="Take a newer base snapshot at the source, or add the columns to the target.",
        )
    return tuple(present[column.name] for column in relation.columns)


def _with_key(relation: Relation, indexed: list[tuple[Any, ...]]) -> tuple[Shape, tuple[tuple[str, str], ...]]:
    """The key is what the source sends as such; with REPLICA IDENTITY FULL it is the target's own, if any."""
    indexes: dict[int, dict[str, tuple[str, str]]] = {}
    for index, column, operator, schema in indexed:
        indexes.setdefault(index, {})[column] = (schema, operator)
    places = {column.name: at for at, column in enumerate(relation.columns)}
    if relation.identity == "f":
        usable = [operators for operators in indexes.values() if operators.keys() <= places.keys()]
        operators = usable[0] if usable else {}
        key = tuple(places[name] for name in operators)
    else:
        names = {column.name for column in relation.columns if column.key}
        operators = next((each for each in indexes.values() if each.keys() == names), {})
        key = tuple(places[column.name] for column in relation.columns if column.key)
    equality = tuple(operators.get(relation.columns[at].name, _DEFAULT_EQUALITY) for at in key)
    return Shape(relation, key or None), equality
