"""An archive with base snapshots that prove each other, and how one drills it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from archiver.archive import open_archive
from archiver.config import DrillSection
from archiver.drill import plan_drill, run_drill, store_record
from archiver.drill_copy import DisposableServer, Place, find_server
from archiver.format.drill import Record
from archiver.policy.target import Target
from archiver.regions import only, open_keks, open_regions
from archiver.snapshots import take_snapshot
from tests.fix_archive import MakeSetup, Setup
from tests.integration.test_crash import file_regions

SCHEMA = """
CREATE TABLE customer (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE invoice (id int PRIMARY KEY, customer int NOT NULL REFERENCES customer, note text);
CREATE TABLE plain (v text);
ALTER TABLE customer ADD CONSTRAINT named CHECK (name <> '') NOT VALID;
INSERT INTO customer (name) SELECT 'c' || g FROM generate_series(1, 500) g;
INSERT INTO invoice SELECT g, 1 + g % 500, repeat('x', 40) FROM generate_series(1, 2000) g;
INSERT INTO plain SELECT 'p' FROM generate_series(1, 10);
"""
CHANGES = """
INSERT INTO customer (name) SELECT 'new' FROM generate_series(1, 50);
UPDATE invoice SET note = 'paid' WHERE id % 3 = 0;
DELETE FROM invoice WHERE id % 7 = 0;
INSERT INTO plain VALUES ('p'), ('q');
"""


@dataclass
class Drilled:
    """An archive in two folders, and how one drills it."""

    setup: Setup
    folder: Path

    async def snapshot(self) -> None:
        async with self.setup.open() as archive:
            await archive.follow()
            config = self.setup.config
            await take_snapshot(archive, config.require_source(), config.snapshot)

    async def drill(
        self,
        place: Place | None = None,
        *,
        settings: DrillSection | None = None,
        target: Target | None = None,
        tamper: Callable[[str], Awaitable[None]] | None = None,
        region: str | None = None,
    ) -> Record:
        """One drill, of which the record is stored."""
        reads: Counter[str] = Counter()

        def count(name: str, size: int) -> None:
            reads[name] += size

        mirror = open_regions(self.setup.config, on_read=count)
        try:
            async with self.setup.open() as recording:
                reading = recording
                if region is not None:
                    name = self.setup.config.archive.name
                    reading = await open_archive(only(mirror, region), name, open_keks(self.setup.config))
                plan = await plan_drill(reading, target)
                place = place or DisposableServer(await find_server(plan.plan.snapshot.server_version // 10000))
                record = await run_drill(
                    reading, plan, settings or DrillSection(), place, regions=reads, before_proof=tamper
                )
                await store_record(recording, record)
                return record
        finally:
            await mirror.close()


async def make_drilled(
    make_setup: MakeSetup, folder: Path, *, snapshots: int, more: str = "", **sections: Any
) -> Drilled:
    """`more` is done to the source before `init`."""
    for name in ("primary", "secondary"):
        (folder / name).mkdir()
    setup = make_setup(region=file_regions(folder), segment={"max_age": "200ms"}, **sections)
    drilled = Drilled(setup, folder)
    with setup.connect() as conn:
        conn.execute(SCHEMA + more)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute(CHANGES)
            if snapshots == 2:
                await drilled.snapshot()
                conn.execute("DELETE FROM plain")  # after the second: must not be replayed
            await setup.archived()
    return drilled


@pytest.fixture
async def pair(make_setup: MakeSetup, tmp_path: Path) -> Drilled:
    return await make_drilled(make_setup, tmp_path, snapshots=2)
