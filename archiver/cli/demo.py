"""`archiver demo`: a live shop is archived, broken by an UPDATE without its WHERE, and restored to the second before.

The proof is independent of the archive: before the mistake the traffic is held for an instant, every table of the
source is counted and digested, and the restored database must give the same. Everything runs on embedded servers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import typer

from archiver.archive import OpenArchive
from archiver.cli import demo_shop
from archiver.cli.demo_proof import Truth, compare, take_truth
from archiver.cli.demo_report import Figures, Lag, show
from archiver.cli.demo_stage import Stage, stage
from archiver.cli.init import initialise
from archiver.cli.options import opened, run_async
from archiver.cli.output import logs_held, note, say, seconds
from archiver.daemon import Daemon
from archiver.errors import DrillFailed, StoreError, TargetUnreachable
from archiver.format.manifest import format_time
from archiver.policy.target import Plan, ToTime
from archiver.postgres.session import connect
from archiver.recovery_plan import make_plan, read_history
from archiver.restore import Summary, run_restore

LOAD_SECONDS = 20.0
BEFORE_SECONDS = 1.5  # between the moment to restore to and the mistake
AFTER_SECONDS = 3.0  # until somebody notices
PATIENCE = 60.0


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running at the end, until Ctrl-C, and say how to connect.")
    ] = False,
) -> None:
    """Show the whole story on embedded servers: archive a live shop, break it, restore the second before.

    It needs no configuration and no network, and takes about a minute. Exits 0 only if every restored table equals
    the source at that moment, else 7. Everything is temporary.

    Example: archiver demo
    """
    with logs_held():
        run_async(_demo(keep))


async def _demo(keep: bool) -> None:
    story = _Story()
    story.tell("starting PostgreSQL and two S3 servers, all of them embedded and temporary")
    async with stage() as props:
        await story.play(props, keep=keep)


@dataclass(slots=True)
class _Outcome:
    truth: Truth
    plan: Plan
    summary: Summary


class _Story:
    """Plays the demo and says what happens, with the time since its beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def tell(self, what: str) -> None:
        say(f"[{time.monotonic() - self._began:5.1f} s] {what}")

    async def play(self, props: Stage, *, keep: bool) -> None:
        """All of it. Raises DrillFailed unless every restored table is equal."""
        self.tell(f"opening a shop: {demo_shop.CUSTOMERS} customers, {demo_shop.ORDERS} orders")
        await demo_shop.open_shop(props.source)
        self.tell("archiver init")
        await initialise(props.config, None, timedelta(seconds=PATIENCE), tell=lambda line: self.tell(f"  {line}"))
        async with _daemon(props) as daemon, opened(props.config) as archive:
            lag = Lag(daemon.metrics)
            async with lag.watched():
                outcome = await self._with_traffic(props, archive)
            figures = Figures(
                await read_history(archive), lag, outcome.plan, outcome.summary, time.monotonic() - self._began
            )
            verdicts = await compare(outcome.truth, props.restored)
            show(verdicts, figures)
            await self._lost(props, outcome.truth)
            if keep:
                await _keep(props)
        if not all(verdict.equal for verdict in verdicts):
            raise DrillFailed("the restored database differs from the source", hint="Please report this as a bug.")
        self.tell("the restored database equals the source at that moment")

    async def _with_traffic(self, props: Stage, archive: OpenArchive) -> _Outcome:
        async with demo_shop.Traffic.running(props.source) as traffic:
            self.tell(f"customers arrive: {demo_shop.CONNECTIONS} connections; archiver run takes a base snapshot")
            await self._await_snapshot(archive)
            await asyncio.sleep(LOAD_SECONDS)
            async with traffic.held():
                truth = await take_truth(props.source)
            self.tell(f"at {format_time(truth.time)} all is well, after {traffic.transactions} transactions")
            await asyncio.sleep(BEFORE_SECONDS)
            await self._make_mistake(props)
            await asyncio.sleep(AFTER_SECONDS)
            plan = await self._await_target(archive, truth.time)
            self.tell(f"archiver restore --target-time {format_time(truth.time)}, while the shop goes on")
            started = time.monotonic()
            summary = await run_restore(archive, plan, props.restored)
            took = timedelta(seconds=time.monotonic() - started)
            self.tell(f"restored in {seconds(took)}; comparing every row with what was counted at the source")
            return _Outcome(truth, plan, summary)

    async def _await_snapshot(self, archive: OpenArchive) -> None:
        async with asyncio.timeout(PATIENCE):
            history = await read_history(archive)
            while not history.snapshots:
                await asyncio.sleep(0.5)
                history = await read_history(archive)
        taken = history.snapshots[-1]
        self.tell(f"  base snapshot at {taken.lsn}: {taken.tables} tables, {taken.rows} rows")
        self.tell(f"  every change is archived as it is committed; {LOAD_SECONDS:.0f} s of business follow")

    async def _make_mistake(self, props: Stage) -> None:
        conn = await connect(props.source, purpose="demo")
        try:
            cursor = await conn.execute(demo_shop.MISTAKE)
        finally:
            await conn.close()
        self.tell(f"the mistake: {demo_shop.MISTAKE}; -- its WHERE was forgotten: {cursor.rowcount} rows")

    async def _await_target(self, archive: OpenArchive, moment: datetime) -> Plan:
        """The plan, as soon as the archive reaches the moment."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return await make_plan(archive, ToTime(moment))
            except (TargetUnreachable, StoreError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

    async def _lost(self, props: Stage, truth: Truth) -> None:
        """What the mistake did, and what the restore brought back."""
        broken, mended = [await demo_shop.money(dsn) for dsn in (props.source, props.restored)]
        self.tell(f"balances in all: {truth.money} before the mistake, {broken} at the source now, {mended} restored")


@asynccontextmanager
async def _daemon(props: Stage) -> AsyncIterator[Daemon]:
    """`archiver run` in this process, which is stopped in order at the end. Its failure is the demo's."""
    daemon, stop = Daemon(props.config), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(daemon.run(stop), name="daemon")
        try:
            yield daemon
            stop.set()
            await running
        finally:
            running.cancel()


async def _keep(props: Stage) -> None:
    """Leave everything running until Ctrl-C or SIGTERM, which then is no failure."""
    say("")
    say("everything is left running; in another terminal:")
    for name, value in props.variables.items():
        say(f"  export {name}={value}")
    say(f"  export ARCHIVER_CONFIG={props.config_file}")
    say("  archiver info")
    say(f"the source:    {props.source}")
    say(f"the restored:  {props.restored}")
    for region, server in zip(props.config.region, props.regions, strict=True):
        say(f"region {region.name}: {server.endpoint}, {region.url}")
    say(f"metrics:       http://{props.config.http.listen}/metrics")
    note("Ctrl-C stops and removes it all")
    task = asyncio.current_task()
    assert task is not None
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        task.uncancel()
