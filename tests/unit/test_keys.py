"""The keyring over two regions in memory: one key for all writers, in every region, or none."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.errors import IntegrityError, ObjectNotFound, StoreUnavailable, WrongKey
from archiver.format import layout
from archiver.format.manifest import RestorePoint
from archiver.format.wrap import format_kek
from archiver.keys import Keyring, LocalKek, open_kek
from archiver.lsn import Lsn
from archiver.policy.log_state import LogState
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from archiver.store.replicas import WritePolicy
from tests.unit.test_archive_log import KEK, Crash, Regions, Trap, changes, create, mirror, regions, scanned

NOW = datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC)


async def keyring(stores: Regions, trap: Trap | None = None, *keks: LocalKek) -> Keyring:
    archive = await create(mirror(stores))
    return Keyring(archive.identity.archive, keks or [KEK], mirror(stores, trap or Trap()))


async def test_each_day_and_purpose_has_a_key_of_its_own() -> None:
    keys = await keyring(regions())
    tomorrow = NOW + timedelta(seconds=1)
    ids = [await keys.data_key(p, at) for p in ("changes", "snapshots") for at in (NOW, tomorrow)]  # type: ignore[arg-type]
    assert ids == ["changes-2026-11-22", "changes-2026-11-23", "snapshots-2026-11-22", "snapshots-2026-11-23"]
    assert len({await keys.secret(key_id) for key_id in ids}) == 4


@pytest.mark.parametrize("at", [1, 2, 3, 4])
async def test_a_data_key_whose_maker_died_is_the_one_that_all_use(at: int) -> None:
    stores = regions()
    with pytest.raises(Crash):
        await (await keyring(stores, Trap(at))).data_key("changes", NOW)
    first, second = await keyring(stores), await keyring(stores)
    key_id = await first.data_key("changes", NOW)
    assert await first.secret(key_id) == await second.secret(key_id)
    assert stores[0].objects == stores[1].objects


async def test_writers_that_race_for_a_data_key_get_the_same() -> None:
    stores = regions()
    rings = [await keyring(stores) for _ in range(5)]
    key_id, *_ = await asyncio.gather(*(ring.data_key("changes", NOW) for ring in rings))
    assert len({await ring.secret(key_id) for ring in rings}) == 1
    assert stores[0].objects == stores[1].objects


async def test_a_key_that_its_dead_maker_left_in_one_region_is_completed_before_anything_is_sealed_with_it() -> None:
    """Otherwise what it seals is lost with the first region, though the second holds every byte of it."""
    stores = regions()
    loser = await keyring(stores)
    winner = await keyring(stores, Trap(at=3))  # dies before it writes to the secondary

    async def lose_the_race() -> None:
        make_new = loser._new

        async def interrupted(*of_key: object) -> bytes:
            with pytest.raises(Crash):
                await winner.data_key("changes", NOW)
            return await make_new(*of_key)  # type: ignore[arg-type]

        loser._new = interrupted  # type: ignore[method-assign,assignment]
        await loser.data_key("changes", NOW)

    await lose_the_race()
    assert layout.key("changes-2026-11-22") in stores[1].objects
    assert stores[0].objects == stores[1].objects


async def test_an_altered_key_in_one_region_does_not_keep_anyone_from_the_other() -> None:
    stores = regions()
    keys = await keyring(stores)
    key_id = await keys.data_key("changes", NOW)
    expected = await keys.secret(key_id)
    name = layout.key(key_id)
    whole = stores[0].objects[name]
    for damage in (
        b"{}",
        whole[:-1],
        whole.replace(b"changes-", b"changed-"),
        whole.replace(b'"purpose":"c', b'"purpose":"d'),
    ):
        stores[0].objects[name] = damage
        assert await (await keyring(stores)).secret(key_id) == expected


async def test_a_key_altered_in_both_regions_is_an_error() -> None:
    stores = regions()
    key_id = await (await keyring(stores)).data_key("changes", NOW)
    name = layout.key(key_id)
    text = stores[0].objects[name]
    at = text.index(b'"ciphertext":"') + 20
    altered = text[:at] + (b"0" if text[at : at + 1] != b"0" else b"1") + text[at + 1 :]
    for store in stores:
        store.objects[name] = altered
    with pytest.raises(IntegrityError, match="altered"):
        await (await keyring(stores)).secret(key_id)


async def test_a_key_that_is_nowhere_is_not_made_up() -> None:
    with pytest.raises(ObjectNotFound):
        await (await keyring(regions())).secret("changes-2020-01-01")


# --- never two keys of one name ---

DAY = "changes-2026-11-22"
OWN_NAME = r"changes-2026-11-22-[0-9a-f]{8}"
ON_ITS_OWN = WritePolicy(patience=timedelta(milliseconds=20))


class Silent(MemoryStore):
    """A region that does not answer."""

    async def _fail(self, *_: object, **__: object) -> Any:
        raise StoreUnavailable("gone")

    get = size = put = _fail


async def after_a_restart(archive: Keyring, used: str, *stores: MemoryStore) -> Keyring:
    """The keyring of a daemon that goes on, and whose log names one key."""
    store = Mirror(stores, policy=ON_ITS_OWN, patience=timedelta(milliseconds=20))
    keys = Keyring(archive._archive, [KEK], store)
    keys.is_used = lambda key_id: key_id == used
    return keys


@pytest.mark.parametrize("what", ["deleted", "altered"])
@pytest.mark.parametrize("number", [1, 2], ids=["one region, the other is away", "one region"])
async def test_a_key_that_the_log_names_is_never_made_anew(what: str, number: int) -> None:
    """It may come back, from a region or from the bucket's older versions; ours would be in its place."""
    stores = regions()
    keys = await keyring(stores)
    await keys.data_key("changes", NOW)
    kept = stores[0].objects.copy()
    if what == "deleted":
        del stores[1].objects[layout.key(DAY)]
    else:
        stores[1].objects[layout.key(DAY)] = b"{}"
    held = stores[1].objects.get(layout.key(DAY))
    here = (Silent("primary"), stores[1]) if number == 1 else (stores[1],)
    daemon = await after_a_restart(keys, DAY, *here)
    own = await daemon.data_key("changes", NOW)
    assert re.fullmatch(OWN_NAME, own)
    assert layout.is_ours(layout.key(own))
    assert await daemon.data_key("changes", NOW) == own
    assert stores[1].objects.get(layout.key(DAY)) == held
    assert list(daemon._store.damaged) == ["secondary"]
    both = await after_a_restart(keys, DAY, *stores)
    assert await both.open(DAY, kept[layout.key(DAY)]) == await both.secret(DAY)
    assert await both.secret(own) == await daemon.secret(own)


async def test_a_key_that_a_region_may_hold_which_does_not_answer_is_not_made_under_its_name() -> None:
    """Its maker may have died before the other region had it. And nobody waits: the region falls behind."""
    stores = regions()
    keys = await keyring(stores)
    daemon = await after_a_restart(keys, "none", stores[0], Silent("secondary"))
    async with asyncio.timeout(5):
        assert re.fullmatch(OWN_NAME, await daemon.data_key("changes", NOW))
    assert [store.name for store in daemon._store.replicas.behind] == ["secondary"]
    assert daemon._store.damaged == {}


async def test_a_region_that_is_behind_is_asked_for_a_key_that_those_in_step_lack() -> None:
    stores = regions()
    keys = await keyring(stores)
    await keys.data_key("changes", NOW)
    del stores[1].objects[layout.key(DAY)]
    daemon = await after_a_restart(keys, DAY, *stores)
    daemon._store.replicas.fall_behind("primary", "a test")
    assert await daemon.data_key("changes", NOW) == DAY
    assert stores[0].objects == stores[1].objects


async def test_a_key_that_only_a_restore_points_name_is_sealed_under_is_one_that_the_log_names() -> None:
    archive = await create(mirror(regions()))
    await archive.follow()
    point = RestorePoint(lsn=Lsn(15), time=NOW, key_id=DAY, sealed="0" * 224)
    await archive.log.append(changes(1).model_copy(update={"restore_points": (point,)}))
    assert archive.keys.is_used(DAY)
    state = LogState()
    for signed in await scanned(archive):
        state.observe(signed)
    assert layout.key(DAY) in {each.name for each in state.sample.names()}


async def test_a_key_of_a_kek_that_is_not_configured_is_asked_for() -> None:
    stores = regions()
    keys = await keyring(stores, None, LocalKek(bytes(32)))
    await keys.data_key("changes", NOW)
    with pytest.raises(WrongKey):
        await (await after_a_restart(keys, DAY, *stores)).data_key("changes", NOW)


async def test_another_kek_opens_nothing_and_writes_nothing() -> None:
    stores = regions()
    await keyring(stores)
    before = dict(stores[0].objects)
    with pytest.raises(WrongKey, match="none of the configured keys"):
        await (await keyring(stores, None, LocalKek(bytes(32)))).secret("signing")
    assert stores[0].objects == before


async def test_any_of_several_keks_opens_what_one_of_them_wrapped() -> None:
    stores = regions()
    key_id = await (await keyring(stores)).data_key("changes", NOW)
    spare = LocalKek(bytes(32))
    assert await (await keyring(stores, None, spare, KEK)).secret(key_id)


def test_a_key_in_an_environment_variable_is_read() -> None:
    kek = open_kek("env:KEK", {"KEK": format_kek(bytes(32))})
    assert isinstance(kek, LocalKek)
