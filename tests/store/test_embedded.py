"""Embedded servers start, survive what a test does to them, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest
from botocore.exceptions import ClientError

from archiver.embedded import PostgresServer, S3Server
from archiver.errors import PostgresError
from tests.fix_servers import MakeBucket, MakeDatabase


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)
    return condition()


def gone(pid: int) -> bool:
    """Whether the process has ended, even if nobody has waited for it."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_postgresql_keeps_its_port_and_data_through_restart_and_kill() -> None:
    server = PostgresServer(settings={"fsync": False, "wal_level": "logical"})
    try:
        server.start()
        port = server.port
        server.execute("CREATE TABLE t AS SELECT 1 AS n")
        server.settings["work_mem"] = "5MB"
        server.restart()
        assert server.execute("SELECT n, current_setting('work_mem') FROM t") == [(1, "5MB")]
        server.stop("immediate")
        assert server.pid is None
        server.start()
        server.kill()
        server.start()
        assert server.port == port
        assert server.execute("SELECT current_setting('wal_level')") == [("logical",)]
    finally:
        folder = server.folder
        server.close()
    assert not folder.exists()


def test_a_postgresql_that_does_not_start_shows_its_log_and_leaves_nothing() -> None:
    server = PostgresServer(settings={"shared_buffers": "nonsense"})
    with pytest.raises(PostgresError, match="shared_buffers"):
        server.start()
    with pytest.raises(PostgresError, match="not started"):
        _ = server.folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another user")
@pytest.mark.parametrize("contained", [False, True])
def test_programs_that_the_servers_user_cannot_reach_are_copied(
    pg: PostgresServer, tmp_path: Path, contained: bool
) -> None:
    tmp_path.chmod(0o700)
    package = pg.bin("").parents[1]
    private = shutil.copytree(package, tmp_path / package.name)
    shutil.copytree(package.with_name(f"{package.name}.libs"), tmp_path / f"{package.name}.libs")
    with closing(PostgresServer(bindir=private / "pginstall" / "bin", contained=contained)) as server:
        server.start()
        assert server.bin("postgres").is_relative_to(server.folder)
        assert server.execute("SELECT 1") == [(1,)]


def test_the_client_programs_come_along(pg: PostgresServer) -> None:
    result = subprocess.run([pg.bin("pg_dump"), pg.dsn(), "--schema-only"], capture_output=True, check=True)
    assert b"PostgreSQL database dump" in result.stdout


def test_another_version_runs_as_well(pg15: PostgresServer) -> None:
    assert pg15.execute("SELECT current_setting('server_version_num')::int / 10000") == [(15,)]


def test_a_database_is_dropped_with_its_slots(pg: PostgresServer, request: pytest.FixtureRequest) -> None:
    from tests.fix_servers import drop_database

    make: MakeDatabase = request.getfixturevalue("make_database")
    dsn = make()
    name = dsn.rpartition("/")[2]
    pg.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')", dbname=name)
    command = [str(pg.bin("pg_recvlogical")), "-d", dsn, "--slot", name, "--start", "-f", os.devnull, "--no-loop"]
    reader = subprocess.Popen([*command, "-o", "proto_version=1", "-o", "publication_names=p"], stderr=subprocess.PIPE)
    drop_database(pg, name)
    reader.communicate()
    assert pg.execute(f"SELECT 1 FROM pg_database WHERE datname = '{name}'") == []
    assert pg.execute(f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{name}'") == []


def read_when_ready(server: S3Server) -> bytes:
    """The object; a server that has just come up may answer 500 until its volumes are known."""
    for _ in range(50):
        with suppress(ClientError):
            return server.client().get_object(Bucket="archive", Key="k")["Body"].read()
        time.sleep(0.2)
    return server.client().get_object(Bucket="archive", Key="k")["Body"].read()


def test_an_s3_server_keeps_its_port_and_data_through_restart_and_kill(own_s3_server: S3Server) -> None:
    server = own_s3_server
    server.client().put_object(Bucket="archive", Key="k", Body=b"kept")
    endpoint = server.endpoint
    server.restart()
    assert read_when_ready(server) == b"kept"
    server.kill()
    server.start()
    assert server.endpoint == endpoint
    assert read_when_ready(server) == b"kept"


@pytest.mark.parametrize("kind", [PostgresServer, S3Server])
def test_nobody_else_can_look_into_a_servers_folder(kind: type[PostgresServer | S3Server]) -> None:
    """Its log quotes statements, and the S3 server's settings hold keys."""
    with closing(kind()) as server:
        server.start()
        assert server.folder.stat().st_mode & 0o077 == 0
        assert server.log.stat().st_mode & 0o077 == 0


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    with closing(PostgresServer()) as server:
        server.start()
        server.stop()
        server.log.unlink()
        server.log.symlink_to(tmp_path / "victim")
        with pytest.raises(OSError, match="symbolic links"):
            server.start()
    assert not (tmp_path / "victim").exists()


def test_a_bucket_is_made_in_both_regions(s3_servers: tuple[S3Server, S3Server], make_bucket: MakeBucket) -> None:
    bucket = make_bucket()
    for server in s3_servers:
        server.client().head_bucket(Bucket=bucket)


async def test_a_server_whose_start_is_cancelled_is_stopped_and_removed() -> None:
    server = PostgresServer()

    async def run() -> None:
        async with server:
            pytest.fail("started although cancelled")

    running = asyncio.create_task(run())
    await asyncio.to_thread(eventually, lambda: server._folder is not None)
    folder = server.folder
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert server.pid is None
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["PostgresServer", "S3Server"])
def test_a_server_does_not_outlive_its_owner(kind: str) -> None:
    script = f"""
import sys, threading
from archiver.embedded import {kind}
server = {kind}()
# From a thread that ends, as asyncio.to_thread's may.
thread = threading.Thread(target=server.start); thread.start(); thread.join()
print(server.pid, server.folder, flush=True)
sys.stdin.read()
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid, _, folder = owner.stdout.readline().strip().partition(" ")
    assert not gone(int(pid))
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert eventually(lambda: gone(int(pid)))
    assert eventually(lambda: not Path(folder).exists())


def test_trust_is_for_loopback_only(pg: PostgresServer) -> None:
    assert pg.execute("SHOW listen_addresses") == [("127.0.0.1",)]
    with psycopg.connect(pg.dsn(), autocommit=True) as connection:
        assert connection.info.host == "127.0.0.1"


def test_a_new_server_whose_port_was_taken_meanwhile_starts_on_another() -> None:
    with closing(S3Server()) as server, socket.socket() as other:
        taken = server._ports["s3.port"]
        other.bind(("127.0.0.1", taken))
        other.listen()
        server.start()
        assert server._ports["s3.port"] != taken
