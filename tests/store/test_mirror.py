"""What several regions are as one: who acknowledges, who decides, who is asked, and what a disagreement is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from archiver.errors import (
    AccessDenied,
    ArchiverError,
    BucketNotFound,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    StoreUnavailable,
)
from archiver.store.base import Entry
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror


class Region(MemoryStore):
    """A store that fails with `error` while that is set, waits at `gate` before writing, and counts reads."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.error: ArchiverError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.written = asyncio.Event()
        self.reads = 0
        self.cancelled = False

    def _maybe(self) -> None:
        if self.error:
            raise self.error

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._maybe()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await super().put(key, data, if_absent=if_absent)
        self.written.set()

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        self.reads += 1
        self._maybe()
        return await super().get(key, most=most)

    async def size(self, key: str) -> int | None:
        self._maybe()
        return await super().size(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        async for entry in super().list(prefix, start_after=start_after):
            yield entry
            self._maybe()

    async def delete(self, key: str) -> None:
        self._maybe()
        await super().delete(key)

    async def check(self) -> None:
        self._maybe()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def one() -> Region:
    return Region("one")


@pytest.fixture
async def two() -> Region:
    return Region("two")


async def test_a_write_is_acknowledged_only_when_every_region_holds_it(one: Region, two: Region) -> None:
    two.gate.clear()
    write = asyncio.create_task(Mirror([one, two]).put("k", b"x"))
    await one.written.wait()
    assert not write.done()
    two.gate.set()
    await write
    assert two.objects == {"k": b"x"}


async def test_one_region_refusing_stops_the_write_and_is_raised_as_itself(one: Region, two: Region) -> None:
    one.gate.clear()
    two.error = AccessDenied("no")
    with pytest.raises(AccessDenied):
        await Mirror([one, two]).put("k", b"x")
    assert one.cancelled


async def test_the_primary_decides_a_race_before_the_secondary_is_asked(one: Region, two: Region) -> None:
    one.objects["k"] = b"theirs"
    with pytest.raises(ObjectExists):
        await Mirror([one, two]).put("k", b"mine", if_absent=True)
    assert two.objects == {}


async def test_a_conditional_write_reaches_every_region(one: Region, two: Region) -> None:
    await Mirror([one, two]).put("k", b"x", if_absent=True)
    assert one.objects == two.objects == {"k": b"x"}


async def test_an_equal_object_in_the_secondary_is_a_write_a_crash_cut_in_two(one: Region, two: Region) -> None:
    two.objects["k"] = b"x"
    await Mirror([one, two]).put("k", b"x", if_absent=True)
    assert one.objects == two.objects == {"k": b"x"}


async def test_a_different_object_in_the_secondary_is_a_disagreement_naming_both(one: Region, two: Region) -> None:
    two.objects["k"] = b"other"
    with pytest.raises(IntegrityError, match="regions disagree about k") as caught:
        await Mirror([one, two]).put("k", b"x", if_absent=True)
    assert caught.value.where == "one, two"
    assert two.objects == {"k": b"other"}


@pytest.mark.parametrize(
    "error", [StoreUnavailable("down"), AccessDenied("no"), BucketNotFound("gone"), ObjectNotFound("none")]
)
async def test_a_read_goes_on_in_the_next_region(one: Region, two: Region, error: ArchiverError) -> None:
    two.objects["k"] = b"x"
    one.error = error
    mirror = Mirror([one, two])
    assert await mirror.get("k") == b"x"
    assert await mirror.size("k") == 1


async def test_the_preferred_region_is_asked_first(one: Region, two: Region) -> None:
    one.objects["k"], two.objects["k"] = b"one", b"two"
    assert await Mirror([one, two]).get("k") == b"one"
    assert await Mirror([one, two], prefer="two").get("k") == b"two"


async def test_a_region_that_failed_is_asked_last_for_thirty_seconds(one: Region, two: Region) -> None:
    clock = Clock()
    mirror = Mirror([one, two], clock=clock)
    two.objects["k"] = b"x"
    one.error = StoreUnavailable("down")
    for _ in range(5):
        await mirror.get("k")
    assert one.reads == 1
    clock.now = 30
    await mirror.get("k")
    assert one.reads == 2


async def test_a_region_cooling_down_is_still_asked_when_the_others_fail(one: Region, two: Region) -> None:
    mirror = Mirror([one, two])
    one.objects["k"] = two.objects["k"] = b"x"
    one.error = StoreUnavailable("down")
    await mirror.get("k")
    one.error, two.error = None, StoreUnavailable("down too")
    assert await mirror.get("k") == b"x"


async def test_when_all_fail_the_first_error_is_raised(one: Region, two: Region) -> None:
    one.error, two.error = StoreUnavailable("first"), StoreUnavailable("second")
    with pytest.raises(StoreUnavailable, match="first"):
        await Mirror([one, two]).get("k")


async def test_an_object_is_missing_only_if_every_region_says_so(one: Region, two: Region) -> None:
    mirror = Mirror([one, two])
    with pytest.raises(ObjectNotFound):
        await mirror.get("k")
    two.error = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await mirror.get("k")


async def test_a_region_whose_bytes_fail_the_check_is_passed_over(one: Region, two: Region) -> None:
    one.objects["k"], two.objects["k"] = b"altered", b"whole"
    mirror = Mirror([one, two])
    assert await mirror.get_verified("k", lambda data: data == b"whole") == b"whole"
    with pytest.raises(IntegrityError) as caught:
        await mirror.get_verified("k", lambda data: data == b"neither")
    assert caught.value.where == "one: k"


async def test_a_listing_that_breaks_off_goes_on_in_the_next_region(one: Region, two: Region) -> None:
    for key in "abc":
        one.objects[key] = two.objects[key] = b"x"
    one.error = StoreUnavailable("down")
    listed = [entry async for entry in Mirror([one, two]).list("")]
    assert listed == [Entry("a", 1), Entry("b", 1), Entry("c", 1)]


async def test_a_listing_that_no_region_finishes_raises(one: Region, two: Region) -> None:
    for key in "abc":
        one.objects[key] = two.objects[key] = b"x"
    one.error = two.error = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        [entry async for entry in Mirror([one, two]).list("")]


async def test_a_deletion_reaches_the_other_regions_when_one_fails(one: Region, two: Region) -> None:
    one.objects["k"] = two.objects["k"] = b"x"
    one.error = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await Mirror([one, two]).delete("k")
    assert two.objects == {}


async def test_check_tells_of_every_region_that_failed(one: Region, two: Region) -> None:
    one.error = BucketNotFound("no such bucket", where="one", hint="Create it.")
    two.error = AccessDenied("no", where="two")
    with pytest.raises(BucketNotFound) as caught:
        await Mirror([one, two]).check()
    assert "one" in str(caught.value)
    assert "two" in str(caught.value)
    assert caught.value.hint == "Create it."


def test_the_regions_can_be_had_one_by_one() -> None:
    stores = [MemoryStore("one"), MemoryStore("two")]
    assert Mirror(stores).stores == tuple(stores)
    assert Mirror(stores).name == "one+two"


async def test_a_region_that_needs_longer_than_a_daemons_patience_is_given_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A large object over a slow line: the same patience again would never be enough."""

    class Slow(MemoryStore):
        async def get(self, key: str, *, most: int | None = None) -> bytes:
            await asyncio.sleep(0.1)
            return await super().get(key, most=most)

    monkeypatch.setattr("archiver.store.mirror.ROUND_PAUSE", timedelta(milliseconds=1))
    slow = Slow("slow")
    await slow.put("a", b"1")
    async with asyncio.timeout(10):
        assert await Mirror([slow], patience=timedelta(milliseconds=20)).get("a") == b"1"
