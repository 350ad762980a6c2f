"""Roll-ups of the manifest log: a thousand manifests in one object, each line verbatim as it is stored.

In and out: bytes. A roll-up needs no signature of its own: every line carries one, and the chain binds them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader, RawIOBase
from typing import cast

import zstandard

from archiver.errors import IntegrityError
from archiver.format.manifest import MAX_BYTES
from archiver.format.seal import MAX_WINDOW_BYTES

ROLLUP = 1000
_PIECE_BYTES = 1 << 16


def pack(manifests: Sequence[bytes]) -> bytes:
    return zstandard.ZstdCompressor(level=9).compress(b"\n".join(manifests))


def unpack(data: bytes, count: int) -> Iterator[bytes]:
    """The manifests of a roll-up of so many, one at a time, still to be verified. Raises IntegrityError.

    Nothing vouches for a roll-up: who stops at the first line that is no manifest has spent no more than one takes.
    """
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(data)
    line, lines, left = b"", BufferedReader(cast("RawIOBase", reader), _PIECE_BYTES), 4 * MAX_BYTES
    try:
        for _ in range(count):
            line = lines.readline(min(left, MAX_BYTES) + 1)
            if len(line) > min(left, MAX_BYTES):
                raise _damaged("is larger than any that archiver writes")
            if not line:
                raise _damaged("holds less than its name says")
            left -= len(line)
            yield line.removesuffix(b"\n")
        if line.endswith(b"\n") or lines.read(1):
            raise _damaged("holds more than its name says")
    except zstandard.ZstdError as exc:
        raise _damaged(f"does not decompress: {exc}") from None


def _damaged(how: str) -> IntegrityError:
    return IntegrityError(f"a roll-up {how}", hint="Run archiver verify.")


class Spans:
    """Which roll-up to read next, by the first and last seq that their names say. Each is given once."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self._ahead = sorted(spans, reverse=True)
        self._reached: list[tuple[int, int]] = []

    def following(self, seq: int) -> tuple[int, int] | None:
        """Of those that go on right behind `seq`, the one that reaches furthest."""
        while self._ahead and self._ahead[-1][0] <= seq + 1:
            first, last = self._ahead.pop()
            heapq.heappush(self._reached, (-last, first))
        if not self._reached or -self._reached[0][0] <= seq:
            return None
        last, first = heapq.heappop(self._reached)
        return first, -last

    def ahead(self) -> tuple[int, int] | None:
        """The first of those that begin later, for a log whose beginning is gone."""
        return self._ahead.pop() if self._ahead else None
