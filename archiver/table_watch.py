"""Tables that are not archived, or not wholly: counted, named once, and published where that is the daemon's to do.

In: the source, and the newest base snapshot of the log. Out: a metric, lines of the log, a number for the manifests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

import structlog

from archiver.archive import OpenArchive
from archiver.config import SourceSection
from archiver.errors import PostgresError
from archiver.metrics import Metrics
from archiver.postgres.setup import publish_missing, unpublished_tables
from archiver.postgres.source import Source

TABLES_SECONDS = 15.0
_NOT_ARCHIVED = "archiver init publishes them (--keyless full those without a key); or write them into source.exclude."

log = structlog.get_logger()


class TableWatch:
    """What a daemon does about such tables. `monitor` is its connection to the source."""

    def __init__(self, source: SourceSection, monitor: Source, metrics: Metrics) -> None:
        self._source = source
        self._monitor = monitor
        self._metrics = metrics

    async def count(self, archive: OpenArchive, tell: Callable[[int], None]) -> None:
        """Count for ever, and `tell` how many: whoever reads no metric reads the log, where each is named once."""
        named, before = set[str](), set[str]()
        find = partial(unpublished_tables, name=self._source.publication, exclude=self._source.exclude)
        while True:
            with contextlib.suppress(PostgresError):  # the daemon's monitor says so
                found = {str(table) for table in await self._monitor.ask(find)}
                snapshot = archive.log.state.snapshot
                count = len(found) + (snapshot.without_rows if snapshot is not None else 0)
                self._metrics.unarchived_tables.set(count)
                tell(count)
                if new := (found & before) - named:  # a base snapshot may publish what is new just now
                    named |= new
                    log.error("tables are not archived", tables=sorted(new), hint=_NOT_ARCHIVED)
                before = found
            await asyncio.sleep(TABLES_SECONDS)

    async def publish_missing(self, archive: OpenArchive) -> None:
        """Where something was lost it may be a table: the base snapshot has its rows, and its changes must follow."""
        state = archive.log.state
        if state.lost is None or (state.snapshot is not None and state.lost.lsn <= state.snapshot.lsn):
            return
        publish = partial(publish_missing, name=self._source.publication, exclude=self._source.exclude)
        added, refused = await self._monitor.ask(publish)
        if added:
            log.info("published new tables", tables=added)
        if refused:
            log.error("not archived: the role may not publish them; run archiver init", tables=refused)
