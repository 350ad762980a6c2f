"""An archive at rest in two folders, made once a module, of which every test spoils a copy of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.archive import OpenArchive, open_archive
from archiver.cli.key import write_key
from archiver.embedded import PostgresServer
from archiver.embedded.process import free_ports
from archiver.format import layout
from archiver.format.wrap import parse_kek
from archiver.keys import LocalKek
from archiver.store.file import FileStore
from archiver.store.mirror import Mirror
from tests.fix_cli import Result, Site
from tests.fix_servers import drop_database

REGIONS = ("fra", "dub")
BEFORE, AFTER = 100, 7  # rows in the base snapshot, and those that only the end of the log holds


@dataclass
class Stored:
    """An archive in two folders, and the command line with its configuration."""

    site: Site
    folder: Path

    def path(self, region: str, key: str) -> Path:
        return self.folder / region / key

    def seqs(self, region: str) -> list[int]:
        names = [f"manifests/{path.name}" for path in (self.folder / region / "manifests").iterdir()]
        return sorted(seq for seq in map(layout.manifest_seq, names) if seq is not None)

    def manifest(self, seq: int, region: str = "fra") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path(region, layout.manifest(seq)).read_bytes())
        return found

    def newest(self, kind: str) -> int:
        return max(seq for seq in self.seqs("fra") if self.manifest(seq)["entry"]["kind"] == kind)

    def cut(self, region: str) -> int:
        """Cut the log behind the base snapshot; the seq that is its new end."""
        snapshot = self.newest("snapshot")
        for seq in self.seqs(region):
            if seq > snapshot:
                self.path(region, layout.manifest(seq)).unlink()
        return snapshot

    def silence(self, region: str) -> None:
        (self.folder / region).rename(self.folder / f"{region}-away")

    def write(self, region: str, key: str, data: bytes) -> None:
        path = self.path(region, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def mirror(self) -> Mirror:
        return Mirror([FileStore(name, self.folder / name) for name in REGIONS])

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[OpenArchive]:
        kek = LocalKek(parse_kek((self.folder / "kek").read_text(), "kek"))
        yield await open_archive(self.mirror(), f"t{self.site.dsn.rpartition('_')[2]}", [kek])

    def run(self, *arguments: str) -> Result:
        return self.site.run(*arguments)

    def run_help(self, command: str) -> str:
        return " ".join(self.site.run_bare(command, "--help").stdout.split())

    def json(self, *arguments: str) -> dict[str, Any]:
        result = self.run(*arguments, "--json")
        assert result.stdout, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def count(self, dsn: str) -> int:
        with psycopg.connect(dsn) as conn:
            row = conn.execute("SELECT count(*) FROM keyed").fetchone()
            assert row is not None
            return int(row[0])


def site_in_folders(folder: Path, dsn: str, key: Path) -> Site:
    """A site whose regions are the folders "fra" and "dub"."""
    name = f"t{dsn.rpartition('_')[2]}"
    [port] = free_ports(1)
    regions = "".join(f'[[region]]\nname = "{name}"\nurl = "file://{folder / name}"\n' for name in REGIONS)
    settings = f"""
[archive]
name = "{name}"
[source]
dsn = "{dsn}"
[encryption]
keys = ["file:{key}"]
[segment]
max_age = "300ms"
[http]
listen = "127.0.0.1:{port}"
{regions}"""
    return Site(folder, dsn, "", (), {}, settings)


CONFIRMED = (
    "SELECT confirmed_flush_lsn >= pg_current_wal_insert_lsn() - 64 FROM pg_replication_slots "
    "WHERE database = current_database()"
)


def make_whole(folder: Path, dsn: str, *, segments_before: int = 0) -> Site:
    """An archive of a table, with a base snapshot and changes behind it; its daemon has ended.

    With `segments_before`, there is an older base snapshot, and so many segments lie between the two.
    """
    for name in REGIONS:
        (folder / name).mkdir(parents=True)
    write_key(folder / "kek")
    site = site_in_folders(folder, dsn, folder / "kek")
    site.execute("CREATE TABLE keyed (id int PRIMARY KEY, v text)")
    site.execute(f"INSERT INTO keyed SELECT g, 'v' FROM generate_series(1, {BEFORE}) g")
    made = site.run("init")
    assert made.returncode == 0, made.stderr
    with site.started("run") as daemon:
        site.wait_until(lambda: json.loads(site.run("info", "--json").stdout)["snapshots"])
        for _ in range(segments_before):
            site.execute("UPDATE keyed SET v = 'v' WHERE id = 1")
            site.wait_until(lambda: site.execute(CONFIRMED) == [(True,)])
        if segments_before:
            taken = site.run("snapshot")
            assert taken.returncode == 0, taken.stderr
        for number in range(AFTER):
            site.execute(f"INSERT INTO keyed VALUES (-{number + 1}, 'late')")
        site.execute("SELECT pg_current_xact_id()")
        site.wait_until(lambda: site.execute(CONFIRMED) == [(True,)])
        daemon.terminate()
        _, errors = daemon.communicate(timeout=40)
        assert daemon.returncode == 0, errors
    return site


@pytest.fixture(scope="module")
def whole_site(
    pg: PostgresServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Site]:
    """The archive that a module's tests spoil copies of; its SEGMENTS_BEFORE says how long its log is."""
    name = f"stored_{abs(hash(request.module.__name__)) % 10**8}x"
    before = getattr(request.module, "SEGMENTS_BEFORE", 0)
    with ExitStack() as stack:
        pg.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        stack.callback(drop_database, pg, name)
        folder = tmp_path_factory.mktemp("whole") / "regions"
        yield make_whole(folder, pg.dsn(name), segments_before=before)


@pytest.fixture
def stored(whole_site: Site, tmp_path: Path) -> Stored:
    """A copy of the whole archive, to be spoiled."""
    folder = tmp_path / "regions"
    shutil.copytree(whole_site.folder, folder)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return Stored(site_in_folders(folder, whole_site.dsn, folder / "kek"), folder)


@pytest.fixture
def empty(pg: PostgresServer) -> Iterator[str]:
    """An empty database."""
    pg.execute("CREATE DATABASE stored_target TEMPLATE template0")
    yield pg.dsn("stored_target")
    drop_database(pg, "stored_target")
