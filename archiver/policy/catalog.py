"""Roll-ups of the manifest log: a thousand manifests in one object, each line verbatim as it is stored.

In and out: bytes. A roll-up needs no signature of its own: every line carries one, and the chain binds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import zstandard

from archiver.errors import IntegrityError
from archiver.format.manifest import MAX_BYTES
from archiver.format.seal import MAX_WINDOW_BYTES

ROLLUP = 1000


def pack(manifests: Sequence[bytes]) -> bytes:
    return zstandard.ZstdCompressor(level=9).compress(b"\n".join(manifests))


def unpack(data: bytes) -> list[bytes]:
    """The manifests of one roll-up, still to be verified. Raises IntegrityError."""
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(data)
    limit = 4 * MAX_BYTES
    try:
        content = reader.read(limit + 1)
    except zstandard.ZstdError as exc:
        raise IntegrityError(f"a roll-up does not decompress: {exc}", hint="Run archiver verify.") from None
    if len(content) > limit:
        raise IntegrityError("a roll-up is larger than any that archiver writes", hint="Run archiver verify.")
    return content.split(b"\n")
