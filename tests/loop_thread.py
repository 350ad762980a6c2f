"""A server on an event loop in a thread of its own, for tests whose own loop may be busy. Loopback only."""

from __future__ import annotations

import asyncio
import threading
from typing import Self

from archiver.embedded.process import free_ports


class LoopThread:
    """A context; a subclass says how one connection is served."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._serving: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._keep, "127.0.0.1", self.port, limit=1 << 20)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(20)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Nobody else refers to the task of a connection: it could be collected while it waits."""
        task = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _close(self) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
