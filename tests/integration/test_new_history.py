"""The source is not the continuation of what is archived: another server, or one that was set back. Real servers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from archiver.daemon import Daemon
from archiver.embedded import PostgresServer
from archiver.errors import ConfigError
from archiver.lsn import Lsn
from archiver.policy.target import ToLatest, ToName, ToTime
from archiver.postgres.session import connect
from archiver.postgres.setup import name_restore_point
from archiver.recovery_plan import make_plan, read_history
from archiver.verify import verify
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import PG_SETTINGS
from tests.integration.test_capture import digest
from tests.integration.test_crash import file_regions
from tests.integration.test_slot_danger import ends_equal, gaps

ITEM = "CREATE TABLE item (id bigint PRIMARY KEY, name text)"
ROWS = "INSERT INTO item SELECT i, '{2}' FROM generate_series({0}, {1}) i"


@pytest.fixture
def servers() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    with ExitStack() as stack:
        made = [stack.enter_context(closing(PostgresServer(settings=PG_SETTINGS))) for _ in range(2)]
        for server in made:
            server.start()
            server.execute(ITEM)
        yield made[0], made[1]


def moved(setup: Setup, dsn: str) -> Setup:
    config = setup.config.model_dump()
    config["source"]["dsn"] = dsn
    return Setup(dsn, setup.config.model_validate(config), setup.make_database)


async def manifests(setup: Setup) -> int:
    async with setup.open() as archive:
        return len([signed async for signed in archive.log.scan()])


async def name_point(dsn: str, name: str) -> None:
    async with await connect(dsn, purpose="test") as conn:
        await name_restore_point(conn, name)


async def test_the_archive_goes_on_with_another_server_and_both_histories_can_be_restored(
    make_setup: MakeSetup, servers: tuple[PostgresServer, PostgresServer], tmp_path: Path
) -> None:
    """As after an upgrade: another system identifier, and positions that begin anew, lower than the archive's end."""
    old, new = servers
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(old.dsn(), region=file_regions(tmp_path), archive={"name": "move"}, segment={"max_age": "200ms"})
    await setup.init()
    async with setup.daemon():
        await setup.archived()
        old.execute(ROWS.format(1, 50_000, "old"))
        await name_point(old.dsn(), "before the move")
        await setup.archived()
    before = digest(old.dsn())
    there = moved(setup, new.dsn())
    held = await manifests(setup)
    with pytest.raises(ConfigError, match="another server"):
        await Daemon(there.config).run(asyncio.Event())
    assert await manifests(setup) == held  # no fence, which would end the daemon that is right
    await there.init()
    async with there.daemon():
        new.execute(ROWS.format(1, 100, "new"))
        await ends_equal(there)
        new.execute(ROWS.format(101, 200, "newer"))
        await there.archived()
    async with there.daemon():  # and once more, for nothing is to be bridged again
        new.execute(ROWS.format(201, 300, "newest"))
        await there.archived()
    [gap] = await gaps(there)
    assert gap.new_history
    assert gap.before_lsn < gap.after_lsn
    assert gap.system_identifier is not None
    for target, expected in {ToLatest(): digest(new.dsn()), ToName("before the move"): before}.items():
        restored, _ = await there.restore(target)
        assert digest(restored) == expected
    async with there.open() as archive:
        report = await verify(archive, read_data=True)
        assert report.ok, report.findings
        history = await read_history(archive)
        old_end = history.epochs[0].window.latest
        assert old_end is not None
        plan = await make_plan(archive, ToTime(old_end))
        assert plan.snapshot in history.epochs[0].snapshots
    refused = await asyncio.to_thread(run_restore, there, new.dsn())
    assert (refused.returncode, "the source database itself" in refused.stderr) == (2, True), refused.stderr


def run_restore(setup: Setup, into: str) -> subprocess.CompletedProcess[str]:
    """The real command, configured by the environment alone."""
    config = setup.config
    variables = {"ARCHIVE__NAME": config.archive.name, "ENCRYPTION__KEYS": ",".join(config.encryption.keys)}
    for number, region in enumerate(config.region):
        variables |= {f"REGION__{number}__NAME": region.name, f"REGION__{number}__URL": region.url}
    command = [sys.executable, "-m", "archiver", "restore", "--into", into, "--latest", "--yes"]
    environment = os.environ | {f"ARCHIVER_{name}": value for name, value in variables.items()}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_a_source_that_was_set_back_begins_a_new_history(make_setup: MakeSetup, tmp_path: Path) -> None:
    """A restored disk image has its slots, at an older position, and the same timeline."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    with closing(PostgresServer(settings=PG_SETTINGS)) as server:
        server.start()
        server.execute(ITEM)
        setup = make_setup(server.dsn(), region=file_regions(tmp_path), archive={"name": "setback"})
        await setup.init()
        async with setup.daemon():
            await setup.archived()
        server.stop()
        image = shutil.copytree(server.folder / "data", tmp_path / "image")
        server.start()
        server.execute(ROWS.format(1, 20_000, "never was"))
        async with setup.daemon():
            await name_point(server.dsn(), "lost")
            await setup.archived()
        lost = digest(server.dsn())
        server.stop()
        restore_image(image, server.folder / "data")
        server.start()
        server.execute(ROWS.format(1, 10, "what is"))
        async with setup.daemon():
            await ends_equal(setup)
        [gap] = await gaps(setup)
        assert "set back" in gap.reason
        assert gap.before_lsn > Lsn(0)
        for target, expected in {ToLatest(): digest(server.dsn()), ToName("lost"): lost}.items():
            restored, _ = await setup.restore(target)
            assert digest(restored) == expected


def restore_image(image: Path, data: Path) -> None:
    owner = data.stat()
    shutil.rmtree(data)
    shutil.copytree(image, data)
    data.chmod(0o700)
    for path in [data, *data.rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid)
