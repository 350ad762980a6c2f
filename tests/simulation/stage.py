"""What a simulated run puts in place of what cannot be simulated by running it: see tests/simulation/world.py."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import structlog

from archiver import snapshots
from archiver.config import Config, RegionSection, SegmentSection
from archiver.format.wrap import format_kek
from archiver.postgres.replication_slot import create_slot
from archiver.postgres.snapshot import DatabaseInfo
from tests.simulation import source
from tests.simulation.clock import PROCESS, VirtualDatetime, now
from tests.simulation.faults import Draw
from tests.simulation.regions import Client

if TYPE_CHECKING:
    from tests.simulation.world import World

KEK = bytes(range(32))
_MODULES_THAT_ASK_THE_TIME = ("archive", "daemon", "manifest_log", "recovery_plan", "snapshots")


def config(drawn: Draw, regions: list[str]) -> Config:
    durability: dict[str, Any] = {"ack": "any" if drawn.policy == "any" else "all"}
    if drawn.policy == "degrade":
        durability["degrade_after"] = f"{drawn.degrade_after}s"
    segment = SegmentSection.model_construct(max_bytes=drawn.max_bytes, max_age=timedelta(seconds=drawn.max_age))
    section: dict[str, Any] = {"dsn": "postgresql://simulated", "slot": source.SLOT, "drop_slot_at": drawn.drop_slot_at}
    return Config.model_validate(
        {
            "archive": {"name": "sim"},
            "source": section,
            "region": [{"name": name, "url": f"file:///simulated/{name}"} for name in regions],
            "durability": durability,
            "segment": segment,
            "encryption": {"keys": ["env:SIMULATED_KEK"]},
            "snapshot": {"every": f"{drawn.snapshot_every}s"},
        }
    )


class Snapshot(snapshots._Snapshot):
    """A base snapshot whose rows come from the ledger, in place of pg_dump and COPY. The rest is the real one."""

    server: source.Server

    async def take(self, on_blocked: Any, patience: Any) -> Any:
        server = self.server
        async with (
            await server.connect("", purpose="snapshot") as exporter,
            await server.connect("", purpose="snapshot") as reader,
        ):
            name = f"archiver_snapshot_{self._id.hex[:12]}"
            slot = await create_slot(exporter, name, temporary=True, watch=reader)  # type: ignore[arg-type]
            self._lsn = slot.lsn
            consistent_at = now()
            ids = [number for commit in server.wal.ledger if commit.end <= slot.lsn for number in commit.ids]
            for number in range(1, server.chance.randint(1, 4)):
                sealer = await self._archive.sealer(snapshots.part_place(self._lsn, number))
                sealer.write(b"rows")
                await self._store(number, sealer)
            states = (await source.read_sequences(reader)).states
        database = DatabaseInfo(180000, "sim", "UTF8", "C", "C", None, None, True, 0, [], [], [], [], [])
        index = snapshots.Index(database, "sim", json.dumps(ids), (), [state.to_json() for state in states])
        return await self._commit(index, consistent_at)


@asynccontextmanager
async def _no_port(*_: Any) -> Any:
    yield


@contextmanager
def simulated(world: World, chance: random.Random) -> Iterator[None]:
    """Everything real that a simulation cannot have is replaced meanwhile."""
    server = world.server
    regions = {region.name: region for region in world.regions}

    def client(section: RegionSection, _allowed: object) -> Client:
        return Client(regions[section.name], world.on_request)

    replaced: dict[str, Any] = {
        "archiver.regions._adapter": client,
        "archiver.daemon.serve": _no_port,
        "archiver.capture.ReplicationStream": server,
        "archiver.capture.read_sequences": source.read_sequences,
        "archiver.alignment.connect": server.connect,
        "archiver.postgres.source.connect": server.connect,
        "archiver.snapshots._Snapshot": type("Simulated", (Snapshot,), {"server": server}),
        "archiver.policy.catalog.ROLLUP": world.draw.rollup,
        "os.urandom": chance.randbytes,
        "os.getpid": lambda: 1,
        "socket.gethostname": lambda: "simulated",
    }
    replaced |= {f"archiver.{module}.datetime": VirtualDatetime for module in _MODULES_THAT_ASK_THE_TIME}
    with ExitStack() as stack:
        for target, replacement in replaced.items():
            stack.enter_context(patch(target, replacement))
        stack.enter_context(patch.dict(os.environ, {"SIMULATED_KEK": format_kek(KEK)}))
        yield


@contextmanager
def logging_to(world: World) -> Iterator[None]:
    """What the daemons log belongs to the run's log."""
    before = structlog.get_config()

    def keep(_logger: Any, level: str, event: dict[str, Any]) -> Any:
        process = PROCESS.get()
        world.note(f"{process.name if process else '-'} {level}: {event.pop('event')} {event}")
        raise structlog.DropEvent

    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
