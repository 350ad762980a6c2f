"""One run from its seed to its result."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field

from archiver.errors import ArchiverError
from tests.simulation.clock import Stuck, VirtualLoop
from tests.simulation.faults import draw
from tests.simulation.judge import Verdict, Violation
from tests.simulation.stage import logging_to, simulated
from tests.simulation.world import World


@dataclass
class Result:
    seed: int
    verdict: Verdict | None
    violations: list[str]
    counts: Counter[str]
    steps: int
    seconds: float
    fingerprint: str
    log: list[str] = field(default_factory=list)


def run(seed: int) -> Result:
    """One run. Its result tells all violations; the same seed gives the same result, to the last byte."""
    log: list[str] = []
    loop, drawn = VirtualLoop(), draw(seed)
    state = random.getstate()
    random.seed(seed)
    world = World(seed, drawn, loop, log)
    verdict: Verdict | None = None
    fingerprint = ""
    with simulated(world, random.Random(f"bytes {seed}")), logging_to(world):
        try:
            verdict = loop.run_until_complete(world.run())
        except (Violation, Stuck, ArchiverError) as exc:
            world.watch.complain(f"{type(exc).__name__}: {exc}")
        finally:
            world.over = True
            random.setstate(state)
            fingerprint = _fingerprint(world)
            loop.discard()
    return Result(seed, verdict, world.watch.violations, world.counts, loop.steps, loop.time(), fingerprint, log)


def _fingerprint(world: World) -> str:
    """The log, and every byte in every region: two runs of one seed must not differ in anything."""
    digest = hashlib.sha256("\n".join(world.log).encode())
    for region in world.regions:
        for key, data in sorted(region.objects.items()):
            digest.update(key.encode() + data)
    return digest.hexdigest()
