"""A TCP proxy that can stop forwarding without closing anything, as a network does that loses all packets. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self

from archiver.embedded.process import free_ports


class BlackHole:
    """Forwards to a port of 127.0.0.1. After `swallow` what is connected stays so, and nothing passes; new ones work."""

    def __init__(self, port: int) -> None:
        self.port = free_ports(1)[0]
        self._upstream = port
        self._era = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def swallow(self) -> None:
        self._era += 1

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        asyncio.run_coroutine_threadsafe(serving, self._loop).result(20)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    async def _close(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
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
