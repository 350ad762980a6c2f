"""What a connection is, wherever libpq has its parameters from: encrypted and verified, or as the operator wrote."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from archiver.config import SourceSection
from archiver.embedded import PostgresServer, Tls
from archiver.errors import PostgresError
from archiver.postgres import tls_policy
from archiver.postgres.client_programs import dump_schema, find_pg_dump
from archiver.postgres.preflight import check_server
from archiver.postgres.session import connect
from tests.fix_servers import DEBIAN_15, PG_SETTINGS

PASSWORD = "geheim"
WriteService = Callable[..., None]


@pytest.fixture(autouse=True)
def as_if_remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """127.0.0.1 counts as another machine; nothing of the user's own is looked at."""
    monkeypatch.setattr(tls_policy, "is_local", lambda host: host.startswith("/"))
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def write_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteService:
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    def write(port: int, *more: str) -> None:
        lines = ["[other]", "sslmode=disable", "[shop]", "host=127.0.0.1", f"port={port}", "user=postgres"]
        (tmp_path / "services").write_text("\n".join([*lines, "dbname=postgres", f"password={PASSWORD}", *more, ""]))

    return write


SSL_REQUEST = bytes.fromhex("0000000804d2162f")


@contextmanager
def without_tls(heard: list[bytes]) -> Iterator[int]:
    """A server that says it has no TLS, and keeps what it is told."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(5)
                    heard.append(connection.recv(8))
                    connection.sendall(b"N")
                    heard.append(connection.recv(1000))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("dsn", "in_file", "variables"),
    [
        ("service=shop", [], {}),
        ("service=shop", [], {"PGSSLMODE": "disable"}),
        ("service=shop", ["sslmode=prefer"], {}),
        ("service=shop", ["# sslmode=disable"], {}),
        ("dbname=shop", [], {"PGSERVICE": "shop"}),
        ("dbname=shop", [], {"PGSERVICE": "shop", "PGSSLMODE": "prefer"}),
        ("host=127.0.0.1 port={port} user=postgres password=geheim", [], {"PGSSLMODE": "disable"}),
        ("port={port} user=postgres password=geheim", [], {"PGHOST": "127.0.0.1", "PGSSLMODE": "allow"}),
        ("host=localhost port={port} user=postgres password=geheim", [], {"PGHOSTADDR": "127.0.0.1"}),
    ],
)
async def test_no_password_goes_to_a_server_without_tls_because_of_a_default(
    dsn: str,
    in_file: list[str],
    variables: dict[str, str],
    write_service: WriteService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server, or whoever stands before it, that says it has no TLS: nothing but the question may have reached it."""
    heard: list[bytes] = []
    with without_tls(heard) as port:
        write_service(port, *in_file)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(PostgresError) as refused:
            await connect(dsn.format(port=port), purpose="test")
        assert not refused.value.transient
        assert refused.value.hint
    assert b"".join(heard) == SSL_REQUEST


@pytest.fixture(scope="module")
def encrypted(tls: Tls) -> Iterator[PostgresServer]:
    """A server with a certificate for 127.0.0.1 of an authority that nobody knows. (The embedded one has no TLS.)"""
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip(f"no PostgreSQL 15 in {DEBIAN_15}: apt-get install postgresql-15")
    settings = PG_SETTINGS | {"ssl": True, "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}
    with closing(_Encrypted(tls, settings)) as server:
        server.start()
        yield server


class _Encrypted(PostgresServer):
    def __init__(self, tls: Tls, settings: dict[str, str | int | bool]) -> None:
        super().__init__(settings=settings, bindir=DEBIAN_15)
        self._tls = tls

    def _create(self) -> None:
        super()._create()
        data = self.folder / "data"
        for name, path in (("server.crt", self._tls.cert), ("server.key", self._tls.key)):
            shutil.copy(path, data / name)
            (data / name).chmod(0o600)
            os.chown(data / name, data.stat().st_uid, data.stat().st_gid)


async def test_a_server_that_nobody_verified_is_refused(encrypted: PostgresServer, write_service: WriteService) -> None:
    write_service(encrypted.port)
    with pytest.raises(PostgresError, match="certificate"):
        await connect("service=shop", purpose="test")
    with pytest.raises(PostgresError, match="certificate"):
        await dump_schema("service=shop", await find_pg_dump(15, DEBIAN_15 / "pg_dump"), snapshot=None)


@pytest.mark.parametrize("mode", ["require", "verify-ca", "allow", "disable"])
async def test_what_a_service_file_says_in_so_many_words_is_done_and_check_names_it(
    encrypted: PostgresServer, write_service: WriteService, tls: Tls, mode: str
) -> None:
    write_service(encrypted.port, f"sslmode={mode}", f"sslrootcert={tls.ca}")
    async with await connect("service=shop", purpose="test") as conn:
        [found, *_] = await check_server(conn, SourceSection(dsn="service=shop", slot="s", publication="p"))
    assert (found.name, found.status) == ("TLS", "warn")
    assert f"sslmode={mode}" in found.detail
    assert "PostgreSQL database dump" in await dump_schema(
        "service=shop", await find_pg_dump(15, DEBIAN_15 / "pg_dump"), snapshot=None
    )


async def test_an_authority_in_the_service_file_is_enough_for_the_whole_policy(
    encrypted: PostgresServer, write_service: WriteService, tls: Tls
) -> None:
    write_service(encrypted.port, f"sslrootcert={tls.ca}")
    async with await connect("service=shop", purpose="test") as conn:
        assert conn.pgconn.ssl_in_use
        [(version,)] = await (
            await conn.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        ).fetchall()
        [found, *_] = await check_server(conn, SourceSection(dsn="service=shop", slot="s", publication="p"))
    assert (version, found.status) == ("TLSv1.3", "ok")


async def test_the_connection_string_beats_the_service_file(
    encrypted: PostgresServer, write_service: WriteService
) -> None:
    write_service(encrypted.port, "sslmode=verify-full")
    async with await connect("service=shop sslmode=require ssl_min_protocol_version=TLSv1.2", purpose="test") as conn:
        assert len(tls_policy.weaknesses(conn)) == 2


async def test_a_connection_that_is_not_what_was_asked_for_is_closed(
    encrypted: PostgresServer, write_service: WriteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look does not rely on how the parameters were found."""
    write_service(encrypted.port)
    monkeypatch.setattr(tls_policy, "additions", lambda _given: {"sslmode": "require"})
    with pytest.raises(PostgresError, match="not made with sslmode"):
        await connect("service=shop", purpose="test")
    monkeypatch.setattr(tls_policy, "additions", lambda _given: {"sslmode": "disable"})
    with pytest.raises(PostgresError, match="not encrypted"):
        await connect("service=shop", purpose="test")
