"""When a store is asked again, how long, and what an answer that was lost means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from archiver.errors import AccessDenied, ArchiverError, IntegrityError, ObjectExists, ObjectNotFound, StoreUnavailable
from archiver.store.base import Entry
from archiver.store.memory import MemoryStore
from archiver.store.retry import Retry


class Flaky(MemoryStore):
    """Raises what is queued in `before` instead of acting, and in `after` once it has acted."""

    def __init__(self) -> None:
        super().__init__("flaky")
        self.before: list[ArchiverError] = []
        self.before_get: list[ArchiverError] = []
        self.after: list[ArchiverError] = []
        self.calls = 0

    def _maybe(self, queue: list[ArchiverError]) -> None:
        if queue:
            raise queue.pop(0)

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self.calls += 1
        self._maybe(self.before)
        await super().put(key, data, if_absent=if_absent)
        self._maybe(self.after)

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        self.calls += 1
        self._maybe(self.before)
        self._maybe(self.before_get)
        return await super().get(key, most=most)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        async for entry in super().list(prefix, start_after=start_after):
            yield entry
            self._maybe(self.after)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def down(times: int = 1) -> list[ArchiverError]:
    return [StoreUnavailable(f"down {number}") for number in range(times)]


def retry(store: Flaky, time: Time, *, deadline: float | None = None, jitter: float = 1.0, **options: object) -> Retry:
    return Retry(
        store,
        deadline=None if deadline is None else timedelta(seconds=deadline),
        sleep=time.sleep,
        clock=time.clock,
        jitter=lambda: jitter,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def store() -> Flaky:
    return Flaky()


@pytest.fixture
def time() -> Time:
    return Time()


async def test_a_transient_error_is_tried_again(store: Flaky, time: Time) -> None:
    store.before = down(3)
    await retry(store, time).put("k", b"x")
    assert store.objects == {"k": b"x"}
    assert store.calls == 4


async def test_a_permanent_error_passes_at_once(store: Flaky, time: Time) -> None:
    store.before = [AccessDenied("no")]
    with pytest.raises(AccessDenied):
        await retry(store, time).put("k", b"x")
    assert store.calls == 1
    assert time.naps == []


async def test_pauses_double_up_to_the_cap(store: Flaky, time: Time) -> None:
    store.before = down(8)
    await retry(store, time).put("k", b"x")
    assert time.naps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


async def test_pauses_are_jittered_over_their_full_length(store: Flaky, time: Time) -> None:
    store.before = down(2)
    await retry(store, time, jitter=0.25).put("k", b"x")
    assert time.naps == pytest.approx([0.025, 0.05])


async def test_without_a_deadline_it_goes_on_for_ever(store: Flaky, time: Time) -> None:
    store.before = down(20_000)
    await retry(store, time).put("k", b"x")
    assert store.calls == 20_001


async def test_at_the_deadline_the_last_error_is_raised(store: Flaky, time: Time) -> None:
    store.before = down(100)
    with pytest.raises(StoreUnavailable) as caught:
        await retry(store, time, deadline=1).get("k")
    assert time.now == pytest.approx(1001)  # the last pause is cut, for one attempt at the deadline itself
    assert caught.value.message == f"down {store.calls - 1}"


async def test_a_write_whose_answer_was_lost_is_done(store: Flaky, time: Time) -> None:
    store.after = down()
    await retry(store, time).put("k", b"mine", if_absent=True)
    assert store.objects == {"k": b"mine"}


async def test_a_race_lost_during_an_outage_is_still_lost(store: Flaky, time: Time) -> None:
    store.objects["k"] = b"theirs"
    store.before = down()
    with pytest.raises(ObjectExists):
        await retry(store, time).put("k", b"mine", if_absent=True)
    assert store.objects == {"k": b"theirs"}


async def test_without_an_outage_an_equal_object_in_place_is_not_ours(store: Flaky, time: Time) -> None:
    store.objects["k"] = b"equal"
    with pytest.raises(ObjectExists):
        await retry(store, time).put("k", b"equal", if_absent=True)
    assert store.calls == 1


async def test_reading_back_is_retried_too(store: Flaky, time: Time) -> None:
    store.after = down()
    store.before_get = down(2)
    await retry(store, time).put("k", b"mine", if_absent=True)
    assert store.objects == {"k": b"mine"}
    assert store.before_get == []


async def test_a_listing_goes_on_where_it_broke_off(store: Flaky, time: Time) -> None:
    for key in "abcd":
        store.objects[key] = b"x"
    store.after = down(3)
    assert [entry.key async for entry in retry(store, time, deadline=1).list("")] == ["a", "b", "c", "d"]


async def test_progress_of_a_listing_renews_its_deadline(store: Flaky, time: Time) -> None:
    for number in range(30):
        store.objects[f"{number:02}"] = b"x"
    store.after = down(29)
    listed = [entry async for entry in retry(store, time, deadline=0.15).list("")]
    assert len(listed) == 30
    assert time.now > 1000.15


async def test_each_attempt_is_reported_and_an_answer_counts_as_success(store: Flaky, time: Time) -> None:
    results: list[bool] = []
    wrapped = retry(store, time, deadline=60, on_result=results.append)
    store.before = down(2)
    await wrapped.put("k", b"x")
    assert results == [False, False, True]
    with pytest.raises(ObjectNotFound):
        await wrapped.get("absent")
    with pytest.raises(ObjectExists):
        await wrapped.put("k", b"y", if_absent=True)
    assert results[3:] == [True, True]
    store.before = [AccessDenied("no")]
    with pytest.raises(AccessDenied):
        await wrapped.get("k")
    assert results[5:] == [False]


async def test_a_region_that_worked_is_waited_for_when_it_refuses(store: Flaky, time: Time) -> None:
    wrapped = retry(store, time)
    store.before = [AccessDenied("no")]
    with pytest.raises(AccessDenied):  # it never worked: the configuration is wrong
        await wrapped.put("k", b"x")
    await wrapped.put("k", b"x")
    store.before = [AccessDenied("expired"), AccessDenied("expired")]
    await wrapped.put("other", b"x")
    assert await wrapped.get("other") == b"x"


@pytest.mark.parametrize("if_absent", [True, False])
async def test_an_object_that_is_said_to_be_in_the_way_and_is_not_is_a_passing_fault(
    store: Flaky, time: Time, if_absent: bool
) -> None:
    store.before = [ObjectExists("taken")]
    await retry(store, time).put("k", b"mine", if_absent=if_absent)
    assert store.objects == {"k": b"mine"}


async def test_bytes_that_were_altered_on_their_way_are_read_again(store: Flaky, time: Time) -> None:
    store.objects["k"] = b"mine"
    store.before_get = [IntegrityError("altered"), IntegrityError("altered")]
    assert await retry(store, time).get("k") == b"mine"


async def test_bytes_that_are_altered_each_time_are_an_error(store: Flaky, time: Time) -> None:
    store.objects["k"] = b"mine"
    store.before_get = [IntegrityError("altered") for _ in range(3)]
    with pytest.raises(IntegrityError):
        await retry(store, time).get("k")


async def test_what_is_in_the_way_of_a_lost_answer_is_read_again_before_it_is_believed_altered(
    store: Flaky, time: Time
) -> None:
    store.after = down()
    store.before_get = [IntegrityError("the object does not match the checksum kept with it")]
    await retry(store, time).put("k", b"x", if_absent=True)
    assert store.objects == {"k": b"x"}
