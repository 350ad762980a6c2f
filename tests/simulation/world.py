"""One simulated run: a source, regions and daemons in virtual time, faults for a while, then peace and the judge.

The daemon is the real one, from `Daemon.run` down to the Store port and psycopg's connections. Simulated are the regions'
servers, the source's server, the time, `pg_dump` with the copying of tables, and the HTTP port: real ones cannot be
made to fail at a chosen step, nor to do the same again. Everything follows from the seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from archiver.archive import create_archive, open_archive
from archiver.config import Config
from archiver.daemon import Daemon
from archiver.errors import Fenced, IntegrityError, PostgresError, StoreError
from archiver.keys import LocalKek
from archiver.lsn import Lsn
from archiver.store.mirror import Mirror
from archiver.verify import repair
from tests.simulation import source
from tests.simulation.clock import WORLD, Process, VirtualLoop, now
from tests.simulation.faults import FAULTS, Draw
from tests.simulation.judge import Verdict, Violation, Watch, judge_archive, require
from tests.simulation.regions import FINE, WEATHER, Calm, Region
from tests.simulation.stage import KEK, config
from tests.simulation.wal import Wal, write_something

_NAMES = ("primary", "secondary", "tertiary")
CATCH_UP_SECONDS = 900.0
STOP_SECONDS = 30.0


@dataclass(eq=False)
class Running:
    """A daemon, and what it came to. `stop_by`: when it must have ended at the latest, once it was told to stop."""

    process: Process
    stop: asyncio.Event
    started: float
    daemon: Daemon
    requests: int = 0
    dies_at_request: int | None = None
    stop_by: float | None = None
    ended_at: float | None = None
    ended: bool = False
    error: BaseException | None = None

    @property
    def is_content(self) -> bool:
        """As its metrics and its readiness tell."""
        degraded = self.daemon.metrics.registry.get_sample_value("archiver_degraded")
        return self.daemon.not_ready() is None and not degraded

    @property
    def is_over(self) -> bool:
        return self.ended or self.process.state == "dead"


class World:
    """The state of one run. Faults (tests/simulation/faults.py) act on it."""

    def __init__(self, seed: int, drawn: Draw, loop: VirtualLoop, log: list[str]) -> None:
        self.draw = drawn
        self.loop = loop
        self.context = WORLD
        self.counts: Counter[str] = Counter()
        self.losses = 0
        self.log = log
        self.daemons: list[Running] = []
        self.disagreed = False
        self.accepts_gap = False
        self._chance = random.Random(f"world {seed}")
        self.over = False
        self._writing = True
        net = random.Random(f"net {seed}")
        self.wal = Wal(random.Random(f"wal {seed}"), now)
        self.regions = [Region(name, net, self.counts, drawn.page) for name in _NAMES[: drawn.regions]]
        for _ in range(5):
            self.wal.noise()
        policy = drawn.policy
        self.watch = Watch(self.wal, self.regions, policy, self.wal.end)
        self.server = source.Server(
            self.wal, net, self.counts, self.watch.confirmed, self.watch.complain,
            sender_timeout=drawn.sender_timeout, drop_slot_at=drawn.drop_slot_at,
        )  # fmt: skip
        self.config = config(drawn, [region.name for region in self.regions])

    # --- daemons ---

    @property
    def alive(self) -> list[Running]:
        return [each for each in self.daemons if not each.is_over]

    @property
    def daemon(self) -> Running | None:
        """The one that works: the newest that is neither frozen nor told to stop."""
        working = (each for each in reversed(self.alive) if each.process.state == "alive" and each.stop_by is None)
        return next(working, None)

    def start_daemon(self, config: Config | None = None) -> Running:
        process = Process(f"daemon {len(self.daemons) + 1}")
        daemon = Daemon(config or self.config, accept_gap=self.accepts_gap)
        running = Running(process, asyncio.Event(), self.loop.time(), daemon)
        self.accepts_gap = False
        self.daemons.append(running)
        self.counts["daemon starts"] += 1
        self.loop.in_process(running.process, self._run(running))
        return running

    async def _run(self, running: Running) -> None:
        try:
            await running.daemon.run(running.stop)
        except BaseException as exc:
            running.error = exc
        if not self.over:
            running.ended = True
            running.ended_at = self.loop.time()
            self.watch.interrupted = True
            self._judge_end(running)

    def _judge_end(self, running: Running) -> None:
        error = running.error
        self.note(f"{running.process.name} ended: {error!r}")
        self.counts[f"daemon ended: {type(error).__name__ if error else 'in peace'}"] += 1
        if isinstance(error, Fenced):
            others = [
                each for each in self.daemons
                if each is not running and (each.ended_at is None or each.ended_at >= running.started)
            ]  # fmt: skip
            if "taken over" in str(error) and not others:
                self.watch.complain(f"{running.process.name} was fenced, but nobody else was there: {error}")
        elif isinstance(error, IntegrityError) and "was cut off" in str(error) and self.losses:
            # A slot that was moved over what a killed daemon had stored looks the same: the operator decides.
            self.accepts_gap = True
        elif isinstance(error, IntegrityError):
            self.disagreed = True
            if self.draw.policy == "all":
                self.watch.complain(f"{running.process.name} halted though every region has everything: {error}")
        elif not isinstance(error, PostgresError | StoreError | None):
            self.watch.complain(f"{running.process.name} died of {error!r}")
        elif error is None and running.stop_by is None:
            self.watch.complain(f"{running.process.name} stopped though nobody asked it to")

    def freeze(self, running: Running, seconds: float) -> None:
        running.process.state = "frozen"
        self.watch.interrupted = True
        self.loop.call_later(seconds, self._thaw, running, context=WORLD)

    def _thaw(self, running: Running) -> None:
        if running.process.state == "frozen":
            self.loop.thaw(running.process)

    def stop(self, running: Running) -> None:
        running.stop.set()
        running.stop_by = self.loop.time() + STOP_SECONDS

    def on_request(self, process: Process | None) -> bool:
        """Whether the process is killed with this request on its way."""
        running = next((each for each in reversed(self.daemons) if each.process is process), None)
        if running is None:
            return False
        running.requests += 1
        if running.requests != running.dies_at_request:
            return False
        running.process.kill()
        return True

    # --- surroundings ---

    @property
    def has_archive(self) -> bool:
        """A slot that is lost before anything was archived is not a gap: `init` must make it again."""
        return all(
            any(stored["entry"]["kind"] in {"changes", "snapshot"} for stored in holding.manifests.values())
            for holding in self.watch.holdings.values()
        )

    def spoil(self, regions: list[Region], kind: str, seconds: float) -> None:
        for region in regions:
            region.weather = WEATHER[kind]
            self.counts[f"weather {kind}"] += 1
            self.loop.call_later(seconds, self._clear, region, region.weather, context=WORLD)

    def _clear(self, region: Region, weather: Any) -> None:
        if region.weather is weather:
            region.weather = FINE

    def source_is_back(self) -> None:
        self.server.down = False

    def source_is_quick(self) -> None:
        self.server.slow = 0.0

    def note(self, what: str) -> None:
        self.log.append(f"{self.loop.time():10.3f} {what}")

    # --- the run ---

    async def run(self) -> Verdict:
        await self._init()
        self.start_daemon()
        helpers = [self.loop.create_task(each) for each in (self._supervise(), self._write())]
        await self._make_trouble()
        await self._make_peace()
        self._writing = False
        await helpers[1]
        await self._settle()
        helpers[0].cancel()
        moment = now() - timedelta(seconds=self._chance.uniform(0, self.loop.time()))
        async with self.opened() as archive:
            verdict = await judge_archive(archive, self.wal, moment, self.losses + self.counts["slot given up"])
        self._require_equal_regions()
        return verdict

    async def _init(self) -> None:
        mirror = self.mirror()
        await create_archive(
            mirror, "sim", [LocalKek(KEK)], system_identifier=source.SYSTEM[0], database=source.SYSTEM[2]
        )
        self.server.make_slot()

    def mirror(self) -> Mirror:
        """The regions as they are, without weather."""
        return Mirror([Calm(region) for region in self.regions])

    @asynccontextmanager
    async def opened(self) -> Any:
        yield await open_archive(self.mirror(), "sim", [LocalKek(KEK)])

    async def _supervise(self) -> None:
        """What systemd and the kernel do: start it again, close the sockets of the dead."""
        while True:
            await asyncio.sleep(0.5)
            for session in list(self.server.sessions):
                if session.process is not None and session.process.state == "dead":
                    session.break_off(self._chance.choice((0.0, 0.0, 2.0, 20.0)))
            for running in self.daemons:
                if running.is_over and running.ended_at is None:
                    running.ended_at = self.loop.time()
                    self.watch.interrupted = True
            for running in self.alive:
                late = running.stop_by is not None and self.loop.time() > running.stop_by
                if (
                    late
                    and running.process.state == "alive"
                    and self.loop.time() - running.process.thawed_at > STOP_SECONDS
                ):
                    self.watch.complain(f"{running.process.name} did not stop within {STOP_SECONDS} s")
                    running.process.kill()
            if self.daemon is None and not self.disagreed:
                await asyncio.sleep(self._chance.choice((0.0, 0.2, 4.0)))
                if self.daemon is None and not self.disagreed:
                    self.start_daemon()

    async def _make_trouble(self) -> None:
        end = self.loop.time() + self.draw.duration
        while self.loop.time() < end:
            await asyncio.sleep(self._chance.expovariate(1 / self.draw.pause))
            name = self._chance.choice(self.draw.faults)
            self.note(f"fault: {name}")
            self.counts[name] += 1
            FAULTS[name](self, self._chance)

    async def _make_peace(self) -> None:
        for region in self.regions:
            region.weather = FINE
        self.server.down, self.server.slow = False, 0.0
        for running in self.alive:
            running.process.dies_at = running.dies_at_request = None
            if running.process.state == "frozen":
                self.loop.thaw(running.process)
        self.note("peace")
        await asyncio.sleep(8)

    async def _write(self) -> None:
        """The application: transactions that overlap, commit or not."""
        chance, wal = random.Random(self._chance.random()), self.wal
        while self._writing:
            await asyncio.sleep(chance.expovariate(1 / self.draw.busy))
            if self.server.down:
                wal.open.clear()
            else:
                write_something(wal, chance)
            self.server.grew()
        for transaction in list(wal.open):
            wal.commit(transaction, now())
        self.server.grew()

    # --- the end ---

    async def _settle(self) -> None:
        """A daemon runs until everything is everywhere, then stops.

        The manifest of a base snapshot that was cut off by that is completed by whoever opens the log next.
        """
        if len(self.alive) != 1 or self.daemon is None:
            self._kill_all()
        await self._settle_once()
        if not self._are_equal:
            await self._settle_once()

    async def _settle_once(self) -> None:
        for _ in range(3):
            if self.disagreed:
                await self._ask_the_operator()
            await self._until(lambda: self.disagreed or self._is_settled(), "the daemon does not catch up")
        running = self.daemon
        assert running is not None
        self.stop(running)
        await self._until(lambda: running.is_over, "the daemon does not stop")
        require(running.error is None, f"the daemon did not stop in peace: {running.error!r}")

    async def _ask_the_operator(self) -> None:
        """Regions disagree: one alone goes on until it holds everything, then the others are mended from it."""
        self.note("the operator is asked")
        self._kill_all()
        async with self.opened() as archive:
            report = await repair(archive)
        if not report.ok:
            best = max(self.regions, key=lambda region: self.watch.holdings[region.name].covered)
            running = await self._run_alone(best)
            self.stop(running)
            await self._until(lambda: running.is_over, "the daemon of one region does not stop")
            async with self.opened() as archive:
                report = await repair(archive)
        require(report.ok, f"verify --repair leaves {report.findings}")
        self.counts["disagreements mended"] += 1
        self.disagreed = False

    async def _run_alone(self, region: Region) -> Running:
        """A daemon of one region, until it holds everything, in more manifests than any other."""
        running: Running | None = None
        while running is None or not self._goes_furthest(region):
            running = self.start_daemon(config(self.draw, [region.name]))
            await self._until(
                lambda running=running: running.is_over or self._goes_furthest(region),  # type: ignore[misc]
                "one region alone does not catch up",
            )
        return running

    def _kill_all(self) -> None:
        for running in self.alive:
            running.process.kill()

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = self.loop.time() + CATCH_UP_SECONDS
        while not condition():
            if self.loop.time() > deadline:
                state = {name: (holding.next, holding.covered) for name, holding in self.watch.holdings.items()}
                raise Violation(
                    f"{otherwise}: {state}, last commit {self.watch.last_commit()}, slot {self.server.slot}"
                )
            await asyncio.sleep(1)

    def _goes_furthest(self, region: Region) -> bool:
        others = [holding.next for name, holding in self.watch.holdings.items() if name != region.name]
        return self._is_covered(region) and self.watch.holdings[region.name].next > max(others, default=0)

    def _is_covered(self, region: Region) -> bool:
        return self.watch.holdings[region.name].covered >= self.watch.last_commit()

    def _is_settled(self) -> bool:
        if not all(map(self._is_covered, self.regions)) or self.daemon is None or not self.daemon.is_content:
            return False
        holdings = list(self.watch.holdings.values())
        entries = [stored["entry"] for stored in holdings[0].manifests.values()]
        gap = max((Lsn.parse(entry["before_lsn"]) for entry in entries if entry["kind"] == "gap"), default=Lsn(0))
        snapshot = max((Lsn.parse(entry["lsn"]) for entry in entries if entry["kind"] == "snapshot"), default=Lsn(-1))
        return snapshot >= gap and self._are_equal

    @property
    def _are_equal(self) -> bool:
        first, *others = self.watch.holdings.values()
        return all(other.hashes == first.hashes for other in others)

    def _require_equal_regions(self) -> None:
        """The log is the same everywhere. What no manifest names may lie in one region, and roll-ups only save time."""
        first, *others = self.regions
        for other in others:
            keys = set(first.objects) ^ set(other.objects)
            named = [key for key in keys if key.startswith(("archive", "manifests/"))]
            require(not named, f"{first.name} and {other.name} differ: {sorted(named)}")
            for key in first.objects.keys() & other.objects.keys():
                require(first.objects[key] == other.objects[key], f"{first.name} and {other.name} differ in {key}")
