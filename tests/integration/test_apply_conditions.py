"""Replay that is interrupted, cut off or not allowed everything, and a target that does not fit."""

from __future__ import annotations

import random

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from archiver.errors import IntegrityError, PostgresError, PostgresUnavailable
from archiver.lsn import Lsn
from archiver.postgres.apply import Applier
from archiver.postgres.session import connect
from tests.fix_replay import applier, assembler, record, replay
from tests.integration.replay_source import Segment, Source, assert_equal, cut


async def test_an_interrupted_replay_goes_on_where_it_committed(source: Source, target: str) -> None:
    """Every tenth transaction commits; the process dies now and then, and its successor reads what it needs."""
    generator = random.Random(7)
    with psycopg.connect(source.conn.info.dsn) as other:
        for number in range(120):
            source.run(f"INSERT INTO plain (id, name) VALUES ({number}, 'x'); UPDATE plain SET amount = {number}")
            other.execute(
                f"INSERT INTO uniq SELECT {number}00 + i, {number}00 + i, repeat('z', 20) FROM generate_series(1, 99) i"
            )
            if number % 40 == 39:
                other.commit()
    messages = source.messages()
    segments = list(cut(messages, 50))
    after, first, finished, rounds = Lsn(0), 0, False, 0
    while not finished and rounds < 200:
        rounds += 1
        finished = await replay_some(segments, target, after, first, fail_at=generator.randrange(5, 60))
        with psycopg.connect(target) as conn:
            row = conn.execute("SELECT lsn::text, segment FROM progress.done").fetchone()
        after, first = (Lsn.parse(row[0]), row[1]) if row else (Lsn(0), 0)
    assert finished
    assert rounds > 3
    assert_equal(source, target)


async def replay_some(segments: list[Segment], dsn: str, after: Lsn, first: int, *, fail_at: int) -> bool:
    transactions = assembler(after=after)
    count = 0
    async with applier(dsn) as target:
        for ordinal, segment in enumerate(segments[first:], first):
            transactions.begin_segment(ordinal)
            if segment.within is not None:
                transactions.context(segment.within)
            for xid, message in segment.relations:
                transactions.preamble(xid, message)
            for message in segment.messages:
                if transaction := transactions.feed(message):
                    await target.apply(transaction)
                    count += 1
                    if count % 10 == 0:
                        await target.commit(record)
                    if count == fail_at:
                        return False
        await target.commit(record)
    return True


async def test_a_change_that_does_not_find_its_row_is_an_integrity_error(source: Source, target: str) -> None:
    source.run("INSERT INTO plain VALUES (1), (2)")
    source.messages()
    for statement in ("UPDATE plain SET name = 'x' WHERE id = 1", "DELETE FROM plain WHERE id = 2"):
        source.run(statement)
        with pytest.raises(IntegrityError, match=r"diverged: 1 rows of public.plain change, 0 were found"):
            await replay(source.messages(), target)


async def test_a_missing_table_or_column_is_named(source: Source, target: str) -> None:
    source.run("CREATE TABLE unknown (id int PRIMARY KEY)", "INSERT INTO unknown VALUES (1)")
    with pytest.raises(PostgresError, match=r"no table public\.unknown"):
        await replay(source.messages(), target)
    source.run("ALTER TABLE plain ADD COLUMN surprise int", "INSERT INTO plain (id) VALUES (1)")
    with pytest.raises(PostgresError, match=r"public.plain .* lacks columns of the source: surprise"):
        await replay(source.messages(), target)


async def test_a_connection_that_breaks_is_reported_as_unavailable(source: Source, target: str) -> None:
    source.run("INSERT INTO plain SELECT i, 'x' FROM generate_series(1, 100) i")
    conn = await connect(target, purpose="test")
    async with conn, Applier.open(conn) as broken:
        source.run(f"SELECT pg_terminate_backend({conn.info.backend_pid}, 5000)")
        transactions = assembler()
        (transaction,) = filter(None, map(transactions.feed, source.messages()))
        with pytest.raises(PostgresUnavailable, match="terminating connection"):
            await broken.apply(transaction)


async def test_a_role_that_may_not_silence_triggers_can_still_replay(source: Source, target: str) -> None:
    role = f"owner_{source.slot}"
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA progress, archiver TO {role}")
        conn.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public, progress, archiver TO {role}")
    source.run("INSERT INTO plain SELECT i, 'x' FROM generate_series(1, 100) i", "UPDATE plain SET name = 'y'")
    await replay(source.messages(), make_conninfo(target, user=role))
    assert_equal(source, target)
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
