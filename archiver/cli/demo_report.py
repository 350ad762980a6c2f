"""What the demo shows at its end: every table at the source and restored, and the figures of the archive.

In: verdicts and figures. Out: tables on stdout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

from archiver.cli.demo_proof import Verdict
from archiver.cli.output import say, size, table
from archiver.metrics import Metrics
from archiver.policy.history import History
from archiver.policy.target import Plan
from archiver.restore import Summary

SAMPLE_SECONDS = 0.25


class Lag:
    """The recovery point age, sampled while the context `watched` lasts."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.seconds: list[float] = []

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        sampling = asyncio.create_task(self._sample(), name="lag")
        try:
            yield
        finally:
            sampling.cancel()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            age = self._metrics.registry.get_sample_value("archiver_recovery_point_age_seconds")
            if age:
                self.seconds.append(age)


@dataclass(frozen=True, slots=True)
class Figures:
    """What there is to tell: the archive, the lag, the restore, and how long the demo took, in seconds."""

    history: History
    lag: Lag
    plan: Plan
    summary: Summary
    seconds: float


def show(verdicts: Sequence[Verdict], figures: Figures) -> None:
    """The tables, then the figures."""
    say("")
    rows = [(each.name, each.source, each.restored, each.result) for each in verdicts]
    table(("table", "source then", "restored", "equal"), rows, numbers=(1, 2))
    say("")
    for name, value in [*_archive(figures), *_restore(figures)]:
        say(f"{name:<23}{value}")
    say("")


def _archive(figures: Figures) -> list[tuple[str, str]]:
    changes = [each.object for each in figures.history.changes if each.object]
    parts = [part for snapshot in figures.history.snapshots for part in snapshot.parts]
    ages = figures.lag.seconds or [0.0]
    return [
        ("recovery point age", f"median {median(ages):.1f} s, at most {max(ages):.1f} s"),
        ("changes", f"{len(changes)} change segments, {_packed(changes)} than the stream"),
        ("base snapshot", f"{_packed(parts)} than the rows"),
        ("transactions archived", str(sum(each.commits for each in figures.history.changes))),
    ]


def _packed(refs: Sequence[object]) -> str:
    raw, stored = (sum(getattr(ref, name) for ref in refs) for name in ("raw_bytes", "size"))
    return f"{size(stored)} in each region, {raw / max(1, stored):.1f} times smaller"


def _restore(figures: Figures) -> list[tuple[str, str]]:
    summary, last = figures.summary, figures.plan.last_commit
    phases = ", ".join(f"{name} {time.total_seconds():.1f} s" for name, time in summary.phases.items())
    return [
        ("last commit restored", f"LSN {last.lsn}, xid {last.xid}" if last else "none"),
        ("restored", f"{summary.rows_loaded} rows loaded, {summary.transactions_replayed} transactions replayed"),
        ("restore", phases),
        ("the demo so far", f"{figures.seconds:.0f} s"),
    ]
