"""The demo's stage: an embedded PostgreSQL, two embedded S3 servers, a key and a configuration for them.

Everything is temporary and on loopback, and gone when the context ends, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from archiver import config as configuration
from archiver.cli.key import write_key
from archiver.config import Config
from archiver.embedded import PostgresServer, S3Server
from archiver.embedded.process import free_ports

BUCKET = "archive"
REGIONS = ("frankfurt", "dublin")
SOURCE, RESTORED = "shop", "shop_restored"
_SETTINGS: dict[str, str | int | bool] = {"wal_level": "logical", "fsync": False, "max_slot_wal_keep_size": "1GB"}

_HEAD = """\
[archive]
name = "shop"

[source]
dsn = "{dsn}"

[encryption]
keys = ["file:{key}"]

[segment]
max_age = "1s"

[http]
listen = "127.0.0.1:{port}"
"""
_REGION = """
[[region]]
name = "{name}"
url = "s3://{bucket}/shop"
endpoint = "{endpoint}"
access_key_env = "{access}"
secret_key_env = "{secret}"
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """What was set up. `variables` hold the credentials that the configuration names."""

    postgres: PostgresServer
    regions: Sequence[S3Server]
    config_file: Path
    config: Config
    variables: dict[str, str]

    @property
    def source(self) -> str:
        return self.postgres.dsn(SOURCE)

    @property
    def restored(self) -> str:
        return self.postgres.dsn(RESTORED)


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Start everything at once; stop and remove it at the end."""
    _forget_environment()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="archiver-demo-")))
        postgres = PostgresServer(settings=_SETTINGS, contained=True)
        regions = [S3Server(buckets=[BUCKET]) for _ in REGIONS]
        for server in (postgres, *regions):
            stack.push_async_exit(server)
        await _start(postgres, regions)
        variables = _variables(regions)
        os.environ.update(variables)
        file = await asyncio.to_thread(_write_files, folder, postgres, regions)
        yield Stage(postgres, regions, file, configuration.load(file, {}), variables)


def _forget_environment() -> None:
    """The user's own settings for PostgreSQL and S3 are for other servers than these."""
    for name in [name for name in os.environ if name.startswith(("PG", "AWS_"))]:
        del os.environ[name]


async def _start(postgres: PostgresServer, regions: Sequence[S3Server]) -> None:
    """All at once; each is closed by the stage, also if this is cancelled half-way."""
    await asyncio.gather(*(server.__aenter__() for server in (postgres, *regions)))
    for database in (SOURCE, RESTORED):
        await asyncio.to_thread(postgres.execute, f"CREATE DATABASE {database}")


def _variables(regions: Sequence[S3Server]) -> dict[str, str]:
    named = zip(REGIONS, regions, strict=True)
    return {
        variable: value
        for name, server in named
        for variable, value in zip(_names(name), (server.access_key, server.secret_key), strict=True)
    }


def _names(region: str) -> tuple[str, str]:
    return f"DEMO_{region.upper()}_ACCESS_KEY", f"DEMO_{region.upper()}_SECRET_KEY"


def _write_files(folder: Path, postgres: PostgresServer, regions: Sequence[S3Server]) -> Path:
    key, file = folder / "kek", folder / "archiver.toml"
    write_key(key)
    [port] = free_ports(1)
    text = _HEAD.format(dsn=postgres.dsn(SOURCE), key=key, port=port)
    for name, server in zip(REGIONS, regions, strict=True):
        access, secret = _names(name)
        text += _REGION.format(name=name, bucket=BUCKET, endpoint=server.endpoint, access=access, secret=secret)
    file.write_text(text, "utf-8")
    return file
