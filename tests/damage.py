"""What can happen to an object in a region."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def damage(how: str, path: Path, other: Path) -> None:
    """Alter, cut, swap or delete an object in one region."""
    actions: dict[str, Callable[[], object]] = {
        "altered": lambda: path.write_bytes(flip(path.read_bytes())),
        "cut": lambda: path.write_bytes(path.read_bytes()[:-1]),
        "swapped": lambda: path.write_bytes(other.read_bytes()),
        "deleted": path.unlink,
    }
    path.chmod(0o600)
    actions[how]()


HOWS = ("altered", "cut", "swapped", "deleted")


@contextmanager
def nested(folder: Path, depth: int = 1200) -> Iterator[None]:
    """Folders within folders, more of them than Python calls within calls: shutil.rmtree would not get rid of them."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("x", dir_fd=here)
        below = os.open("x", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        yield
    finally:
        subprocess.run(["rm", "-r", folder / "x"], check=True)
