"""A regular look at the regions: is what a restore would need still there?

In: an archive that a daemon has taken over. Out: what is missing, by region. A bucket's own expiry rules, or people,
take objects without a word, archive.json and the oldest manifests first, while everything that is new goes on to be
written. A look costs some hundred HEAD requests, however old the archive is. What another region holds whole, or the
daemon itself still knows, is written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from archiver.archive import OpenArchive
from archiver.errors import ArchiverError, IntegrityError, StoreError
from archiver.format import layout
from archiver.policy.sample import MOST as MOST_SAMPLED
from archiver.policy.sample import Needed
from archiver.store.base import Store
from archiver.tasks import task_group

FIRST_LOOK_SECONDS = 60.0  # a start has enough to do
LOOK_SECONDS = 3600.0
DOUBT_SECONDS = 10.0  # a region that follows may just be getting it
MOST = MOST_SAMPLED + 20
AT_ONCE = 8

log = structlog.get_logger()
Missing = Mapping[str, Sequence[Needed]]


async def look_regularly(archive: OpenArchive, tell: Callable[[str, int], None]) -> None:
    """Look, say, mend, for ever. `tell` hears of each region that was asked how many objects it lacked."""
    await asyncio.sleep(FIRST_LOOK_SECONDS)
    while True:
        for region, missing in (await look(archive)).items():
            tell(region, len(missing))
            if missing:
                await _alert(archive, region, missing)
        await asyncio.sleep(LOOK_SECONDS)


async def look(archive: OpenArchive, on_ask: Callable[[str, str], None] = lambda _region, _name: None) -> Missing:
    """What is missing in each region that answers and is in step. Raises nothing."""
    wanted = list(archive.log.state.sample.names())

    async def ask(region: Store) -> list[Needed]:
        missing = await _missing(region, wanted, on_ask)
        if not missing:
            return []
        await asyncio.sleep(DOUBT_SECONDS)
        return await _missing(region, missing, on_ask)

    answers = await archive.store.each_in_full(ask)
    behind = archive.store.replicas.behind
    return {
        region.name: found
        for region, found in answers.items()
        if region not in behind and not isinstance(found, ArchiverError)
    }


async def _missing(region: Store, wanted: Sequence[Needed], on_ask: Callable[[str, str], None]) -> list[Needed]:
    limit, missing = asyncio.Semaphore(AT_ONCE), []

    async def ask(each: Needed) -> None:
        async with limit:
            on_ask(region.name, each.name)
            if await region.size(each.name) is None:
                missing.append(each)

    async with task_group() as group:
        for each in wanted:
            group.create_task(ask(each), name=f"look at {each.name}")
    return sorted(missing, key=lambda each: each.name)


async def _alert(archive: OpenArchive, name: str, missing: Sequence[Needed]) -> None:
    region = next(store for store in archive.store.stores if store.name == name)
    written = [each.name for each in missing if await _write_again(archive, region, each)]
    log.error(
        "objects are missing in a region",
        region=name,
        missing=[each.name for each in missing][:5],
        count=len(missing),
        written_again=len(written),
        hint="archiver check names the bucket's expiry rules; archiver verify --repair brings all of it back.",
    )


async def _write_again(archive: OpenArchive, region: Store, each: Needed) -> bool:
    try:
        await region.put(each.name, await _copy(archive, each), if_absent=True)
    except (StoreError, IntegrityError) as exc:
        log.error("not written again", region=region.name, object=each.name, error=str(exc))
        return False
    return True


async def _copy(archive: OpenArchive, each: Needed) -> bytes:
    """From memory, or from a region that holds it whole."""
    if each.name == layout.ARCHIVE:
        return archive.identity_data
    if each.ref is not None:
        return await archive.store.get_verified(each.name, each.ref.matches, most=each.ref.size)
    if (seq := layout.manifest_seq(each.name)) is not None:
        return (await archive.log.reader.read(seq)).data
    return await archive.keys.copy(layout.key_id(each.name))
