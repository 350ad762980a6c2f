"""Builds indexes and constraints over several connections, each in a transaction of its own with its record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg

from archiver.format.dump import Entry
from archiver.format.dump_roles import Skipped
from archiver.policy.builds import Build, Builds
from archiver.postgres import load
from archiver.tasks import task_group


async def build_all(
    worker: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]],
    builds: Iterable[Build],
    *,
    preamble: Entry,
    jobs: int,
    done: frozenset[str],
    on_built: Callable[[int, int], None],
) -> list[Skipped]:
    """Do what is not `done`, the keys of progress, each job with a `worker`.

    `on_built` is called with how many are built, and of how many.
    Returns what the target refused and can do without. Raises PostgresError that names the entry.
    """
    todo = [build for build in builds if progress_key(build.entry) not in done]
    waiting, freed, skipped = Builds(todo), asyncio.Condition(), list[Skipped]()
    built = 0

    async def take() -> Build | None:
        async with freed:
            while (build := waiting.take()) is None and waiting:
                await freed.wait()
            return build

    async def work() -> None:
        nonlocal built
        async with worker() as conn:
            while build := await take():
                skipped.extend(await _build(conn, preamble, build.entry))
                built += 1
                on_built(built, len(todo))
                async with freed:
                    waiting.finish(build)
                    freed.notify_all()

    async with task_group() as group:
        for number in range(min(jobs, len(todo))):
            group.create_task(work(), name=f"build job {number}")
    return skipped


async def _build(conn: psycopg.AsyncConnection[Any], preamble: Entry, entry: Entry) -> list[Skipped]:
    async with load.transaction(conn, entry.label):
        skipped = await load.run_script(conn, preamble, [entry])
        async with conn.cursor() as cursor:
            await load.write_progress(cursor, **{progress_key(entry): [item.warning for item in skipped]})
    return skipped


def progress_key(entry: Entry) -> str:
    return f"built {entry.label}"
