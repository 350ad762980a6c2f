"""Nobody but superusers comes into a target while it is restored: what code a table runs is looked at before it is written."""

from __future__ import annotations

import contextlib
import threading
import time

import psycopg
import pytest

from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.restore import run_restore
from tests.integration.test_containment import World, rights, world

__all__ = ["world"]

LIMIT = "SELECT datconnlimit FROM pg_database WHERE datname = current_database()"


class Watcher(threading.Thread):
    """He waits for his table, from a session that he has already or by new ones, and adds a check to it."""

    def __init__(self, dsn: str, role: str) -> None:
        super().__init__(daemon=True)
        self._dsn, self._role = dsn, role
        self.ended = threading.Event()
        self.refused = 0
        self.added = False

    def run(self) -> None:
        while not self.ended.is_set() and not self.added:
            try:
                with psycopg.connect(self._dsn, user=self._role, autocommit=True) as conn:
                    self._add_when_it_is_there(conn)
            except psycopg.OperationalError:
                self.refused += 1
                time.sleep(0.05)

    def _add_when_it_is_there(self, conn: psycopg.Connection) -> None:  # type: ignore[type-arg]
        while not self.ended.is_set():
            with contextlib.suppress(psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                conn.execute("SELECT 'app.t'::regclass")
                time.sleep(0.5)  # rows of larger tables are being loaded
                conn.execute("ALTER TABLE app.t ADD CHECK (app.escalate() > 0) NOT VALID")
                self.added = True
                return
            time.sleep(0.005)


@pytest.mark.parametrize("limit", [-1, 7])
async def test_who_may_log_in_at_the_target_changes_no_table_while_it_is_restored(world: World, limit: int) -> None:
    await world.archive(
        [
            "CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1)",
            "dba: CREATE TABLE public.large (id int PRIMARY KEY, v text);"
            "INSERT INTO public.large SELECT i, md5(i::text) || md5((-i)::text) FROM generate_series(1, 400000) i",
        ],
        ["COMMENT ON TABLE app.t IS 'x'"],
    )
    before = rights(world.setup.dsn)
    dsn = world.setup.make_database(stem="restored")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} CONNECTION LIMIT {limit}".encode())
    watcher = Watcher(dsn, world.evil)
    watcher.start()
    async with world.setup.open() as archive:
        await run_restore(archive, await make_plan(archive, ToLatest()), dsn, jobs=1)
    watcher.ended.set()
    watcher.join()
    assert watcher.refused
    assert not watcher.added
    assert rights(dsn) == before
    with psycopg.connect(dsn, user=world.evil) as conn:
        assert conn.execute(LIMIT).fetchone() == (limit,)
