"""The state of sequences: read at the source, set at the target, and never below what rows already use.

In: a connection. Out: SequenceState values, plain enough for JSON. Sequences are outside of transactions and
of the stream: a state read after a position of the stream is at or past that position's true state.
Never: a sequence moved back, or one left where it may stand too low.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from archiver.errors import PostgresError, PostgresUnavailable
from archiver.names import TableName
from archiver.policy.sequence_log import SequenceState, furthest
from archiver.postgres import search_path, users_code
from archiver.postgres.session import postgres_error
from archiver.postgres.tables_only import tables_only
from archiver.postgres.users_code import Guarded


@dataclass(frozen=True, slots=True)
class Sequences:
    """All sequences of a database; `denied` are those that the role may not read.

    Not `complete`: the time ended before all were tried. Those that somebody holds are left out all the same.
    """

    states: list[SequenceState]
    denied: list[TableName]
    complete: bool = True


# --- Reading -------------------------------------------------------------------------------------------

_SEQUENCES: Final[LiteralString] = """
select c.oid::bigint as oid, n.nspname as schema, c.relname as name, s.seqincrement as increment,
       pg_catalog.has_sequence_privilege(c.oid, 'SELECT') as readable
from pg_catalog.pg_sequence s
join pg_catalog.pg_class c on c.oid = s.seqrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relpersistence <> 't' and n.nspname <> 'archiver'
  and pg_catalog.has_schema_privilege(n.oid, 'USAGE') is not null
order by n.nspname, c.relname
"""
# The second one locks the sequence until the transaction ends: whoever would put something else in its place waits.
_BY_OID: Final[LiteralString] = """
select w.oid::bigint, d.last_value, d.is_called
  from unnest(%s::oid[]) as w (oid) cross join lateral pg_catalog.pg_get_sequence_data(w.oid) d
"""
_CALLED_BY_OID: Final[LiteralString] = """
select w.oid::bigint, pg_catalog.pg_sequence_last_value(w.oid), true from unnest(%s::oid[]) as w (oid)
"""
"""Up to 17: null for one that was set but not called yet."""
# As they are called now, whatever snapshot the transaction has.
_NAMES: Final[LiteralString] = "select oid::bigint, oid::regclass::text from unnest(%s::oid[]) as w (oid)"
# The modes are those that ROW EXCLUSIVE, which reading takes, waits for: as well behind those who wait for such a lock.
_HELD: Final[LiteralString] = """
select l.relation::bigint from pg_catalog.pg_locks l
 where l.locktype = 'relation' and l.relation = any (%s::oid[]) and l.pid <> pg_catalog.pg_backend_pid()
   and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
   and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
_AT_ONCE: Final = 500
_BUDGET: Final = 10.0
"""Seconds, of the 30 that the source may take for an answer: what was read until then is kept."""
_LOCKED: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable, psycopg.errors.InternalError_)
"""What a batch fails with where somebody alters a sequence, or has dropped one."""


async def read_sequences(conn: psycopg.AsyncConnection[Any], *, skip_held: bool = False) -> Sequences:
    """The state of every sequence, by name: a query for the list, and some for each 500 states.

    By OID, where that can be: what bears a sequence's name may be a table by then, whose indexes' code a query would
    run. Raises PostgresUnavailable for one that somebody holds in an open ALTER SEQUENCE, or has dropped since the list
    was read, but with `skip_held`: nobody else can move it until that ends. Who holds thousands keeps no others out.
    """
    until = asyncio.get_running_loop().time() + _BUDGET
    try:
        async with conn.cursor(row_factory=dict_row) as cur:
            rows = await (await cur.execute(_SEQUENCES)).fetchall()
        readable = [row for row in rows if row["readable"]]
        states = [state for batch in _batches(readable) for state in await _read(conn, batch, until)]
    except psycopg.Error as exc:
        raise postgres_error(exc, "reading the sequences") from exc
    read = {(state.schema, state.name) for state in states}
    unread = [str(_name(row)) for row in readable if _name(row) not in read]
    if unread and not skip_held:
        raise PostgresUnavailable(f"altered or dropped just now: {', '.join(unread)}", where="reading the sequences")
    complete = asyncio.get_running_loop().time() < until
    return Sequences(states, [_name(row) for row in rows if not row["readable"]], complete)


def _name(row: Mapping[str, Any]) -> TableName:
    return TableName(row["schema"], row["name"])


def _batches(rows: Sequence[dict[str, Any]]) -> Iterable[Sequence[dict[str, Any]]]:
    return (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))


async def _read(
    conn: psycopg.AsyncConnection[Any], rows: Sequence[dict[str, Any]], until: float
) -> list[SequenceState]:
    """The states, but of those that somebody holds or has dropped."""
    rows = await _free(conn, rows)
    if not rows or asyncio.get_running_loop().time() > until:
        return []
    try:
        async with conn.transaction():
            return await _locked(conn, {row["oid"]: row for row in rows})
    except _LOCKED:  # somebody came in between
        if len(rows) == 1:
            return []
    half = len(rows) // 2
    return await _read(conn, rows[:half], until) + await _read(conn, rows[half:], until)


async def _free(conn: psycopg.AsyncConnection[Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that nobody holds: for each of the others a query would wait."""
    held = {oid for (oid,) in await (await conn.execute(_HELD, ([row["oid"] for row in rows],))).fetchall()}
    return [row for row in rows if row["oid"] not in held]


async def _locked(conn: psycopg.AsyncConnection[Any], rows: Mapping[int, dict[str, Any]]) -> list[SequenceState]:
    """Read sequences, by OID; in a transaction, to whose end they are locked."""
    await conn.execute("SET LOCAL lock_timeout = '100ms'")
    tells_all = conn.info.server_version >= 180000
    found = await (await conn.execute(_BY_OID if tells_all else _CALLED_BY_OID, (list(rows),))).fetchall()
    by_oid = {oid: (value, called) for oid, value, called in found if value is not None}
    if not tells_all:
        by_oid |= await _never_called(conn, sorted(rows.keys() - by_oid.keys()))
    return [
        SequenceState(row["schema"], row["name"], *by_oid[oid], row["increment"])
        for oid, row in rows.items()
        if oid in by_oid
    ]


async def _never_called(conn: psycopg.AsyncConnection[Any], oids: Sequence[int]) -> dict[int, tuple[int, bool]]:
    """From their own relations, by the names that they have now, under a lock that keeps them."""
    if not oids:
        return {}
    for statement in tables_only(conn):
        await conn.execute(statement)
    names = await (await conn.execute(_NAMES, (list(oids),))).fetchall()
    selects = [f"SELECT {oid}::bigint, last_value, is_called FROM {name}" for oid, name in names]  # noqa: S608 - regclass quotes
    found = await (await conn.execute(" UNION ALL ".join(selects).encode())).fetchall()
    return {oid: (value, called) for oid, value, called in found}


# --- Setting -------------------------------------------------------------------------------------------

_SET: Final[LiteralString] = """
select pg_catalog.setval(c.oid::regclass, least(greatest(%(last_value)s::bigint, s.seqmin), s.seqmax), %(is_called)s)
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_sequence s on s.seqrelid = c.oid
where n.nspname = %(schema)s and c.relname = %(name)s
"""
"""A state may be from before the sequence was made anew with other bounds: it then stands at its last value."""


async def set_sequences(conn: psycopg.AsyncConnection[Any], states: Iterable[SequenceState]) -> list[SequenceState]:
    """Move each sequence to its state unless it is past it; returns the states of sequences that are missing.

    A sequence dropped between two readings is missing at a later target: that is no error. Raises PostgresError for
    one that the role may not read or set: where it stands nobody would know.
    """
    wanted = list(states)
    there = await _standing(conn, wanted)
    ahead = [state for state in wanted if (now := there.get((state.schema, state.name))) and state.is_past(now)]
    try:
        async with conn.cursor() as cur:
            await cur.executemany(_SET, [state.to_json() for state in ahead])
    except psycopg.Error as exc:
        raise postgres_error(exc, "setting the sequences") from exc
    return [state for state in wanted if (state.schema, state.name) not in there]


async def _standing(
    conn: psycopg.AsyncConnection[Any], wanted: Sequence[SequenceState]
) -> dict[tuple[str, str], SequenceState]:
    """Where sequences stand. Raises PostgresError if that cannot be told of one that is wanted."""
    found = await read_sequences(conn)
    if denied := sorted({TableName(state.schema, state.name) for state in wanted}.intersection(found.denied)):
        raise PostgresError(
            f"the role may not read these sequences, which may stand too low: {', '.join(map(str, denied))}",
            where=conn.info.dbname,
            hint=f"GRANT SELECT, UPDATE ON each SEQUENCE TO {conn.info.user}, and repeat the command: a restore goes on"
            " where it stopped.",
        )
    return {(state.schema, state.name): state for state in found.states}


_USES: Final[LiteralString] = """
with recursive tree (root, rel) as (
    select oid, oid from pg_catalog.pg_class where relkind in ('r', 'p')
    union select t.root, i.inhrelid from tree t join pg_catalog.pg_inherits i on i.inhparent = t.rel
)
select distinct sn.nspname as sequence_schema, s.relname as sequence, q.seqincrement as increment,
       q.seqmin, q.seqmax, tn.nspname as table_schema, t.relname as table, a.attname as column
from pg_catalog.pg_sequence q
join pg_catalog.pg_class s on s.oid = q.seqrelid
join pg_catalog.pg_namespace sn on sn.oid = s.relnamespace
join (
    select objid as seq, refobjid as rel, refobjsubid as att from pg_catalog.pg_depend
     where classid = 'pg_catalog.pg_class'::regclass and refclassid = 'pg_catalog.pg_class'::regclass
       and deptype in ('a', 'i') and refobjsubid > 0
    union
    select d.refobjid, f.adrelid, f.adnum from pg_catalog.pg_depend d
      join pg_catalog.pg_attrdef f on f.oid = d.objid
     where d.classid = 'pg_catalog.pg_attrdef'::regclass and d.refclassid = 'pg_catalog.pg_class'::regclass
) u on u.seq = s.oid
join pg_catalog.pg_attribute fed on fed.attrelid = u.rel and fed.attnum = u.att and not fed.attisdropped
join tree on tree.root = u.rel
join pg_catalog.pg_class t on t.oid = tree.rel and t.relkind = 'r' and t.relpersistence <> 't'
join pg_catalog.pg_namespace tn on tn.oid = t.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attname = fed.attname
where a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
  and tn.nspname <> 'archiver'
order by 1, 2, 6, 7, 8
"""
"""Sequences with the integer columns they feed: owned (serial), internal (identity), or named in a default.

Each table and partition by itself, for foreign ones among them are not to be asked."""


async def raise_to_columns(conn: psycopg.AsyncConnection[Any]) -> list[SequenceState]:
    """Move sequences past the values that their columns hold; returns those that were moved, as they are now."""
    behind = await behind_columns(conn)
    await set_sequences(conn, behind)
    return behind


async def behind_columns(conn: psycopg.AsyncConnection[Any]) -> list[SequenceState]:
    """Where sequences would have to stand whose columns hold values that they have not given yet.

    Raises PostgresError for one that the role may not read.
    """
    try:
        async with conn.cursor(row_factory=dict_row) as cur:
            uses = await (await cur.execute(_USES)).fetchall()
        guarded = await users_code.by_name(conn)
        reached = [state for use in uses if (state := await _reached(conn, use, guarded)) is not None]
    except psycopg.Error as exc:
        raise postgres_error(exc, "comparing sequences with their columns") from exc
    needed = furthest(reached)
    there = await _standing(conn, needed)
    return [state for state in needed if state.is_past(there[state.schema, state.name])]


async def _reached(
    conn: psycopg.AsyncConnection[Any], use: dict[str, Any], guarded: Mapping[TableName, Guarded]
) -> SequenceState | None:
    """The state of a sequence that has just given the furthest value in a column."""
    furthest_value = sql.SQL("max" if use["increment"] > 0 else "min")
    query = sql.SQL("SELECT {}({}) FROM ONLY {} WHERE {} BETWEEN {} AND {}").format(
        furthest_value,
        column := sql.Identifier(use["column"]),
        sql.Identifier(use["table_schema"], use["table"]),
        column,
        use["seqmin"],
        use["seqmax"],
    )
    value = await _value(conn, query, guarded.get(TableName(use["table_schema"], use["table"])))
    if value is None:
        return None
    return SequenceState(use["sequence_schema"], use["sequence"], value, True, use["increment"])


async def _value(conn: psycopg.AsyncConnection[Any], query: sql.Composed, guarded: Guarded | None) -> int | None:
    if guarded is not None:
        answer = await guarded.ask(conn, query)
        return None if answer is None else int(answer)
    async with search_path.of_users(conn):
        row = await (await conn.execute(query)).fetchone()
    return row[0] if row else None
