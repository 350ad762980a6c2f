"""When a write to several regions counts, who falls behind, and that a region that is behind never gets a hole."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from archiver.errors import AccessDenied, IntegrityError, ObjectExists, RegionsDisagree, StoreUnavailable
from archiver.store.replicas import TRAILING, Replicas, WritePolicy
from archiver.store.retry import Retry
from tests.store.test_mirror import Region

SOON = timedelta(seconds=0.05)
ALL = WritePolicy(patience=SOON)
ANY = WritePolicy(first=True, patience=SOON)


class World:
    """Two regions, and what was said of those that fell behind."""

    def __init__(self, policy: WritePolicy) -> None:
        self.one, self.two = Region("one"), Region("two")
        self.behind: list[str] = []
        stores = [Retry(region, deadline=None, base=timedelta(milliseconds=10)) for region in (self.one, self.two)]
        self.replicas = Replicas(stores, policy, lambda region, _why: self.behind.append(region))

    def close(self, *regions: Region) -> None:
        for region in regions:
            region.gate.clear()

    def open(self, *regions: Region) -> None:
        for region in regions:
            region.gate.set()


# --- ack = "all" ---


async def test_a_strict_write_waits_for_the_slowest_region() -> None:
    world = World(WritePolicy())
    world.close(world.two)
    write = asyncio.create_task(world.replicas.put("k", b"x"))
    await asyncio.sleep(0.15)
    assert not write.done()
    world.open(world.two)
    await write
    assert world.two.objects == {"k": b"x"}
    assert world.behind == []


async def test_a_region_that_is_late_falls_behind_and_is_written_no_more() -> None:
    world = World(ALL)
    world.close(world.two)
    await world.replicas.put("k", b"x")
    assert world.behind == ["two"]
    world.open(world.two)
    await world.replicas.put("l", b"x")
    await world.replicas.put_if_absent("m", b"x")
    assert world.two.objects == {}
    assert world.replicas.missed("two") == {"k", "l", "m"}


async def test_while_no_region_works_a_write_waits_and_none_falls_behind() -> None:
    world = World(ALL)
    world.close(world.one, world.two)
    write = asyncio.create_task(world.replicas.put("k", b"x"))
    manifest = asyncio.create_task(world.replicas.put_if_absent("m", b"x"))
    for region in (world.one, world.two):
        region.error = StoreUnavailable("down")
    await asyncio.sleep(0.2)
    assert not write.done()
    assert not manifest.done()
    assert world.behind == []
    for region in (world.one, world.two):
        region.error = None
    world.open(world.one, world.two)
    await asyncio.gather(write, manifest)


async def test_the_second_region_decides_when_the_first_is_behind() -> None:
    world = World(ALL)
    world.close(world.one)
    await world.replicas.put_if_absent("m", b"ours")
    assert world.behind == ["one"]
    assert world.two.objects == {"m": b"ours"}
    with pytest.raises(ObjectExists):
        await world.replicas.put_if_absent("m", b"another")


async def test_the_last_region_in_step_is_waited_for() -> None:
    world = World(ALL)
    world.replicas.fall_behind("one", "gone")
    world.close(world.two)
    write = asyncio.create_task(world.replicas.put_if_absent("m", b"x"))
    await asyncio.sleep(0.15)
    assert not write.done()
    world.replicas.fall_behind("two", "late as well")
    assert [store.name for store in world.replicas.in_step] == ["two"]
    world.open(world.two)
    await write


async def test_a_region_that_refuses_falls_behind_at_once_where_the_policy_lets_it() -> None:
    world = World(WritePolicy(patience=timedelta(seconds=60)))
    world.two.error = AccessDenied("no")
    await world.replicas.put("k", b"x")
    assert world.behind == ["two"]
    strict = World(WritePolicy())
    strict.two.error = AccessDenied("no")
    with pytest.raises(AccessDenied):
        await strict.replicas.put("k", b"x")


@pytest.mark.parametrize("policy", [WritePolicy(), ALL])
async def test_regions_that_disagree_halt_whatever_the_policy(policy: WritePolicy) -> None:
    world = World(policy)
    world.two.objects["m"] = b"another"
    with pytest.raises(RegionsDisagree, match=r"disagree about m \(one, two\)"):
        await world.replicas.put_if_absent("m", b"ours")


async def test_a_write_waits_for_the_last_region_in_step_when_only_one_that_fell_behind_has_it() -> None:
    """Two writes at once, each done in another region first: the region that stays must get both."""
    world = World(ALL)
    gates = {(region.name, key): asyncio.Event() for region in (world.one, world.two) for key in ("k", "l")}

    def gated(region: Region) -> None:
        put = region.put

        async def wait(key: str, data: bytes, *, if_absent: bool = False) -> None:
            await gates[region.name, key].wait()
            await put(key, data, if_absent=if_absent)

        region.put = wait  # type: ignore[method-assign]

    gated(world.one)
    gated(world.two)
    writes = [asyncio.create_task(world.replicas.put(key, b"x")) for key in ("k", "l")]
    await asyncio.sleep(0.1)  # past all patience
    gates["one", "l"].set()
    gates["two", "k"].set()
    await asyncio.sleep(0.1)
    (left,) = world.replicas.in_step
    for gate in gates.values():
        gate.set()
    await asyncio.gather(*writes)
    region = world.one if left.name == "one" else world.two
    assert region.objects == {"k": b"x", "l": b"x"}


# --- ack = "any" ---


async def test_one_region_is_enough_and_the_other_follows() -> None:
    world = World(WritePolicy(first=True, patience=timedelta(seconds=60)))
    world.close(world.two)
    await world.replicas.put("k", b"x")
    await world.replicas.put_if_absent("m", b"names k")
    assert world.one.objects == {"k": b"x", "m": b"names k"}
    world.open(world.two)
    await world.replicas.finish()
    assert world.two.objects == world.one.objects
    assert world.behind == []


async def test_a_manifest_never_overtakes_its_object_in_the_region_that_follows() -> None:
    world = World(WritePolicy(first=True, patience=timedelta(seconds=60)))
    order: list[str] = []
    put = world.two.put

    async def slow(key: str, data: bytes, *, if_absent: bool = False) -> None:
        await asyncio.sleep(0.05 if key == "k" else 0)
        await put(key, data, if_absent=if_absent)
        order.append(key)

    world.two.put = slow  # type: ignore[method-assign]
    await world.replicas.put("k", b"x")
    await world.replicas.put_if_absent("m", b"names k")
    await world.replicas.finish()
    assert order == ["k", "m"]


async def test_a_region_that_follows_too_late_falls_behind_with_all_it_missed() -> None:
    world = World(ANY)
    world.close(world.two)
    await world.replicas.put("k", b"x")
    await world.replicas.put_if_absent("m", b"names k")
    await asyncio.sleep(0.15)
    assert world.behind == ["two"]
    assert world.replicas.missed("two") == {"k", "m"}
    world.open(world.two)
    await world.replicas.finish()
    assert world.two.objects == {}


async def test_what_trails_is_bounded() -> None:
    world = World(WritePolicy(first=True, patience=timedelta(seconds=60)))
    world.close(world.two)
    for number in range(TRAILING):
        await world.replicas.put(f"k{number}", b"x")
    assert world.behind == []
    await world.replicas.put("k", b"x")
    assert world.behind == ["two"]
    assert len(world.replicas.missed("two")) == TRAILING + 1


async def test_when_the_deciding_region_hangs_the_next_one_decides() -> None:
    world = World(ANY)
    world.close(world.one)
    await world.replicas.put("k", b"x")
    await world.replicas.put_if_absent("m", b"names k")
    assert world.behind == ["one"]
    assert world.two.objects == {"k": b"x", "m": b"names k"}
    assert world.one.objects == {}


async def test_a_disagreement_that_nobody_waited_for_halts_the_next_write() -> None:
    world = World(ANY)
    world.two.objects["m"] = b"another"
    await world.replicas.put_if_absent("m", b"ours")
    await world.replicas.finish()
    with pytest.raises(RegionsDisagree):
        await world.replicas.put("k", b"x")


# --- rejoining ---


async def test_a_write_under_way_while_a_region_rejoins_reaches_it() -> None:
    world = World(ALL)
    world.replicas.fall_behind("two", "down")
    world.close(world.one)
    write = asyncio.create_task(world.replicas.put("k", b"x"))
    await asyncio.sleep(0)
    assert world.replicas.missed("two") == set()
    world.replicas.rejoin("two")
    world.open(world.one)
    await write
    assert world.two.objects == {"k": b"x"}


async def test_a_key_that_is_made_while_a_third_region_rejoins_reaches_it() -> None:
    regions = [Region(name) for name in ("one", "two", "three")]
    replicas = Replicas(regions, ALL)
    replicas.fall_behind("three", "down")
    regions[1].gate.clear()
    write = asyncio.create_task(replicas.put_if_absent("keys/k", b"x"))
    await asyncio.sleep(0.01)
    replicas.rejoin("three")
    regions[1].gate.set()
    await write
    assert [region.objects for region in regions] == [{"keys/k": b"x"}] * 3


async def test_what_is_cancelled_ends_in_every_region() -> None:
    world = World(WritePolicy())
    world.close(world.one, world.two)
    write = asyncio.create_task(world.replicas.put("k", b"x"))
    await asyncio.sleep(0.01)
    write.cancel()
    await asyncio.gather(write, return_exceptions=True)
    assert (world.one.cancelled, world.two.cancelled) == (True, True)


async def test_a_manifest_is_not_written_where_its_object_was_abandoned() -> None:
    """A daemon that ends does not wait for ever for what trails behind."""
    world = World(WritePolicy(first=True, patience=timedelta(seconds=60)))
    world.close(world.one)
    await world.replicas.put("k", b"x")
    manifest = asyncio.create_task(world.replicas.put_if_absent("m", b"names k"))
    await asyncio.sleep(0.05)
    abandoning = asyncio.create_task(world.replicas.abandon())
    await asyncio.sleep(0.05)
    world.open(world.one)
    await asyncio.gather(manifest, abandoning, return_exceptions=True)
    assert "m" not in world.one.objects


# --- bytes that arrive altered ---


class Altered(Region):
    """What is read from it does not match its checksum."""

    async def get(self, key: str, *, most: int | None = None) -> bytes:  # noqa: ARG002
        raise IntegrityError("the object does not match the checksum kept with it", where=key)


@pytest.mark.parametrize("policy", [ALL, ANY], ids=["all", "any"])
@pytest.mark.parametrize("number", [0, 1])
async def test_a_region_whose_answers_are_altered_falls_behind_and_halts_nobody(
    policy: WritePolicy, number: int
) -> None:
    """A write whose answer was lost is compared with what is there; what cannot be read is no disagreement."""
    altered, other = Altered("altered"), Region("other")
    stores = [altered, other] if number == 0 else [other, altered]
    await altered.put("m", b"x")
    behind: list[str] = []
    replicas = Replicas(stores, policy, lambda region, _why: behind.append(region))
    await replicas.put_if_absent("m", b"x")
    await replicas.finish()
    await replicas.put_if_absent("n", b"y")
    assert behind == ["altered"]
    assert other.objects == {"m": b"x", "n": b"y"}


async def test_a_strict_write_says_that_answers_are_altered() -> None:
    altered, other = Altered("altered"), Region("other")
    await altered.put("m", b"x")
    with pytest.raises(IntegrityError, match="checksum"):
        await Replicas([other, altered], WritePolicy()).put_if_absent("m", b"x")
