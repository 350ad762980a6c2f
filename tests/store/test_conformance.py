"""What every store keeps to, whatever it is made of: the docstrings of archiver/store/base.py, clause by clause."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from archiver.errors import ForeignObject, ObjectExists, ObjectNotFound
from archiver.store.base import Store
from archiver.store.file import FileStore
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from archiver.store.retry import Retry
from archiver.store.s3 import S3Store
from tests.fix_servers import s3_store

MiB = 1 << 20
_number = itertools.count()


def _memory(_: pytest.FixtureRequest) -> Store:
    return MemoryStore("region")


def _file(request: pytest.FixtureRequest) -> Store:
    return FileStore("region", request.getfixturevalue("tmp_path"))


def _s3(server: str, pick: Callable[..., object] = lambda server: server) -> Callable[..., S3Store]:
    def make(request: pytest.FixtureRequest) -> S3Store:
        chosen = pick(request.getfixturevalue(server))
        bucket = f"conformance-{next(_number)}"
        chosen.create_bucket(bucket)  # type: ignore[attr-defined]
        return s3_store(chosen, bucket, "some/prefix/")  # type: ignore[arg-type]

    return make


STORES: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "memory": _memory,
    "file": _file,
    "s3 over http": _s3("s3_servers", lambda servers: servers[0]),
    "s3 over https": _s3("s3_tls_server"),
    "retry": lambda request: Retry(_memory(request), deadline=timedelta(seconds=1)),
    "mirror": lambda _: Mirror([MemoryStore("one"), MemoryStore("two")]),
}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    made = STORES[request.param](request)
    yield made
    await made.close()


async def keys(store: Store, prefix: str = "", **options: str) -> list[str]:
    return [entry.key async for entry in store.list(prefix, **options)]


async def test_what_was_put_is_got_back_byte_for_byte(store: Store) -> None:
    data = bytes(range(256)) * 3
    await store.put("segments/1.seg", data)
    assert await store.get("segments/1.seg") == data
    assert await store.size("segments/1.seg") == len(data)


async def test_a_second_put_replaces_the_object(store: Store) -> None:
    await store.put("k", b"first, and longer")
    await store.put("k", b"second")
    assert await store.get("k") == b"second"
    assert await store.size("k") == 6


async def test_an_empty_object_is_an_object(store: Store) -> None:
    await store.put("empty", b"")
    assert await store.get("empty") == b""
    assert await store.size("empty") == 0
    assert await keys(store) == ["empty"]
    with pytest.raises(ObjectExists):
        await store.put("empty", b"other", if_absent=True)


async def test_an_object_of_20_mib_survives_the_round_trip(store: Store) -> None:
    data = random.Random(20).randbytes(20 * MiB)
    await store.put("large", data)
    assert await store.get("large") == data
    assert await store.size("large") == 20 * MiB


async def test_a_missing_object_is_named_with_its_region(store: Store) -> None:
    with pytest.raises(ObjectNotFound) as caught:
        await store.get("manifests/7.json")
    assert caught.value.where is not None
    assert "manifests/7.json" in caught.value.where
    assert not caught.value.transient


async def test_an_object_with_more_bytes_than_it_may_have_is_not_read(store: Store) -> None:
    await store.put("k", b"12345")
    assert await store.get("k", most=5) == b"12345"
    with pytest.raises(ForeignObject, match="larger than it may be: 5 bytes, not 4 at most") as caught:
        await store.get("k", most=4)
    assert "k" in (caught.value.where or "")


async def test_a_missing_object_has_no_size(store: Store) -> None:
    assert await store.size("manifests/7.json") is None


async def test_a_name_that_only_begins_alike_is_another_object(store: Store) -> None:
    await store.put("folder/object", b"x")
    assert await store.size("folder") is None
    assert await store.size("folder/obj") is None
    with pytest.raises(ObjectNotFound):
        await store.get("folder")


async def test_if_absent_writes_where_nothing_is(store: Store) -> None:
    await store.put("k", b"mine", if_absent=True)
    assert await store.get("k") == b"mine"


async def test_if_absent_leaves_what_is_there(store: Store) -> None:
    await store.put("k", b"theirs")
    with pytest.raises(ObjectExists) as caught:
        await store.put("k", b"mine", if_absent=True)
    assert "k" in (caught.value.where or "")
    assert await store.get("k") == b"theirs"


async def test_if_absent_after_a_deletion_writes(store: Store) -> None:
    await store.put("k", b"old")
    await store.delete("k")
    await store.put("k", b"new", if_absent=True)
    assert await store.get("k") == b"new"


@pytest.mark.parametrize("equal", [False, True])
async def test_of_many_writers_at_once_exactly_one_wins(store: Store, equal: bool) -> None:
    bodies = [b"the same" if equal else b"writer %d" % number for number in range(3)]
    puts = (store.put("manifests/1.json", body, if_absent=True) for body in bodies)
    results = await asyncio.gather(*puts, return_exceptions=True)
    if equal and isinstance(store, Mirror):
        assert results == [None] * 3  # a mirror cannot tell equal bytes from its own write cut short
        return
    winners = [body for body, result in zip(bodies, results, strict=True) if result is None]
    assert len(winners) == 1
    assert all(isinstance(result, ObjectExists) for result in results if result is not None)
    assert await store.get("manifests/1.json") == winners[0]


async def test_a_deleted_object_is_gone(store: Store) -> None:
    await store.put("a/k", b"x")
    await store.put("a/l", b"y")
    await store.delete("a/k")
    assert await store.size("a/k") is None
    assert await keys(store) == ["a/l"]


async def test_deleting_what_is_not_there_is_no_error(store: Store) -> None:
    await store.delete("never/was")


async def test_a_listing_has_keys_and_sizes_in_byte_order(store: Store) -> None:
    names = ["b/2", "b/10", "b/Z", "a/x", "b/a", "b/\N{GREEK SMALL LETTER ALPHA}", "b/_", "c"]
    for number, name in enumerate(names):
        await store.put(name, b"." * number)
    listed = [(entry.key, entry.size) async for entry in store.list("")]
    assert listed == sorted(((name, number) for number, name in enumerate(names)), key=lambda entry: entry[0].encode())


async def test_a_listing_keeps_to_its_prefix_which_need_not_end_at_a_slash(store: Store) -> None:
    for name in ["manifests/01", "manifests/02", "manifests/11", "keys/k", "manifest"]:
        await store.put(name, b"x")
    assert await keys(store, "manifests/") == ["manifests/01", "manifests/02", "manifests/11"]
    assert await keys(store, "manifests/0") == ["manifests/01", "manifests/02"]
    assert await keys(store, "ke") == ["keys/k"]
    assert await keys(store, "nothing/") == []


async def test_a_listing_starts_after_a_key_that_need_not_exist(store: Store) -> None:
    for name in ["l/1", "l/2", "l/4", "m/1"]:
        await store.put(name, b"x")
    assert await keys(store, "l/", start_after="l/1") == ["l/2", "l/4"]
    assert await keys(store, "l/", start_after="l/3") == ["l/4"]
    assert await keys(store, "l/", start_after="l/4") == []
    assert await keys(store, "l/", start_after="a") == ["l/1", "l/2", "l/4"]
    assert await keys(store, "l/", start_after="z") == []
    assert await keys(store, "", start_after="l/4") == ["m/1"]


async def test_a_listing_goes_on_past_a_thousand_objects(store: Store) -> None:
    names = [f"manifests/{number:020d}.json" for number in range(1100)]
    for start in range(0, len(names), 50):
        await asyncio.gather(*(store.put(name, b"x") for name in names[start : start + 50]))
    assert await keys(store, "manifests/") == names
    assert await keys(store, "manifests/", start_after=names[49]) == names[50:]


# No backslash: SeaweedFS takes it for a slash.
@pytest.mark.parametrize(
    "key",
    [
        "with space/and+plus",
        "percent%2Fencoded%",
        "quotes'\"&<>;?#=@",
        "\N{SNOWMAN}/\N{LATIN SMALL LETTER E WITH ACUTE}",
        "tilde~(parens)*!",
        "x" * 200,
        "..dots/...",
    ],
)
async def test_an_odd_key_is_a_key(store: Store, key: str) -> None:
    await store.put(key, b"odd")
    assert await store.get(key) == b"odd"
    assert await store.size(key) == 3
    assert await keys(store, key) == [key]
    await store.delete(key)
    assert await keys(store) == []


async def test_check_accepts_a_store_that_is_there(store: Store) -> None:
    await store.check()


async def test_close_can_follow_no_use_at_all(store: Store) -> None:
    await store.close()
