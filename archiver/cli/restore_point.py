"""`archiver restore-point`: a name for where the source stands now, to restore to later."""

from __future__ import annotations

from typing import Annotated

import typer

from archiver.archive import require_same_database, require_same_server
from archiver.cli.options import ConfigOption, JsonOption, load, opened, run_async
from archiver.cli.output import print_json, say
from archiver.config import Config
from archiver.errors import UsageError
from archiver.format.journal import MAX_NAME
from archiver.lsn import Lsn
from archiver.postgres.replication_slot import identify
from archiver.postgres.session import connect
from archiver.postgres.setup import name_restore_point
from archiver.recovery_plan import read_history


def restore_point(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The restore point's name, new in this archive.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name the source's position now, before a risky change; restore to it with --target-name.

    Example: archiver restore-point before-release-42 -c archiver.toml
    """
    if not name.isprintable() or not 0 < len(name.encode()) <= MAX_NAME:
        raise UsageError("not a name for a restore point", hint=f"Use 1 to {MAX_NAME} bytes of printable characters.")
    lsn = run_async(_write(load(config), name))
    if as_json:
        print_json({"name": name, "lsn": str(lsn)})
    else:
        say(f"restore point {name} at {lsn}")


async def _write(config: Config, name: str) -> Lsn:
    source = config.require_source()
    async with opened(config) as archive:
        history = await read_history(archive)
        if known := history.find_restore_points(name):
            hint = "Choose another name; archiver info lists those that are taken."
            raise UsageError(f"there is a restore point {name!r} already", where=str(known[0].lsn), hint=hint)
        system = await identify(source.dsn, purpose="restore point")
        require_same_database(archive.identity, system.database)
        require_same_server(history.system_identifier or archive.identity.system_identifier, system.system_id)
        conn = await connect(source.dsn, purpose="restore point")
        try:
            return await name_restore_point(conn, name)
        finally:
            await conn.close()
