"""The command line as a user runs it: a configuration of its own, the real program, and what it left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.cli.key import write_key
from archiver.embedded import S3Server
from archiver.embedded.process import free_ports
from tests.fix_servers import MakeBucket, MakeDatabase

Result = subprocess.CompletedProcess[str]


@dataclass
class Site:
    """A source database, two regions, a key; `settings` is the configuration as text, for tests to spoil."""

    folder: Path
    dsn: str
    bucket: str
    servers: tuple[S3Server, ...]
    variables: dict[str, str]
    settings: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "archiver.toml"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ARCHIVER", "PG", "AWS_"))}
        return {**inherited, **self.variables, **self.extra}

    def replace(self, old: str, new: str) -> None:
        """Change the configuration."""
        assert old in self.settings
        self.settings = self.settings.replace(old, new)

    def arguments(self, *arguments: str) -> list[str]:
        self.config.write_text(self.settings, "utf-8")
        return [sys.executable, "-m", "archiver", *arguments, "--config", str(self.config)]

    def run(self, *arguments: str) -> Result:
        """`archiver … --config archiver.toml`, to its end."""
        return self.run_bare(*self.arguments(*arguments)[3:])

    def run_bare(self, *arguments: str) -> Result:
        command = [sys.executable, "-m", "archiver", *arguments]
        return subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """`archiver …` in the background; ended if it has not."""
        process = subprocess.Popen(
            self.arguments(*arguments), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def execute(self, query: str, dsn: str | None = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(dsn or self.dsn, autocommit=True) as conn:
            cursor = conn.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def traces(self) -> list[str]:
        """What archiver has put anywhere: in the source database and in the regions."""
        queries = (
            "SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()",
            "SELECT 'publication ' || pubname FROM pg_publication",
            "SELECT 'event trigger ' || evtname FROM pg_event_trigger",
            "SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'archiver'",
            "SELECT 'replica identity of ' || relname FROM pg_class WHERE relreplident = 'f'",
        )
        found = [text for query in queries for (text,) in self.execute(query)]
        for number, server in enumerate(self.servers):
            listed = server.client().list_objects_v2(Bucket=self.bucket)
            found += [f"object {item['Key']} in region {number}" for item in listed.get("Contents", [])]
        return found

    def wait_until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "waited in vain"
            time.sleep(0.1)


@pytest.fixture
def site(
    tmp_path: Path, make_database: MakeDatabase, make_bucket: MakeBucket, s3_servers: tuple[S3Server, S3Server]
) -> Site:
    """A database with one table that has a key, and everything that the command line needs."""
    return make_site(tmp_path, make_database(), make_bucket(), s3_servers)


def make_site(folder: Path, dsn: str, bucket: str, servers: tuple[S3Server, S3Server]) -> Site:
    """A site for a database that is there already."""
    write_key(folder / "kek")
    name = f"t{dsn.rpartition('_')[2]}"
    regions = zip(("fra", "dub"), servers, strict=True)
    [port] = free_ports(1)
    settings = f"""
[archive]
name = "{name}"
[source]
dsn = "{dsn}"
[encryption]
keys = ["file:{folder / "kek"}"]
[segment]
max_age = "300ms"
[http]
listen = "127.0.0.1:{port}"
""" + "".join(
        f"""
[[region]]
name = "{region}"
url = "s3://{bucket}/shop"
endpoint = "{server.endpoint}"
access_key_env = "{region.upper()}_KEY"
secret_key_env = "{region.upper()}_SECRET"
"""
        for region, server in regions
    )
    variables = {}
    for region, server in zip(("FRA", "DUB"), servers, strict=True):
        variables |= {f"{region}_KEY": server.access_key, f"{region}_SECRET": server.secret_key}
    made = Site(folder, dsn, bucket, servers, variables, settings)
    made.execute("CREATE TABLE keyed (id int PRIMARY KEY, v text)")
    return made
