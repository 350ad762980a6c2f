"""Tasks: groups that fail with one error, for a message and an exit code need one; and the clock they run by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from archiver.errors import ArchiverError

BACKOFF_CAP = 30.0  # seconds

log = structlog.get_logger()
T = TypeVar("T")


def loop_time() -> float:
    """Seconds by the clock that time-outs and pauses run by, so that what compares them never sees two clocks."""
    return asyncio.get_running_loop().time()


class Stopwatch:
    """Time that has passed, by whichever clock says more: one stands still while the machine is suspended."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.restart()

    def restart(self) -> None:
        self._started = clocks()

    def is_long(self) -> bool:
        """Whether more than `limit` seconds have passed."""
        return any(abs(now - then) > self._limit for now, then in zip(clocks(), self._started, strict=True))


def clocks() -> tuple[float, float]:
    """The event loop's and the wall clock, in seconds."""
    return loop_time(), datetime.now(UTC).timestamp()


async def ask_until_answered(action: Callable[[], Awaitable[T]], silence: type[ArchiverError], what: str) -> T:
    """Repeat what fails with `silence`, for ever and ever more slowly; the log says `what` is the matter."""
    pause = 1.0
    while True:
        try:
            return await action()
        except silence as exc:
            log.warning(what, error=str(exc), retry_in=pause)
            await asyncio.sleep(pause)
            pause = min(BACKOFF_CAP, 2 * pause)


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup that raises the one error that matters instead of a group: ours before anyone else's."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failed:
        leaves = list(_leaves(failed))
        ours = [leaf for leaf in leaves if isinstance(leaf, ArchiverError)]
        raise (ours or leaves)[0] from None


def _leaves(failed: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for inner in failed.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from _leaves(inner)
        else:
            yield inner
