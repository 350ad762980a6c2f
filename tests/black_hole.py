"""A TCP proxy that can stop forwarding without closing anything, as a network does that loses all packets. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib

from tests.loop_thread import LoopThread


class BlackHole(LoopThread):
    """Forwards to a port of 127.0.0.1. After `swallow` what is connected stays so, and nothing passes; new ones work."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._upstream = port
        self._era = 0

    def swallow(self) -> None:
        self._era += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._upstream)
            era = self._era
            await asyncio.gather(self._pass(reader, back, era), self._pass(there, writer, era))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, era: int) -> None:
        while data := await reader.read(1 << 16):
            if era != self._era:
                await asyncio.Event().wait()  # for ever, with both ends open
            writer.write(data)
            await writer.drain()
        if era != self._era:
            await asyncio.Event().wait()
        writer.close()
