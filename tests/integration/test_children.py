"""What the programs that we start are told: their server and its password, and nothing of the archive's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from archiver.child_environment import child_environment, client_environment
from archiver.embedded import PostgresServer, S3Server
from archiver.postgres.client_programs import ClientProgram, dump_schema, find_pg_dump, inspect
from tests.fix_cli import Site
from tests.fix_servers import MakeDatabase
from tests.integration.test_cli_drill import shop  # noqa: F401 - a fixture

SECRETS = {
    "ARCHIVER_KEK": "geheim-kek",
    "ARCHIVER_SOURCE__DSN": "postgresql://u:geheim-dsn@h/d",
    "AWS_SECRET_ACCESS_KEY": "geheim-aws",
    "AWS_SESSION_TOKEN": "geheim-token",
    "FRA_SECRET": "geheim-region",
    "SOMEBODY_ELSES": "geheim-other",
}


@pytest.fixture(autouse=True)
def with_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def descendants(pid: int) -> Iterator[Path]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            yield Path(f"/proc/{child}")
            yield from descendants(int(child))


def waiting_program(folder: Path, real: Path) -> Path:
    """A program that tells when it runs, and goes on as the real one when it may."""
    path = folder / "pg_dump"
    path.write_text(
        f'#!/bin/sh\ntouch "{folder}/runs"\nwhile [ ! -e "{folder}/go" ]; do sleep 0.05; done\nexec "{real}" "$@"\n'
    )
    path.chmod(0o755)
    return path


async def test_no_child_of_ours_has_a_secret_of_the_archives_in_its_environment(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    real = await find_pg_dump(18)
    program = ClientProgram(waiting_program(tmp_path, real.path), 18)
    with closing(PostgresServer()) as server, closing(S3Server()) as region:
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(region.start)
        dumping = asyncio.create_task(dump_schema(make_database(), program, snapshot=None))
        async with asyncio.timeout(20):
            while not (tmp_path / "runs").exists():
                await asyncio.sleep(0.05)
        found = {process.name: (process / "environ").read_bytes() for process in descendants(os.getpid())}
        (tmp_path / "go").touch()
        assert "PostgreSQL database dump" in await dumping
    assert len(found) > 8  # two servers, what watches over them, the dump
    assert [pid for pid, environ in found.items() if b"geheim" in environ] == []


async def test_a_program_that_is_asked_for_its_version_has_none_either(tmp_path: Path) -> None:
    path = tmp_path / "pg_dump"
    path.write_text(f'#!/bin/sh\nenv > "{tmp_path}/seen"\necho "pg_dump (PostgreSQL) 18.0"\n')
    path.chmod(0o755)
    assert await inspect(path) == ClientProgram(path, 18)
    assert "geheim" not in (tmp_path / "seen").read_text()


def test_a_client_program_keeps_what_it_connects_with() -> None:
    needed = {"PGPASSWORD": "p", "PGSERVICEFILE": "f", "PGSSLROOTCERT": "c", "KRB5CCNAME": "k", "SSL_CERT_FILE": "s"}
    plain = {"PATH": "/bin", "HOME": "/root", "TZ": "UTC", "LC_MESSAGES": "C", "LD_LIBRARY_PATH": "/opt"}
    assert client_environment(needed | plain | SECRETS) == needed | plain
    assert child_environment(needed | plain | SECRETS) == plain


# --- the password of a target ---

PASSWORD = "geheim-target"


class Locked(PostgresServer):
    """A server that wants a password."""

    def lock(self) -> None:
        self.execute(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'")
        hba = self.folder / "data" / "pg_hba.conf"
        hba.write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        self.execute("SELECT pg_reload_conf()")


@pytest.fixture
def locked() -> Iterator[Locked]:
    with closing(Locked(settings={"fsync": False})) as server:
        server.start()
        for name in ("variable", "passfile", "service", "dsn"):
            server.execute(f"CREATE DATABASE {name}")
        server.lock()
        yield server


def test_a_target_takes_its_password_from_where_nobody_sees_it_and_says_so_where_everybody_does(
    shop: Site,  # noqa: F811
    locked: Locked,
) -> None:
    """drill: it connects by psycopg and by pg_dump."""
    (shop.folder / "pgpass").write_text(f"127.0.0.1:{locked.port}:*:postgres:{PASSWORD}\n")
    (shop.folder / "pgpass").chmod(0o600)
    services = f"[target]\nhost=127.0.0.1\nport={locked.port}\nuser=postgres\npassword={PASSWORD}\ndbname=service\n"
    (shop.folder / "services").write_text(services)
    ways = {
        "variable": (locked.dsn("variable"), {"PGPASSWORD": PASSWORD}),
        "passfile": (locked.dsn("passfile"), {"PGPASSFILE": str(shop.folder / "pgpass")}),
        "service": ("service=target", {"PGSERVICEFILE": str(shop.folder / "services")}),
        "dsn": (locked.dsn("dsn").replace("postgres@", f"postgres:{PASSWORD}@"), {}),
    }
    for way, (dsn, variables) in ways.items():
        shop.extra = variables
        result = shop.run("drill", "--into", dsn, "--report", str(shop.folder / "drill.html"))
        assert result.returncode == 0, f"{way}: {result.stderr}"
        warned = "warning: the password in --into is shown to every user" in result.stderr
        assert warned is (way == "dsn"), way
        assert "PGPASSWORD" in result.stderr or not warned
        assert PASSWORD not in result.stdout + result.stderr + (shop.folder / "drill.html").read_text("utf-8")
    shop.extra = {}
    refused = shop.run("restore", "--into", locked.dsn("dsn"), "--latest", "--yes")
    assert (refused.returncode, "hint: Check the password" in refused.stderr) == (3, True), refused.stderr
