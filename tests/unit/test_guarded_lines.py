"""Lines of COPY's text, whose chunks may end anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator

from archiver.postgres.users_code import lines_of


async def chunks(text: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


async def test_lines_are_whole_wherever_chunks_end() -> None:
    text = b"a\t1\n\n" + b"b" * 20 + b"\nc\n"
    for size in range(1, len(text) + 1):
        found = [line async for lines in lines_of(chunks(text, size)) for line in lines]
        assert found == [b"a\t1", b"", b"b" * 20, b"c"]
