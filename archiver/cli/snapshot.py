"""`archiver snapshot`: a base snapshot now, beside a running daemon or without one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from archiver.archive import require_same_database, require_same_server
from archiver.cli.init import teller
from archiver.cli.options import ConfigOption, JsonOption, WaitOption, load, opened, run_async
from archiver.cli.output import print_json, progress, say, size
from archiver.config import Config
from archiver.cut_log import require_uncut
from archiver.format.manifest import Snapshot, format_time
from archiver.postgres.replication_slot import identify
from archiver.snapshots import take_snapshot


def snapshot(config: ConfigOption = None, as_json: JsonOption = False, wait: WaitOption = timedelta(minutes=5)) -> None:
    """Take a base snapshot now; a running daemon goes on meanwhile.

    Example: archiver snapshot -c archiver.toml
    """
    taken = run_async(_take(load(config), wait))
    if as_json:
        print_json(to_json(taken))
        return
    stored = sum(part.size for part in taken.parts)
    if taken.without_rows:
        say(f"WARNING          {taken.without_rows} tables are without rows, which could not be sent: see the log")
    say(f"base snapshot at {taken.lsn}: {taken.tables} tables, {taken.rows} rows, {size(stored)} stored")


async def _take(config: Config, wait: timedelta) -> Snapshot:
    source = config.require_source()
    async with opened(config) as archive:
        system = await identify(source.dsn, purpose="snapshot")
        require_same_database(archive.identity, system.database)
        await archive.follow()
        await require_uncut(archive)
        require_same_server(archive.log.system_identifier, system.system_id)
        archived = replace(system, timeline=archive.log.state.timeline or system.timeline)
        with progress() as report:
            return await take_snapshot(
                archive,
                source,
                config.snapshot,
                of=archived,
                progress=lambda done, total: report("rows", done, total),
                on_blocked=teller(),
                patience=wait,
            )


def to_json(taken: Snapshot) -> dict[str, Any]:
    """A base snapshot as `--json` shows it; bytes are those stored in each region."""
    return {
        "id": str(taken.snapshot_id),
        "lsn": str(taken.lsn),
        "consistent_at": format_time(taken.consistent_at),
        "finished_at": format_time(taken.finished_at),
        "tables": taken.tables,
        "tables_without_rows": taken.without_rows,
        "rows": taken.rows,
        "bytes": sum(part.size for part in taken.parts),
        "raw_bytes": sum(part.raw_bytes for part in taken.parts),
    }
