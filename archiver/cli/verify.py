"""`archiver verify`: is the archive whole, in every region? Findings are listed and end with exit code 5 or 4."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from archiver.cli.options import ConfigOption, ExpectHeadOption, JsonOption, RegionOption, load, opened, run_async
from archiver.cli.output import print_json, progress, say, size
from archiver.config import Config
from archiver.errors import IntegrityError, StoreUnavailable, UsageError
from archiver.findings import FOREIGN, Report
from archiver.survey import Head, require_head
from archiver.verify import repair as repair_archive
from archiver.verify import verify as verify_archive

Work = Callable[..., Awaitable[Report]]


def verify(
    config: ConfigOption = None,
    *,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also decrypt, decompress and parse everything, as a restore would.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write again, from another region that holds it whole, what is damaged.")
    ] = False,
    region: RegionOption = None,
    expect_head: ExpectHeadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the manifest log, the hash of every object, and the regions against each other.

    Exits 0 if the archive is whole everywhere, 5 if anything is altered, missing or reordered, and 4 if all that was
    looked at is whole, and a region did not answer. It writes nothing, unless --repair says so: then what could be
    mended is listed, and only what is left counts.

    Example: archiver verify -c archiver.toml --read-data
    """
    if repair and region:
        raise UsageError("--repair needs every region", hint="Leave --region out.")
    work = repair_archive if repair else verify_archive
    head = Head.parse(expect_head) if expect_head is not None else None
    report = run_async(_verify(load(config), region, work, head, read_data=read_data))
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)
    if not report.ok:
        raise _not_whole(report, repair) if report.damaged else _silent(report)


def _not_whole(report: Report, repair: bool) -> IntegrityError:
    if all(finding.what == FOREIGN for finding in report.findings):
        return IntegrityError(
            f"objects that are none of archiver's lie in the archive: {len(report.findings)}",
            where=report.findings[0].object,
            hint="They harm nothing. Find out who may write there, and remove them.",
        )
    return IntegrityError(
        f"the archive is not whole: {len(report.findings)} findings",
        where=report.findings[0].object,
        hint="No region holds this whole. Keep what is there, and take a base snapshot: archiver snapshot"
        if repair
        else "Mend it from the other region: archiver verify --repair. A restore reads whichever region is whole.",
    )


def _silent(report: Report) -> StoreUnavailable:
    return StoreUnavailable(
        f"these regions could not be asked: {', '.join(report.silent)}; what was looked at is whole",
        where=report.findings[0].what,
        hint="Verify again when they answer: archiver check tells.",
    )


async def _verify(config: Config, region: str | None, work: Work, head: Head | None, *, read_data: bool) -> Report:
    async with opened(config, region) as archive:
        require_head([signed async for signed in archive.log.scan()] if head else (), head)
        with progress() as report:
            return await work(archive, read_data=read_data, progress=lambda done, total: report("objects", done, total))


def _show(report: Report) -> None:
    for finding in report.repaired:
        say(f"repaired: {finding.region}: {finding.object}: {finding.what}; concerns {finding.concerns}")
    for finding in report.findings:
        say(f"{finding.region}: {finding.object}: {finding.what}; concerns {finding.concerns}")
    how = "decrypted and read" if report.read_data else "hashes compared"
    say(f"{report.manifests} manifests, {report.objects} objects, {size(report.stored_bytes)} in each region: {how}")
    say(f"{'all whole; ' if report.ok else ''}the log ends at {report.head or 'its beginning: it is empty'}")
