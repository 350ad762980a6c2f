"""`archiver verify`: is the archive whole, in every region? Findings are listed and end with exit code 5."""

from __future__ import annotations

from typing import Annotated

import typer

from archiver.cli.options import ConfigOption, JsonOption, RegionOption, load, opened, run_async
from archiver.cli.output import print_json, progress, say, size
from archiver.config import Config
from archiver.errors import IntegrityError
from archiver.verify import Report
from archiver.verify import verify as verify_archive


def verify(
    config: ConfigOption = None,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also decrypt, decompress and parse everything, as a restore would.")
    ] = False,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the manifest log, the hash of every object, and the regions against each other.

    Exits 0 if the archive is whole everywhere, 5 if anything is altered, missing or reordered. It writes nothing.

    Example: archiver verify -c archiver.toml --read-data
    """
    report = run_async(_verify(load(config), region, read_data=read_data))
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)
    if not report.ok:
        raise IntegrityError(
            f"the archive is not whole: {len(report.findings)} findings",
            where=report.findings[0].object,
            hint="Keep what is there; restore with --region from a region that is whole.",
        )


async def _verify(config: Config, region: str | None, *, read_data: bool) -> Report:
    async with opened(config, region) as archive:
        with progress() as report:
            return await verify_archive(
                archive, read_data=read_data, progress=lambda done, total: report("objects", done, total)
            )


def _show(report: Report) -> None:
    for finding in report.findings:
        say(f"{finding.region}: {finding.object}: {finding.what}; concerns {finding.concerns}")
    how = "decrypted and read" if report.read_data else "hashes compared"
    say(f"{report.manifests} manifests, {report.objects} objects, {size(report.stored_bytes)} in each region: {how}")
    if report.ok:
        say(f"all whole; the log's newest hash is {report.head or 'none, it is empty'}")
