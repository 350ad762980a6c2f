"""Both ways a row can come back: replayed from the stream, and loaded from a base snapshot that already has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psycopg

from archiver.snapshots import take_snapshot
from tests.dumps import difference, pg_dump
from tests.fix_archive import Setup


@dataclass
class Restored:
    """The databases restored by replay and from a newer base snapshot, and what the restores warned of."""

    replayed: str
    loaded: str
    warnings: set[str]


async def restore_both_ways(setup: Setup, before: str, changes: Iterable[str]) -> Restored:
    """Archive a database, change it, restore it by replay and by base snapshot, and compare both dumps with it."""
    with setup.connect() as conn:
        conn.execute(before.encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in changes:
                conn.execute(statement.encode())
            await setup.archived()
        replayed, first = await setup.restore()
        await take_another_snapshot(setup)
        loaded, second = await setup.restore()
    assert first.transactions_replayed > 0
    assert second.transactions_replayed == 0
    expected = pg_dump(setup.dsn)
    for way, dsn in {"replayed": replayed, "loaded": loaded}.items():
        differs = difference(pg_dump(dsn), expected)
        assert not differs, f"{way}: {differs[:3000]}"
    return Restored(replayed, loaded, set(first.warnings + second.warnings))


def apart(changes: Iterable[str]) -> Iterator[str]:
    """The same changes, each in a batch of its own: DDL ends one. Else an update merges into the insert before it."""
    for number, change in enumerate(changes):
        yield change
        yield f"COMMENT ON SCHEMA public IS '{number}'"


async def take_another_snapshot(setup: Setup) -> None:
    async with setup.open() as archive:
        await archive.follow()
        await take_snapshot(archive, setup.config.require_source(), setup.config.snapshot)


_TABLES = """
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND n.nspname !~ '^pg_|^information_schema$|^archiver$' ORDER BY 1
"""


def binary_rows(dsn: str) -> dict[str, list[bytes]]:
    """The rows of every table as the server sends them in binary; as text where a type cannot be sent so."""
    with psycopg.connect(dsn) as conn:
        conn.execute("SET search_path = ''")
        return {name: _rows(conn, name) for (name,) in conn.execute(_TABLES).fetchall()}


def _rows(conn: psycopg.Connection[tuple[object, ...]], table: str) -> list[bytes]:
    try:
        with conn.transaction(), conn.cursor() as cur, cur.copy(_copy(table, "binary")) as copy:
            return [bytes(row) for row in copy]
    except psycopg.errors.UndefinedFunction:  # aclitem, for one, has no binary form
        with conn.cursor() as cur, cur.copy(_copy(table, "text")) as copy:
            return [bytes(row) for row in copy]


def _copy(table: str, form: str) -> bytes:
    return f'COPY (SELECT * FROM ONLY {table} t ORDER BY t::text COLLATE "C") TO STDOUT (FORMAT {form})'.encode()
