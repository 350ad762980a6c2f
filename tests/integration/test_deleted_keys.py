"""Somebody deletes a day's key in the one region that answers; the other holds it, and is away for a while."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.restore import run_restore
from tests.fix_archive import MakeSetup
from tests.integration.test_crash import file_regions
from tests.integration.test_durability import ANY, DEGRADE


@pytest.mark.parametrize("durability", [DEGRADE, ANY], ids=["degrade_after", "any"])
async def test_no_second_key_is_made_under_its_name_and_the_daemon_goes_on(
    make_setup: MakeSetup, tmp_path: Path, durability: dict[str, str]
) -> None:
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms"}, durability=durability)
    primary, secondary, away = (tmp_path / name for name in ("primary", "secondary", "away"))
    primary.mkdir()
    secondary.mkdir()
    with setup.connect() as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY)")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute("INSERT INTO t VALUES (1)")
            await setup.archived()
        (key,) = (secondary / "keys").glob("changes-*")
        primary.rename(away)
        key.unlink()
        async with setup.daemon():
            conn.execute("INSERT INTO t VALUES (2)")
            await setup.archived()
            away.rename(primary)
            (own,) = (secondary / "keys").glob("changes-*")
            async with asyncio.timeout(60):
                while not (primary / "keys" / own.name).exists():
                    await asyncio.sleep(0.1)
            conn.execute("INSERT INTO t VALUES (3)")
            await setup.archived()
    assert own.name.startswith(f"{key.stem}-")
    assert not key.exists()
    target = setup.make_database(stem="restored")
    async with setup.open() as archive:
        await run_restore(archive, await make_plan(archive, ToLatest()), target)
    with psycopg.connect(target) as restored:
        assert restored.execute("SELECT count(*) FROM t").fetchone() == (3,)
