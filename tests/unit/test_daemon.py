"""What the daemon does with time: how long it waits, and what it waits for at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from archiver.config import Config
from archiver.daemon import Daemon
from archiver.errors import PostgresUnavailable, SlotLost
from archiver.store.memory import MemoryStore


@pytest.fixture
def daemon() -> Daemon:
    fields = {
        "archive": {"name": "shop"},
        "source": {"dsn": ""},
        "region": [{"name": "primary", "url": "file:///nowhere"}],
        "encryption": {"keys": ["file:/nowhere"]},
    }
    return Daemon(Config.model_validate(fields))


def set_to(daemon: Daemon, **methods: Callable[..., Any]) -> None:
    for name, method in methods.items():
        setattr(daemon, name, method)


async def nothing(*_: object) -> None:
    """Takes the place of what is not looked at."""


async def for_ever(*_: object) -> None:
    await asyncio.Event().wait()


async def test_a_source_may_be_away_for_days(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 1024 attempts the doubled pause is more than a float holds."""
    stop, attempts = asyncio.Event(), 0
    monkeypatch.setattr("archiver.daemon.random.uniform", lambda low, _high: low)

    async def run(stop: asyncio.Event) -> None:
        nonlocal attempts
        attempts += 1
        if attempts > 1100:
            stop.set()
        raise PostgresUnavailable("connection refused")

    capture = SimpleNamespace(run=run, take_progress=lambda: False, durable=None)
    set_to(daemon, _check_unmoved=nothing)
    archive = SimpleNamespace(log=SimpleNamespace(state=SimpleNamespace(head=None)))
    await daemon._keep_capturing(cast(Any, archive), cast(Any, capture), stop)
    assert attempts == 1101


async def test_sigterm_is_heard_while_a_slot_cannot_be_given_up(daemon: Daemon) -> None:
    async def work(*_: object) -> None:
        asyncio.get_running_loop().call_later(0.05, stop.set)
        raise SlotLost("the replication slot was given up")

    async def start(*_: object) -> str:
        return "an archive"

    stop = asyncio.Event()
    set_to(daemon, _start=start, _work=work, _abandon=for_ever)
    async with asyncio.timeout(5):
        assert not await daemon._run_to_the_end(cast(Any, None), stop)


async def test_a_region_that_is_down_does_not_keep_another_from_being_repaired(daemon: Daemon) -> None:
    down, back = MemoryStore("down"), MemoryStore("back")
    behind, repaired = [down, back], asyncio.Event()

    async def rejoin(region: MemoryStore) -> None:
        if region is down:
            await for_ever()
        behind.remove(region)
        repaired.set()

    log, store = SimpleNamespace(rejoin=rejoin), SimpleNamespace(replicas=SimpleNamespace(behind=behind))
    task = asyncio.create_task(daemon._repair_regions(cast(Any, SimpleNamespace(log=log, store=store))))
    async with asyncio.timeout(5):
        await repaired.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert behind == [down]


def test_a_clock_that_is_not_the_sources_does_not_make_a_daemon_unready(daemon: Daemon) -> None:
    """The age is a difference of two times at the source."""
    limit = daemon._config.http.ready_lag
    daemon._capture = cast(Any, SimpleNamespace(streaming=True, age=limit))
    assert daemon.not_ready() is None
    daemon._capture.age = limit + timedelta(seconds=1)
    assert "behind" in str(daemon.not_ready())
