"""Servers for tests: embedded PostgreSQL and S3, started once a session, with fresh databases and buckets.

The servers are shared: a test that stops, kills or freezes one starts its own (`own_s3_server`, PostgresServer).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psycopg
import pytest
import trustme

from archiver.embedded import PostgresServer, S3Server, Tls
from archiver.store.s3 import S3Store

MakeDatabase = Callable[..., str]
MakeBucket = Callable[[], str]

PG_SETTINGS: dict[str, str | int | bool] = {
    "wal_level": "logical",
    "max_replication_slots": 20,
    "max_wal_senders": 20,
    "max_connections": 100,
    "fsync": False,
}
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


def s3_store(server: S3Server, bucket: str, prefix: str = "archive", *, name: str = "region") -> S3Store:
    """A store in a bucket of `server`, with its endpoint, credentials and authority."""
    return S3Store(
        name,
        bucket,
        prefix,
        aws_region=None,
        endpoint=server.endpoint,
        access_key=server.access_key,
        secret_key=server.secret_key,
        ca_bundle=str(server.tls.ca) if server.tls else None,
    )


@pytest.fixture(scope="session")
def s3_servers() -> Iterator[tuple[S3Server, S3Server]]:
    """Two S3 servers: two regions."""
    with closing(S3Server()) as first, closing(S3Server()) as second:
        first.start()
        second.start()
        yield first, second


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate for 127.0.0.1 from an authority of our own."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    files = Tls(cert=folder / "cert.pem", key=folder / "key.pem", ca=folder / "ca.pem")
    files.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.ca)
    return files


@pytest.fixture(scope="session")
def s3_tls_server(tls: Tls) -> Iterator[S3Server]:
    with closing(S3Server(tls=tls)) as server:
        server.start()
        yield server


@pytest.fixture
def own_s3_server() -> Iterator[S3Server]:
    """An S3 server with one bucket, "archive", for a test that breaks it."""
    with closing(S3Server(buckets=["archive"])) as server:
        server.start()
        yield server


@pytest.fixture
def make_bucket(s3_servers: tuple[S3Server, S3Server]) -> MakeBucket:
    """Makes a bucket of the same new name on each of the two S3 servers."""

    def make() -> str:
        name = f"test-{secrets.token_hex(6)}"
        for server in s3_servers:
            server.create_bucket(name)
        return name

    return make


@pytest.fixture(scope="session")
def pg() -> Iterator[PostgresServer]:
    """The embedded PostgreSQL 18, ready for logical replication."""
    with closing(PostgresServer(settings=PG_SETTINGS)) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def pg15() -> Iterator[PostgresServer]:
    """Debian's PostgreSQL 15, ready for logical replication."""
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip(f"no PostgreSQL 15 in {DEBIAN_15}: apt-get install postgresql-15")
    with closing(PostgresServer(settings=PG_SETTINGS, bindir=DEBIAN_15)) as server:
        server.start()
        yield server


@pytest.fixture
def make_database(request: pytest.FixtureRequest) -> Iterator[MakeDatabase]:
    """Makes databases with a unique name, on `pg` or on the server given, and drops them and their slots."""
    with ExitStack() as made:

        def make(server: PostgresServer | None = None, *, stem: str = "test") -> str:
            server = server or request.getfixturevalue("pg")
            name = f"{stem}_{secrets.token_hex(6)}"
            server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
            made.callback(drop_database, server, name)
            return server.dsn(name)

        yield make


def drop_database(server: PostgresServer, name: str) -> None:
    """Drop a database with its replication slots and whoever is connected."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        slots = "FROM pg_replication_slots WHERE database = %s"
        while connection.execute(f"SELECT 1 {slots}", [name]).fetchone():
            connection.execute(f"SELECT pg_terminate_backend(active_pid, 5000) {slots} AND active", [name])
            with suppress(psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
                connection.execute(f"SELECT pg_drop_replication_slot(slot_name) {slots}", [name])
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
