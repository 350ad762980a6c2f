"""Simulated regions: what is durable in each, the weather over it, and one client of it in each process.

A write is on its way, then done in the region, then answered; the process may die, be frozen, or be told of an error at
any of these. What is on its way may arrive after its sender has died or given up.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from archiver.errors import AccessDenied, ArchiverError, ObjectExists, ObjectNotFound, StoreUnavailable
from archiver.store.base import Entry, require_within
from archiver.store.memory import MemoryStore
from tests.simulation.clock import PROCESS, WORLD, Process


class Fate(NamedTuple):
    """What becomes of one request. `arrives` None: never. `error`: what the client hears after `answered` seconds."""

    arrives: float | None
    answered: float
    error: ArchiverError | None
    name: str


@dataclass(frozen=True, slots=True)
class Weather:
    """How a region behaves: chances of what may happen to a request, and seconds that it takes."""

    name: str
    refused: float = 0.0  # an error at once: nothing was done
    lost: float = 0.0  # done, but the answer is an error
    cut: float = 0.0  # the body broke off after some time: nothing was done
    hangs: float = 0.0  # no answer for long, then an error; perhaps done, perhaps later
    denied: float = 0.0  # credentials
    slow: float = 0.0  # takes up to 20 s


FINE = Weather("fine")
WEATHER = {
    weather.name: weather
    for weather in (
        Weather("flaky", refused=0.15, lost=0.15, cut=0.1, slow=0.03),
        Weather("loses answers", lost=0.5),
        Weather("slow", slow=0.5, cut=0.05),
        Weather("down", refused=1.0),
        Weather("hangs", hangs=0.8, refused=0.1),
        Weather("denies", denied=1.0),
    )
}


class Region:
    """What is durable. `on_put` hears of each object that has just become so; `touched`: it has ever failed anyone."""

    def __init__(self, name: str, chance: random.Random, counts: Counter[str], page: int) -> None:
        self.name = name
        self.objects: dict[str, bytes] = {}
        self.weather = FINE
        self.touched = False
        self.on_put: Callable[[Region, str, bytes], None] = lambda _region, _key, _data: None
        self.page = page
        self._chance = chance
        self._counts = counts

    def fate(self) -> Fate:
        chance, weather = self._chance, self.weather
        travel = chance.uniform(0.002, 0.04)
        if weather is FINE:
            return Fate(travel, travel * 2, None, "")
        self.touched = True
        roll = chance.random()
        for name, share in (("refused", weather.refused), ("lost", weather.lost), ("cut", weather.cut),
                            ("hangs", weather.hangs), ("denied", weather.denied), ("slow", weather.slow)):  # fmt: skip
            if roll < share:
                self._counts[f"request {name}"] += 1
                return self._misfortune(name, travel)
            roll -= share
        return Fate(travel, travel * 2, None, "")

    def _misfortune(self, name: str, travel: float) -> Fate:
        chance = self._chance
        gone = StoreUnavailable(f"simulated: {name}", where=self.name)
        if name == "refused":
            return Fate(None, travel, gone, name)
        if name == "lost":
            return Fate(travel, travel + chance.choice((0.0, 0.1, 8.0)), gone, name)
        if name == "cut":
            return Fate(None, chance.uniform(0, 5), gone, name)
        if name == "denied":
            return Fate(None, travel, AccessDenied("simulated: credentials expired", where=self.name), name)
        if name == "slow":
            late = chance.uniform(0, 20)
            return Fate(late, late + chance.choice((0.0, late / 4)), None, name)
        hangs = chance.uniform(3, 60)
        arrives = chance.choice((None, None, chance.uniform(0, hangs), hangs + chance.uniform(0, 120)))
        return Fate(arrives, hangs, gone, name)

    def put(self, key: str, data: bytes, if_absent: bool) -> None:
        if if_absent and key in self.objects:
            raise ObjectExists("the object is already there", where=f"{self.name}: {key}")
        self.objects[key] = bytes(data)
        self.on_put(self, key, data)

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectNotFound("no such object", where=f"{self.name}: {key}")
        return self.objects[key]

    def list(self, prefix: str, after: str) -> list[Entry]:
        keys = sorted(key for key in self.objects if key > after and key.startswith(prefix))
        return [Entry(key, len(self.objects[key])) for key in keys[: self.page]]


class Calm(MemoryStore):
    """A Store of the region without its weather: an operator's, and the judge's."""

    def __init__(self, region: Region) -> None:
        super().__init__(region.name)
        self.objects = region.objects
        self._region = region

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._region.put(key, data, if_absent)


class Client:
    """A Store: one process's way to a region. `dies_at`: the number of the request in which the process is killed."""

    def __init__(self, region: Region, on_request: Callable[[Process | None], bool]) -> None:
        self._region = region
        self._on_request = on_request
        self._process = PROCESS.get()

    @property
    def name(self) -> str:
        return self._region.name

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await self._request(lambda: self._region.put(key, data, if_absent))

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        data: bytes = await self._request(lambda: self._region.get(key))
        require_within(most, len(data), f"{self.name}: {key}")
        return data

    async def size(self, key: str) -> int | None:
        data = await self._request(lambda: self._region.objects.get(key))
        return None if data is None else len(data)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        while True:
            page: list[Entry] = await self._request(lambda after=start_after: self._region.list(prefix, after))  # type: ignore[misc]
            for entry in page:
                yield entry
            if len(page) < self._region.page:
                return
            start_after = page[-1].key

    async def delete(self, key: str) -> None:
        await self._request(lambda: self._region.objects.pop(key, None))

    async def check(self) -> None:
        await self._request(lambda: None)

    async def close(self) -> None:
        return

    async def _request(self, act: Callable[[], Any]) -> Any:
        """Send, let it be done whatever becomes of us, and wait for the answer."""
        loop = asyncio.get_running_loop()
        fate = self._region.fate()
        done: asyncio.Future[Any] = loop.create_future()
        if fate.arrives is not None:
            loop.call_later(fate.arrives, _do, act, done, fate.error is None, context=WORLD)
        if self._on_request(self._process):
            await loop.create_future()  # killed: what it sent is on its way
        if fate.error is not None:
            await asyncio.sleep(fate.answered)
            raise fate.error
        result = await done
        await asyncio.sleep(max(0.0, fate.answered - (fate.arrives or 0.0)))
        return result


def _do(act: Callable[[], Any], done: asyncio.Future[Any], told: bool) -> None:
    try:
        result = act()
    except ArchiverError as exc:
        if told and not done.done():
            done.set_exception(exc)
    else:
        if told and not done.done():
            done.set_result(result)
