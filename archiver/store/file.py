"""A region in a folder, for one machine.

In: keys and whole objects. Out: the same, as files under `root`, each there whole or not at all and on disk when
the call returns. Never follows a key out of `root`, nor a link below it (`root` itself may be one), never blocks the
event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from archiver.errors import (
    AccessDenied,
    ArchiverError,
    BucketNotFound,
    ForeignObject,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
)
from archiver.store.base import Entry, Limit, no_limit, require_within

T = TypeVar("T")

# Files being written; no key may have a segment that starts so, and listings leave them out.
TEMPORARY = ".tmp-"
PAGE = 1000
DEEPEST = 8  # segments of a key, of which archiver's have three: whoever makes deeper folders makes no objects

_CREATE = "Create the folder, or correct the region's url in the configuration."
_ALLOW = "Give the user that archiver runs as the right to read and write the folder."
_ELSEWHERE = "Run archiver verify; another region may hold it whole."
_UNLINKED = "Links below a region's folder are not followed: mount the disk there instead."
_SPACE = "Free space on that disk, or move the folder to a larger one."

_BY_ERRNO: dict[int, tuple[type[ArchiverError], str, str | None]] = {
    errno.ENOENT: (ObjectNotFound, "no such object", None),
    errno.EISDIR: (ObjectNotFound, "no such object", None),
    errno.ENOTDIR: (ObjectNotFound, "no such object", None),
    errno.EEXIST: (ObjectExists, "the object is already there", None),
    errno.EACCES: (AccessDenied, "the folder may not be used", _ALLOW),
    errno.EPERM: (AccessDenied, "the folder may not be used", _ALLOW),
    errno.EROFS: (AccessDenied, "the file system is read-only", _ALLOW),
    errno.ENOSPC: (StoreUnavailable, "the disk is full", _SPACE),
    errno.EDQUOT: (StoreUnavailable, "the disk quota is used up", _SPACE),
    errno.ENAMETOOLONG: (StoreError, "the key is too long for this file system", None),
    errno.EIO: (StoreUnavailable, "the disk failed", None),
}


class FileStore:
    """A Store in the folder `root`, which must exist; `name` is the region's name in the configuration.

    The file system must know hard links: they are what makes `if_absent` atomic.
    """

    def __init__(self, name: str, root: Path, *, limit: Limit = no_limit) -> None:
        self._name = name
        self._root = root
        self._limit = limit
        # Folders whose names are known to be on disk; one that is merely there may be another writer's, or a
        # crashed one's, and not yet synced.
        self._durable: set[Path] = set()

    @property
    def name(self) -> str:
        return self._name

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self._path(key)

        def write() -> None:
            self._require_no_link(key, path.parent)
            self._write(path, data, if_absent=if_absent)

        await self._run(key, write)

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        path = self._path(key)

        def read() -> bytes:
            self._require_no_link(key, path)
            found, where = path.stat(), f"{self._name}: {key}"
            if not stat.S_ISREG(found.st_mode) and not path.is_dir():  # to read a pipe would be to wait for ever
                raise ForeignObject("there is no file in the object's place", where=where, hint=_ELSEWHERE)
            require_within(self._limit(key) if most is None else most, found.st_size, where)
            return path.read_bytes()

        return await self._run(key, read)

    async def size(self, key: str) -> int | None:
        path = self._path(key)

        def measure() -> int | None:
            self._require_no_link(key, path.parent)
            found = path.lstat()
            return None if stat.S_ISDIR(found.st_mode) else found.st_size

        try:
            return await self._run(key, measure)
        except ObjectNotFound:
            return None

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        walk = self._walk("", prefix, start_after)
        while page := await self._run(prefix, lambda: list(islice(walk, PAGE))):
            for entry in page:
                yield entry

    async def delete(self, key: str) -> None:
        path = self._path(key)

        def remove() -> None:
            self._require_no_link(key, path.parent)
            _remove(path)

        with suppress(ObjectNotFound):
            await self._run(key, remove)

    async def check(self) -> None:
        """Write a temporary file and remove it: permission bits alone do not tell (read-only mounts, root)."""
        await self._run("", lambda: _probe(self._root))

    async def close(self) -> None:
        return

    async def _run(self, key: str, work: Callable[[], T]) -> T:
        def within_boundary() -> T:
            with self._boundary(key):
                self._root.stat()
                return work()

        return await asyncio.to_thread(within_boundary)

    @contextmanager
    def _boundary(self, key: str) -> Iterator[None]:
        """Let only errors of archiver.errors out."""
        where = f"{self._name}: {key or self._root}"
        try:
            yield
        except OSError as exc:
            if not self._root.is_dir() and exc.errno in {errno.ENOENT, errno.ENOTDIR}:
                raise BucketNotFound(f"no folder {self._root}", hint=_CREATE, where=where) from exc
            unknown = (StoreError, f"the folder cannot be used: {exc.strerror}", None)
            cls, message, hint = _BY_ERRNO.get(exc.errno or 0, unknown)
            raise cls(message, hint=hint, where=where) from exc

    def _path(self, key: str) -> Path:
        """Where `key` is kept. Raises IntegrityError for a key that is no plain relative path."""
        segments = key.split("/")
        is_plain = not any(s in {"", ".", ".."} or s.startswith(TEMPORARY) for s in segments)
        if "\0" in key or not is_plain or len(segments) > DEEPEST:
            raise IntegrityError(f"not a key: {key!r}", where=self._name)
        return self._root.joinpath(*segments)

    def _require_no_link(self, key: str, path: Path) -> None:
        """Raise ForeignObject where one stands in the way: it may lead anywhere, also back to where it stands."""
        for part in (path, *path.parents):
            if part == self._root:
                return
            if part.is_symlink():
                raise ForeignObject("a link stands in the way", where=f"{self._name}: {key}", hint=_UNLINKED)

    def _write(self, path: Path, data: bytes, *, if_absent: bool) -> None:
        self._make_folder(path.parent)
        temporary = path.parent / (TEMPORARY + secrets.token_hex(8))
        try:
            _write_through(temporary, data)
            if if_absent:
                os.link(temporary, path)
                temporary.unlink()
            else:
                temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)

    def _make_folder(self, folder: Path) -> None:
        """Create `folder` and what is missing above it, each name made durable in its parent."""
        if folder == self._root or (folder in self._durable and folder.is_dir()):
            return
        self._make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir()
        sync_folder(folder.parent)
        self._durable.add(folder)

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[Entry]:
        """Entries below `folder` ("" or ending in "/") in byte order, one folder's names in memory at a time.

        A folder sorts as its name with the slash, as its keys do; Python orders strings by code point, which is
        the byte order of their UTF-8. Neither links nor folders that are too deep for a key are entered.
        """
        for key in self._children(folder, prefix, start_after):
            if key.endswith("/"):
                yield from self._walk(key, prefix, start_after)
            elif key.startswith(prefix) and key > start_after:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    yield Entry(key, (self._root / key).lstat().st_size)

    def _children(self, folder: str, prefix: str, start_after: str) -> Sequence[str]:
        if folder.count("/") >= DEEPEST:
            return []
        try:
            with os.scandir(self._root / folder) as found:
                keys = [
                    folder + item.name + ("/" if item.is_dir(follow_symlinks=False) else "")
                    for item in found
                    if not item.name.startswith(TEMPORARY)
                ]
        except FileNotFoundError:
            if not folder:
                raise
            return []
        return sorted(key for key in keys if _may_hold(key, prefix, start_after))


def _may_hold(key: str, prefix: str, start_after: str) -> bool:
    """Whether `key`, or for a folder a key below it, may start with `prefix` and sort after `start_after`."""
    if not key.endswith("/"):
        return key.startswith(prefix) and key > start_after
    under_prefix = key.startswith(prefix) or prefix.startswith(key)
    return under_prefix and (key > start_after or start_after.startswith(key))


def _write_through(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    path.unlink()
    sync_folder(path.parent)


def _probe(root: Path) -> None:
    probe = root / (TEMPORARY + secrets.token_hex(8))
    _write_through(probe, b"")
    probe.unlink()
