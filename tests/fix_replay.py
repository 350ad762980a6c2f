"""What a publication says of a source database, applied to a target without capture between them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from archiver.lsn import Lsn
from archiver.policy.transactions import SourceTransaction, TransactionAssembler
from archiver.postgres import relations
from archiver.postgres.apply import Applier
from archiver.postgres.session import connect
from tests.fix_servers import MakeDatabase
from tests.integration.replay_source import SCHEMA, Source


@pytest.fixture
def source(make_database: MakeDatabase) -> Iterator[Source]:
    dsn = make_database()
    made = Source(dsn, "slot_" + dsn.rpartition("_")[2][:12].strip("'\" "))
    yield made
    made.conn.close()


@pytest.fixture
def target(make_database: MakeDatabase) -> str:
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SCHEMA)
        conn.execute(relations.CREATE)
        conn.execute("CREATE SCHEMA progress; CREATE TABLE progress.done (lsn pg_lsn, segment int)")
    return dsn


async def record(cursor: psycopg.AsyncCursor[Any], last: SourceTransaction) -> None:
    await cursor.execute("DELETE FROM progress.done")
    await cursor.execute("INSERT INTO progress.done VALUES (%s, %s)", [str(last.end_lsn), last.resume_segment])


@asynccontextmanager
async def applier(dsn: str, **options: Any) -> AsyncIterator[Applier]:
    conn = await connect(dsn, purpose="test")
    async with conn:
        async with Applier.open(conn, **options) as made:
            yield made
        await conn.rollback()


def assembler(**options: Any) -> TransactionAssembler:
    given: dict[str, Any] = {"after": Lsn(0), "spool": tempfile.TemporaryFile, "memory": 1 << 16}
    return TransactionAssembler(**given | options)


async def replay(messages: list[bytes], dsn: str, **options: Any) -> None:
    """Apply all messages and commit at the end."""
    transactions = assembler()
    async with applier(dsn, **options) as target:
        for message in messages:
            if transaction := transactions.feed(message):
                await target.apply(transaction)
        await target.commit(record)
