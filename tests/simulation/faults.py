"""What goes wrong in a run, all of it decided by the seed: which faults there are at all, when, and how hard.

A fault is a function of the world and a source of chance. Each run draws its own mix, so that some runs see nothing but
crashes and others a bit of everything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.regions import WEATHER

if TYPE_CHECKING:
    from tests.simulation.world import World

Fault = Callable[["World", random.Random], None]


def weather(world: World, chance: random.Random) -> None:
    """One region behaves badly for a while."""
    world.spoil([chance.choice(world.regions)], chance.choice(list(WEATHER)), _duration(world, chance))


def weather_everywhere(world: World, chance: random.Random) -> None:
    world.spoil(world.regions, chance.choice(list(WEATHER)), _duration(world, chance))


def _duration(world: World, chance: random.Random) -> float:
    if world.draw.long and chance.random() < 0.5:
        return chance.uniform(600, 2 * 3600)
    return min(120.0, chance.expovariate(1 / 12))


def kill(world: World, chance: random.Random) -> None:
    if daemon := world.daemon:
        daemon.process.kill()


def kill_at_a_step(world: World, chance: random.Random) -> None:
    """Between any two steps of its tasks, sooner or later."""
    if daemon := world.daemon:
        daemon.process.dies_at = daemon.process.steps + round(10 ** chance.uniform(0, 3.5))


def kill_at_a_request(world: World, chance: random.Random) -> None:
    """While a request to a region is on its way; also in the next start, which makes many."""
    if daemon := world.daemon:
        daemon.dies_at_request = daemon.requests + chance.randint(1, 30)


def freeze(world: World, chance: random.Random) -> None:
    """SIGSTOP: it wakes after seconds, or when another has long taken over."""
    if daemon := world.daemon:
        world.freeze(daemon, chance.choice((chance.uniform(0, 4), chance.uniform(5, 90))))


def second_daemon(world: World, chance: random.Random) -> None:
    if len(world.alive) < 3:
        world.start_daemon()


def stop_daemon(world: World, chance: random.Random) -> None:
    """SIGTERM: it must end in peace within 30 seconds, whatever the weather."""
    if daemon := world.daemon:
        world.stop(daemon)


def cut_stream(world: World, chance: random.Random) -> None:
    world.server.cut()


def stall_stream(world: World, chance: random.Random) -> None:
    """The network between the source and the daemon holds everything back."""
    until = world.loop.time() + chance.uniform(0, 20)
    for session in world.server.sessions:
        session.stalled_until = until


def restart_source(world: World, chance: random.Random) -> None:
    world.server.crash()
    world.loop.call_later(chance.choice((1.0, chance.uniform(1, 60))), world.source_is_back, context=world.context)


def slow_source(world: World, chance: random.Random) -> None:
    """It answers, but late: also later than the daemon waits."""
    world.server.slow = chance.choice((0.5, 8.0))
    world.loop.call_later(chance.uniform(1, 30), world.source_is_quick, context=world.context)


def lose_slot(world: World, chance: random.Random) -> None:
    if world.has_archive and world.server.lose_slot(how := chance.choice(("dropped", "moved", "invalidated"))):
        world.losses += 1
        world.counts[f"slot {how}"] += 1


USUAL: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        weather,
        weather_everywhere,
        kill,
        kill_at_a_step,
        kill_at_a_request,
        freeze,
        second_daemon,
        stop_daemon,
        cut_stream,
        stall_stream,
        restart_source,
        slow_source,
    )
}
FAULTS = USUAL | {"lose_slot": lose_slot}


@dataclass(frozen=True)
class Draw:
    """What one seed makes of a run. Times are in seconds."""

    policy: str
    degrade_after: int
    regions: int
    faults: tuple[str, ...]
    long: bool
    duration: float
    pause: float
    busy: float
    max_age: float
    max_bytes: int
    sender_timeout: float
    snapshot_every: int
    drop_slot_at: int | None
    page: int
    rollup: int


def draw(seed: int) -> Draw:
    chance = random.Random(seed)
    names = list(USUAL)
    faults = chance.sample(names, chance.randint(1, len(names)))
    if chance.random() < 0.2:
        faults.append("lose_slot")
    long = chance.random() < 0.004
    return Draw(
        policy=chance.choice(("all", "all", "degrade", "degrade", "any")),
        degrade_after=chance.choice((1, 5, 20)),
        regions=chance.choice((1, 2, 2, 2, 2, 2, 2, 2, 2, 3)),
        faults=tuple(faults),
        long=long,
        duration=chance.uniform(1 * 3600, 3 * 3600) if long else chance.uniform(8, 50),
        pause=600.0 if long else chance.choice((0.7, 2.0, 5.0)),
        busy=30.0 if long else chance.choice((0.1, 0.4, 1.5)),
        max_age=30.0 if long else chance.choice((1.0, 1.0, 3.0)),
        max_bytes=chance.choice((1000, 6000, 1 << 20)),
        sender_timeout=chance.choice((5.0, 60.0)),
        snapshot_every=chance.choice((60, 86400)),
        drop_slot_at=(1 << 20) if chance.random() < 0.05 else None,
        page=chance.choice((2, 1000)),
        rollup=chance.choice((7, 1000)),
    )
