"""A queue of raw messages that keeps a bounded part in memory and the rest in a file it is handed.

Messages go in, the same messages come out in the same order, as often as asked. It opens no file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from archiver.errors import IntegrityError

_BLOCK: Final = 1 << 20
_PREFIX: Final = 4  # bytes of length before each message in the file
_OVERHEAD: Final = 48  # of a bytes object in CPython, with its place in a list


class SpoolFile(Protocol):
    """What is needed of an anonymous temporary file, for example tempfile.TemporaryFile()."""

    def write(self, data: bytes, /) -> int: ...
    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def close(self) -> None: ...


SpoolFactory = Callable[[], SpoolFile]


class MessageSpool:
    """Appends and iterates; `held` is the memory in use."""

    __slots__ = ("_factory", "_file", "_messages", "held")

    def __init__(self, factory: SpoolFactory) -> None:
        self._factory = factory
        self._file: SpoolFile | None = None
        self._messages: list[bytes] = []
        self.held = 0

    def append(self, message: bytes) -> int:
        """Returns by how much the memory in use changed: below zero when it went to the file."""
        self._messages.append(message)
        grown = len(message) + _OVERHEAD
        self.held += grown
        if self._file is not None and self.held > _BLOCK:
            grown -= self.held
            self.spill()
        return grown

    def spill(self) -> None:
        """Write what memory holds to the file."""
        if self._file is None:
            self._file = self._factory()
        self._file.seek(0, 2)
        for message in self._messages:
            self._file.write(len(message).to_bytes(_PREFIX, "big"))
            self._file.write(message)
        self._messages.clear()
        self.held = 0

    def __iter__(self) -> Iterator[bytes]:
        if self._file is not None:
            yield from _read(self._file)
        yield from self._messages

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._messages = []
        self.held = 0


def _read(file: SpoolFile) -> Iterator[bytes]:
    """Split the file into messages. Reads by block and by position, so that appending meanwhile is safe.

    A message that is larger than a block is read for itself: time is linear in it, and there is no other copy.
    """
    position = 0
    while block := _read_at(file, position, _BLOCK):
        messages, used = _split(block)
        if not used:
            size = int.from_bytes(block[:_PREFIX], "big")
            messages, used = [_read_at(file, position + _PREFIX, size)], _PREFIX + size
            if len(block) < _PREFIX or len(messages[0]) < size:
                raise IntegrityError("a spool file was cut short", hint="Free space for temporary files and try again.")
        position += used
        yield from messages


def _read_at(file: SpoolFile, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def _split(data: bytes) -> tuple[list[bytes], int]:
    """The whole messages that a block begins with, and how many bytes of it they are."""
    messages, at = [], 0
    while (start := at + _PREFIX) <= len(data):
        end = start + int.from_bytes(data[at:start], "big")
        if end > len(data):
            break
        messages.append(data[start:end])
        at = end
    return messages, at
