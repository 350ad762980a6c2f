"""`archiver uninstall`: takes everything of archiver's out of the source; the archive in the regions stays."""

from __future__ import annotations

from archiver.cli.options import ConfigOption, YesOption, load, run_async
from archiver.cli.output import confirm, note, say
from archiver.config import SourceSection
from archiver.postgres.replication_slot import drop_slot
from archiver.postgres.session import connect
from archiver.postgres.setup import remove_all


def uninstall(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Drop the replication slot, the publication, the event triggers and the schema archiver at the source.

    The archive in the regions is not touched; it ends here, and a later init leaves a gap.

    Example: archiver uninstall -c archiver.toml --yes
    """
    source = load(config).require_source()
    confirm(
        f"Drop slot {source.slot} and publication {source.publication} at the source? The archive ends here.", yes=yes
    )
    run_async(_remove(source))


async def _remove(source: SourceSection) -> None:
    """The slot first: while a daemon uses it, nothing is changed."""
    conn = await connect(source.dsn, purpose="uninstall")
    try:
        dropped = await drop_slot(conn, source.slot)
        say(f"replication slot {source.slot}: {'dropped' if dropped else 'was not there'}")
        left = await remove_all(conn, source.publication)
        say(f"publication {source.publication}, event triggers and schema archiver: gone")
        if left:
            note(f"schema archiver holds what is not archiver's, and stays: {', '.join(left)}")
    finally:
        await conn.close()
