"""What only a folder can get wrong: paths, half-written files, full disks."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from archiver.errors import AccessDenied, BucketNotFound, ForeignObject, IntegrityError, StoreUnavailable
from archiver.store import file
from archiver.store.file import FileStore
from tests.damage import nested


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore("disk", tmp_path)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def fail_with(number: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


async def test_a_missing_folder_is_a_missing_bucket_for_every_call(tmp_path: Path) -> None:
    store = FileStore("disk", tmp_path / "absent")
    for call in (store.check(), store.put("k", b"x"), store.get("k"), store.size("k"), store.delete("k")):
        with pytest.raises(BucketNotFound) as caught:
            await call
        assert caught.value.hint
    with pytest.raises(BucketNotFound):
        [entry async for entry in store.list("")]
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("key", ["../up", "a/../../up", "/etc/passwd", "", "a//b", "a/", ".", "nul\0", "a/.tmp-1"])
async def test_a_key_that_leaves_the_folder_or_is_no_path_is_refused(store: FileStore, key: str) -> None:
    for call in (store.put(key, b"x"), store.get(key), store.size(key), store.delete(key)):
        with pytest.raises(IntegrityError):
            await call


async def test_a_pipe_in_the_place_of_an_object_is_not_waited_for(store: FileStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "k")
    with pytest.raises(ForeignObject, match="no file"):
        await asyncio.wait_for(store.get("k"), 5)


async def test_folders_deeper_than_any_key_are_not_entered(store: FileStore, tmp_path: Path) -> None:
    names = ["a/k", "/".join("abcdefg") + "/k"]
    for name in names:
        await store.put(name, b"x")
    with nested(tmp_path / "a"):
        assert [entry.key async for entry in store.list("a")] == sorted(names)
    with pytest.raises(IntegrityError, match="not a key"):
        await store.put("/".join("abcdefgh") + "/k", b"x")


async def test_links_are_not_followed_unless_the_folder_itself_is_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "k").write_bytes(b"secret")
    root = tmp_path / "link"
    root.symlink_to("real")
    store = FileStore("disk", root)
    await store.put("a/k", b"x")
    for number in range(30):  # a walk that follows them takes 30 ways, at each of 40 steps
        (root / "a" / f"{number}").symlink_to(".")
    (root / "b").symlink_to(tmp_path / "outside")
    (root / "file").symlink_to(tmp_path / "outside" / "k")
    assert [entry.key async for entry in store.list("a/") if entry.key.endswith("k")] == ["a/k"]
    assert [entry.key async for entry in store.list("b/")] == []
    assert await store.get("a/k") == b"x"
    for call in (store.get("b/k"), store.size("b/k"), store.put("b/l", b"x"), store.delete("b/k"), store.get("file")):
        with pytest.raises(ForeignObject, match="link"):
            await call
    await store.put("file", b"ours")
    assert await store.get("file") == b"ours"
    assert files(tmp_path / "outside") == ["k"]
    assert (tmp_path / "outside" / "k").read_bytes() == b"secret"


async def test_a_full_disk_is_told_and_leaves_nothing_behind(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", b"old")
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(StoreUnavailable, match="disk is full") as caught:
        await store.put("k", b"new")
    assert caught.value.hint
    monkeypatch.undo()
    assert files(tmp_path) == ["k"]
    assert await store.get("k") == b"old"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
async def test_a_folder_that_may_not_be_written_is_access_denied(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(file, "_write_through", fail_with(number))
    for call in (store.put("k", b"x"), store.check()):
        with pytest.raises(AccessDenied) as caught:
            await call
        assert caught.value.hint


async def test_a_file_half_written_is_no_object(store: FileStore, tmp_path: Path) -> None:
    await store.put("a/k", b"x")
    (tmp_path / "a" / ".tmp-crashed").write_bytes(b"half")
    assert [entry.key async for entry in store.list("")] == ["a/k"]


async def test_a_put_leaves_only_the_object(store: FileStore, tmp_path: Path) -> None:
    await store.put("a/b/k", b"x")
    await store.put("a/b/l", b"x", if_absent=True)
    await store.check()
    assert files(tmp_path) == ["a/b/k", "a/b/l"]


async def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_answer(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, files(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    await store.put("a/k", b"x")
    (new_folder, _), (temporary, before), (folder, after) = synced
    assert new_folder == tmp_path.name
    assert temporary.startswith(".tmp-")
    assert before == [f"a/{temporary}"]
    assert (folder, after) == ("a", ["a/k"])


async def test_folders_sort_with_their_slash(store: FileStore) -> None:
    names = ["d-1", "d.2", "d/-", "d/x", "d0"]
    for name in reversed(names):
        await store.put(name, b"x")
    assert [entry.key async for entry in store.list("")] == names
    assert [entry.key async for entry in store.list("", start_after="d.2")] == names[2:]
    assert [entry.key async for entry in store.list("d", start_after="d/-")] == names[3:]


async def test_a_listing_reads_only_folders_that_can_hold_its_keys(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["keys/1", "manifests/1", "segments/1"]:
        await store.put(name, b"x")
    read: list[str] = []
    scandir = os.scandir

    def note(folder: Path) -> object:
        read.append(folder.name)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", note)
    assert [entry.key async for entry in store.list("manifests/")] == ["manifests/1"]
    assert read[1:] == ["manifests"]
    assert [entry.key async for entry in store.list("", start_after="manifests/1")] == ["segments/1"]
    assert read[3:] == ["manifests", "segments"]
