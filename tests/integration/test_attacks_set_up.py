"""What was there before `init`, or is in its way: publications of others, and transactions that are open for hours."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from archiver.errors import PostgresError
from archiver.postgres import brief_locks, install, load, preflight, setup
from archiver.postgres.session import connect
from archiver.recovery_plan import read_history
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.integration.test_attacks_source import as_role, give_schema, is_superuser, roles

__all__ = ["roles"]


async def test_a_publication_that_is_not_ours_is_refused_by_init_check_and_the_daemon(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    """Its owner could have it leave out changes for a moment, as often as he likes."""
    owner, _ = roles
    source = make_setup()
    section = source.config.require_source()
    name = sql.Identifier(section.publication)
    with source.connect() as dba:
        dba.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(dba.info.dbname), sql.Identifier(owner))
        )
        with as_role(source.dsn, owner) as conn:
            conn.execute(sql.SQL("CREATE PUBLICATION {}").format(name))
            with pytest.raises(PostgresError, match=f"publication .* belongs to {owner}"):
                await source.init()
            async with await connect(source.dsn, purpose="test") as check:
                [found] = await preflight.check_publication(check, section)
                assert (found.status, f"belongs to {owner}" in found.detail) == ("fail", True)
                with pytest.raises(PostgresError, match="belongs to"):
                    await setup.remove_all(check, section.publication)
            conn.execute(sql.SQL("DROP PUBLICATION {}").format(name))
            await source.init()
            dba.execute(sql.SQL("DROP PUBLICATION {}").format(name))
            conn.execute(sql.SQL("CREATE PUBLICATION {}").format(name))
        with pytest.raises(PostgresError, match=f"belongs to {owner}"):
            async with source.daemon():
                await asyncio.sleep(20)


async def test_an_open_transaction_keeps_no_table_of_another_out_of_the_archive(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    """Where the publication lists its tables: what could not be added at once is added before the base snapshot."""
    owner, _ = roles
    source = make_setup()
    with source.connect() as dba:
        dba.execute("CREATE TABLE out (id int PRIMARY KEY)")
    source = make_setup(source.dsn, source={"dsn": source.dsn, "exclude": ["public.out"]})
    give_schema(source.dsn, owner)
    await source.init()
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn, source.connect() as dba:
            with conn.transaction():
                conn.execute("CREATE TABLE app.u (id int PRIMARY KEY)")
                started = time.monotonic()
                dba.execute("CREATE TABLE bank (id int PRIMARY KEY)")
                assert time.monotonic() - started < 2
            dba.execute("INSERT INTO bank VALUES (1)")
            await source.archived()
            await settled(source)
            dba.execute("INSERT INTO bank VALUES (2)")
        await source.archived()
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def settled(source: Setup) -> None:
    """Behind each loss there is a base snapshot."""
    async with asyncio.timeout(60):
        while True:
            async with source.open() as archive:
                history = await read_history(archive)
            lost = [each.lsn for segment in history.changes for each in segment.lost]
            if lost and history.snapshots[-1].lsn >= max(lost):
                return
            await asyncio.sleep(0.2)


async def remove(conn: psycopg.AsyncConnection[object], source: Setup) -> None:
    await setup.remove_all(conn, source.config.require_source().publication)


async def install_anew(conn: psycopg.AsyncConnection[object], source: Setup) -> None:
    await setup.set_up_publication(conn, source.config.require_source().publication, [], "full")


OLDER = "ALTER TABLE archiver.journal RENAME key TO older; CREATE TABLE keyless (id int)"


@pytest.mark.parametrize("work", [remove, install_anew])
async def test_nobody_waits_long_behind_us_while_a_transaction_with_ddl_is_open(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, work: Callable[..., Awaitable[None]]
) -> None:
    source = make_setup()
    await source.init()
    monkeypatch.setattr(brief_locks, "PAUSE", 0.1)
    with source.connect() as first, source.connect() as second:
        first.execute(OLDER)
        async with await connect(source.dsn, purpose="test") as conn:
            with first.transaction():
                first.execute("CREATE TABLE a (id int PRIMARY KEY)")
                under_way = asyncio.ensure_future(work(conn, source))
                for number in range(5):
                    await asyncio.sleep(0.1)
                    started = time.monotonic()
                    await asyncio.to_thread(second.execute, f"CREATE TABLE b{number} (id int PRIMARY KEY)".encode())
                    assert time.monotonic() - started < 1
                assert not under_way.done()
            await under_way
            monkeypatch.setattr(brief_locks, "ATTEMPTS", 2)
            await install_anew(conn, source)
            with first.transaction():
                first.execute("CREATE TABLE c (id int PRIMARY KEY)")
                with pytest.raises(PostgresError, match="open transactions hold locks"):
                    await remove(conn, source)


RISE = """
DROP FUNCTION archiver.write(text, jsonb);
CREATE FUNCTION archiver.write(what text, said jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE 'ALTER ROLE {owner} SUPERUSER'; END $$;
GRANT EXECUTE ON FUNCTION archiver.write(text, jsonb) TO PUBLIC;
"""


@contextlib.contextmanager
def racing(dsn: str, owner: str) -> Iterator[None]:
    """Somebody who may create schemas makes ours, and takes it away, as fast as he can."""
    ended = threading.Event()

    def race() -> None:
        with as_role(dsn, owner) as conn:
            while not ended.is_set():
                for statement in (b"CREATE SCHEMA archiver", b"DROP SCHEMA archiver"):
                    with contextlib.suppress(psycopg.Error):
                        conn.execute(statement)

    thread = threading.Thread(target=race)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def may_create_schemas(source: Setup, owner: str) -> None:
    with source.connect() as dba:
        dba.execute(f"GRANT CREATE ON DATABASE {dba.info.dbname} TO {owner}".encode())


async def test_init_uses_no_schema_that_comes_while_it_looks(make_setup: MakeSetup, roles: tuple[str, str]) -> None:
    owner, _ = roles
    source = make_setup()
    may_create_schemas(source, owner)
    with racing(source.dsn, owner):
        async with asyncio.timeout(120), await connect(source.dsn, purpose="init") as conn:
            while True:
                with contextlib.suppress(PostgresError):
                    await install_anew(conn, source)
                    break
    with as_role(source.dsn, owner) as conn, contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        conn.execute(RISE.format(owner=owner).encode())
        conn.execute("CREATE SCHEMA anything")
    assert not is_superuser(source.dsn, owner)


CAME = ["", "CREATE FUNCTION archiver.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE DOMAIN archiver.text AS int",
        "CREATE SEQUENCE archiver.losses", "CREATE TABLE archiver.journal (id uuid, kind text, key text, about text,"
        " content text)"]  # fmt: skip


@pytest.mark.parametrize("what", CAME)
async def test_what_comes_between_the_look_and_the_installation_is_refused(
    make_setup: MakeSetup, roles: tuple[str, str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    owner, _ = roles
    source = make_setup()
    may_create_schemas(source, owner)
    started = install.install

    async def late(*args: Any, **options: Any) -> bool:
        with as_role(source.dsn, owner) as other:
            other.execute(f"CREATE SCHEMA archiver; {what}".encode())
        return await started(*args, **options)

    monkeypatch.setattr(install, "install", late)
    async with await connect(source.dsn, purpose="init") as conn:
        with pytest.raises(PostgresError, match=f"belongs to {owner}"):
            await install_anew(conn, source)


async def test_a_restore_uses_no_schema_that_came_since_it_looked(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    target = make_setup()
    may_create_schemas(target, owner)
    async with await connect(target.dsn, purpose="test") as conn:
        await load.claim(conn)
        with as_role(target.dsn, owner) as other:
            other.execute("CREATE SCHEMA archiver")
            with pytest.raises(PostgresError, match="of another role"):
                await load.create_progress(conn)
            other.execute(
                "DROP TABLE IF EXISTS archiver.restore_progress; CREATE VIEW archiver.restore_progress AS SELECT 1"
            )
            with pytest.raises(PostgresError, match="of another role"):
                await load.read_progress(conn)
