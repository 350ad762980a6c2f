"""Virtual time: an event loop that never waits, and processes in it that can be killed and frozen between two steps.

When nothing is ready the clock jumps to the next timer. Everything runs in one thread in an order that depends on
nothing but what was asked for, so one seed is one run. A `Process` is whatever runs in a context that carries it: once
it is dead none of its callbacks run any more, no `finally` either, as after SIGKILL.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal

MOST_STEPS = 3_000_000  # a run that needs more does not end


class Stuck(Exception):
    """Nothing will ever happen again, or always something."""


class Process:
    """One daemon as its operating system sees it. `dies_at`: the step of its tasks after which it is killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Literal["alive", "frozen", "dead"] = "alive"
        self.steps = 0
        self.dies_at: int | None = None
        self.thawed_at = 0.0
        self.held: list[asyncio.Handle] = []

    def kill(self) -> None:
        self.state = "dead"
        self.held.clear()


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class _Task(asyncio.Task[Any]):
    """Sets of tasks are walked in the order of hashes: here that of their making, and not of their addresses."""

    def __init__(self, serial: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._serial = serial
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._serial


class VirtualLoop(asyncio.BaseEventLoop):
    """Run coroutines in virtual time. `discard` must be called in place of `close`."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._tasks: list[_Task] = []
        self.steps = 0
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _loop, _context: None)  # what matters is raised, or seen by the judge

    def time(self) -> float:
        return self._now

    def in_process(self, process: Process, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        context = copy_context()
        context.run(PROCESS.set, process)
        return self.create_task(coro, context=context)

    def thaw(self, process: Process) -> None:
        process.state = "alive"
        process.thawed_at = self._now
        self._ready.extend(process.held)  # type: ignore[attr-defined]
        process.held.clear()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """A thread of its own is a step of its own here."""
        future = self.create_future()
        self.call_soon(self._run_inline, future, func, args)
        return future

    def set_default_executor(self, executor: Any) -> None:
        pass

    @staticmethod
    def _run_inline(future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if future.cancelled():
            return
        try:
            future.set_result(func(*args))
        except Exception as exc:
            future.set_exception(exc)

    def _make_task(self, _loop: Any, coro: Coroutine[Any, Any, Any], **options: Any) -> _Task:
        task = _Task(len(self._tasks), coro, loop=self, **options)
        self._tasks.append(task)
        return task

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        if self.is_running():
            self.create_task(agen.aclose())

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        timers = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not ready:
            if not timers:
                raise Stuck("nothing is left that could ever happen")
            self._now = max(self._now, timers[0]._when)
        while timers and timers[0]._when <= self._now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if not timer._cancelled:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                self._run_step(handle)

    def _run_step(self, handle: Any) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Stuck(f"more than {MOST_STEPS} steps")
        process: Process | None = handle._context.get(PROCESS)
        if process is None:
            handle._run()
        elif process.state == "alive":
            handle._run()
            process.steps += 1
            if process.steps == process.dies_at:
                process.kill()
        elif process.state == "frozen":
            process.held.append(handle)

    def discard(self) -> None:
        """Throw away what the dead left behind. Their `finally` blocks may object; nobody listens."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _unraisable: None
        try:
            for task in self._tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if not task.done():
                    _close(task.get_coro())
            self._tasks.clear()
            self._ready.clear()  # type: ignore[attr-defined]
            self._scheduled.clear()  # type: ignore[attr-defined]
            self.close()
        finally:
            sys.unraisablehook = hook


def _close(coro: Any) -> None:
    for _ in range(20):
        try:
            coro.close()
        except BaseException:
            continue
        return


WORLD = Context()
"""The context of what no process can take down with it: servers, the network, the script of a run."""

_START = datetime(2026, 11, 22, 23, 59, 30, tzinfo=UTC)  # soon another day begins, and with it other data keys


def now() -> datetime:
    """The clock on every wall."""
    return _START + timedelta(seconds=asyncio.get_running_loop().time())


class VirtualDatetime(datetime):
    """Stands in for `datetime` in modules that ask for the time."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return now()
