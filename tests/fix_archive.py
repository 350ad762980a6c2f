"""An archive of a database, driven in process: the daemon's real code on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.archive import OpenArchive, create_archive, open_archive
from archiver.cli.key import write_key
from archiver.config import Config
from archiver.daemon import Daemon
from archiver.embedded import S3Server
from archiver.lsn import Lsn
from archiver.policy.target import Target, ToLatest
from archiver.postgres import setup
from archiver.postgres.replication_slot import create_slot, identify_system
from archiver.postgres.session import connect
from archiver.recovery_plan import make_plan
from archiver.regions import open_keks, open_regions
from archiver.restore import Summary, run_restore
from archiver.store.mirror import Mirror
from tests.fix_servers import MakeBucket, MakeDatabase


@dataclass
class Setup:
    """A source database, its configuration, and what one does with them."""

    dsn: str
    config: Config
    make_database: MakeDatabase

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True)

    def regions(self) -> Mirror:
        return open_regions(self.config)

    async def init(self, keyless: setup.Keyless | None = "full") -> None:
        source = self.config.require_source()
        conn = await connect(self.dsn, purpose="test")
        replication = await connect(self.dsn, purpose="test", replication=True)
        mirror = self.regions()
        try:
            system = await identify_system(replication)
            await create_archive(
                mirror,
                self.config.archive.name,
                open_keks(self.config),
                system_identifier=system.system_id,
                database=system.database,
            )
            await setup.set_up_publication(conn, source.publication, source.exclude, keyless)
            await create_slot(replication, source.slot, export=False, watch=conn)
        finally:
            await conn.close()
            await replication.close()
            await mirror.close()

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Daemon]:
        """A daemon that runs meanwhile, and drains at the end."""
        async with running(Daemon(self.config)) as daemon:
            yield daemon

    @asynccontextmanager
    async def open(self, prefer: str | None = None) -> AsyncIterator[OpenArchive]:
        mirror = open_regions(self.config, prefer=prefer)
        try:
            yield await open_archive(mirror, self.config.archive.name, open_keks(self.config))
        finally:
            await mirror.close()

    async def archived(self, lsn: Lsn | None = None) -> None:
        """Wait until a base snapshot is there and the log covers `lsn`, by default the source's position now."""
        if lsn is None:
            with self.connect() as conn:
                row = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
                assert row is not None
                lsn = Lsn.parse(row[0]).before_page_header()
                # What no commit flushes (pruning) is sent up to 15 s later: an empty commit wakes the WAL writer.
                conn.execute("SELECT pg_current_xact_id()")
        async with self.open() as archive:
            async with asyncio.timeout(60):
                while True:
                    entries = [signed.entry async for signed in archive.log.scan()]
                    ends = [entry.end_lsn for entry in entries if entry.kind == "changes"]
                    if ends and ends[-1] >= lsn and any(entry.kind == "snapshot" for entry in entries):
                        return
                    await asyncio.sleep(0.2)

    async def restore(self, target: Target | None = None, prefer: str | None = None) -> tuple[str, Summary]:
        """Restore into a new database; its DSN and the summary."""
        dsn = self.make_database(stem="restored")
        async with self.open(prefer) as archive:
            plan = await make_plan(archive, target or ToLatest())
            return dsn, await run_restore(archive, plan, dsn)


@asynccontextmanager
async def running(daemon: Daemon) -> AsyncIterator[Daemon]:
    """Run a daemon meanwhile; it drains at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(daemon.run(stop))
    try:
        yield daemon
        stop.set()
        await task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


MakeSetup = Callable[..., Setup]


@pytest.fixture
def make_setup(
    make_database: MakeDatabase,
    make_bucket: MakeBucket,
    s3_servers: tuple[S3Server, S3Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> MakeSetup:
    """Makes a source database with a configuration of two S3 regions; sections given replace the defaults."""
    for number, server in enumerate(s3_servers):
        monkeypatch.setenv(f"REGION{number}_KEY", server.access_key)
        monkeypatch.setenv(f"REGION{number}_SECRET", server.secret_key)
    kek = tmp_path / "kek"
    write_key(kek)

    def make(dsn: str | None = None, **sections: Any) -> Setup:
        bucket = make_bucket()
        dsn = dsn or make_database()
        regions = [
            {
                "name": name,
                "url": f"s3://{bucket}/archive",
                "endpoint": server.endpoint,
                "access_key_env": f"REGION{number}_KEY",
                "secret_key_env": f"REGION{number}_SECRET",
            }
            for number, (name, server) in enumerate(zip(("primary", "secondary"), s3_servers, strict=True))
        ]
        name = str(conninfo_to_dict(dsn)["dbname"])[-12:].replace("_", "-").strip("-")
        fields = {
            "archive": {"name": name},
            "source": {"dsn": dsn},
            "region": regions,
            "encryption": {"keys": [f"file:{kek}"]},
            "segment": {"max_age": "500ms"},
            "http": {"listen": "127.0.0.1:0"},
        }
        return Setup(dsn, Config.model_validate(fields | sections), make_database)

    return make
