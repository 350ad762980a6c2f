"""A proxy between a daemon and a real S3 server, which does to requests what networks and servers do. Loopback only.

Each request meets one of `faults`, or none. Requests that pass keep their headers, so that their signatures hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.loop_thread import LoopThread

SLOW_BYTES = 4 << 10  # in each twentieth of a second
LATE_SECONDS = 1.0


@dataclass
class Message:
    """A request or an answer: `head` is its first lines as they came."""

    head: bytes
    body: bytes

    @property
    def fields(self) -> dict[str, str]:
        lines = (line.partition(":") for line in self.head.decode("latin-1").split("\r\n")[1:])
        return {name.lower(): value.strip() for name, _, value in lines}

    @property
    def data(self) -> bytes:
        return self.head + self.body


@dataclass
class Exchange:
    """One request of a client; `ask` passes it on and gives the server's answer."""

    request: Message
    ask: Callable[[Message], Awaitable[Message]]
    chance: random.Random
    writer: asyncio.StreamWriter

    async def answer(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def hang_up(self) -> None:
        self.writer.close()


Fault = Callable[[Exchange], Awaitable[None]]


async def passed(exchange: Exchange) -> None:
    await exchange.answer((await exchange.ask(exchange.request)).data)


def refused(status: int, code: str) -> Fault:
    """The server answers so, and does nothing."""

    async def fault(exchange: Exchange) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()
        if exchange.request.head.startswith(b"HEAD"):
            body = b""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        await exchange.answer(head.encode() + body)

    return fault


async def untrue_412(exchange: Exchange) -> None:
    """An object is said to be there before it is written."""
    put = exchange.request.head.startswith(b"PUT")
    await (refused(412, "PreconditionFailed") if put else passed)(exchange)


async def lost_answer(exchange: Exchange) -> None:
    """The server did it; nobody learns that."""
    await exchange.ask(exchange.request)
    exchange.hang_up()


async def lost_request(exchange: Exchange) -> None:
    exchange.hang_up()


async def late(exchange: Exchange) -> None:
    await asyncio.sleep(LATE_SECONDS)
    await passed(exchange)


async def slow(exchange: Exchange) -> None:
    data = (await exchange.ask(exchange.request)).data
    await asyncio.sleep(len(exchange.request.body) / SLOW_BYTES / 20)
    for start in range(0, len(data), SLOW_BYTES):
        await exchange.answer(data[start : start + SLOW_BYTES])
        await asyncio.sleep(0.05)


async def cut_answer(exchange: Exchange) -> None:
    data = (await exchange.ask(exchange.request)).data
    await exchange.answer(data[: exchange.chance.randrange(1, len(data))])
    exchange.hang_up()


async def flipped_upload(exchange: Exchange) -> None:
    exchange.request.body = _flipped(exchange.request.body, exchange.chance)
    await passed(exchange)


async def flipped_download(exchange: Exchange) -> None:
    """Only of an object: a listing bears no checksum, and what it might name is not there."""
    answer = await exchange.ask(exchange.request)
    if exchange.request.head.startswith(b"GET") and b"?" not in exchange.request.head.split(b" ")[1]:
        answer.body = _flipped(answer.body, exchange.chance)
    await exchange.answer(answer.data)


def _flipped(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


FAULTS: Mapping[str, Fault] = {
    "500": refused(500, "InternalError"),
    "503": refused(503, "SlowDown"),
    "412": untrue_412,
    "409": refused(409, "ConditionalRequestConflict"),
    "403": refused(403, "AccessDenied"),
    "lost_answer": lost_answer,
    "lost_request": lost_request,
    "late": late,
    "slow": slow,
    "cut_answer": cut_answer,
    "flipped_upload": flipped_upload,
    "flipped_download": flipped_download,
}


class FaultProxy(LoopThread):
    """Listens on a port of its own for `upstream` (http://host:port).

    `faults`: how likely a request meets each. `happened` counts them.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.upstream = upstream
        self.faults: dict[str, float] = {}
        self.happened: Counter[str] = Counter()
        self._chance = random.Random(self.port)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # either side is free to go
            while not writer.is_closing():
                request = await _read_request(reader, writer)
                await self._choose()(Exchange(request, self._ask, self._chance, writer))
        writer.close()

    def _choose(self) -> Fault:
        for name, likely in list(self.faults.items()):
            if self._chance.random() < likely:
                self.happened[name] += 1
                return FAULTS[name]
        return passed

    async def _ask(self, request: Message) -> Message:
        address = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(request.data)
            await writer.drain()
            return await _read(reader, bodiless=request.head.startswith(b"HEAD"))
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message:
    head = await reader.readuntil(b"\r\n\r\n")
    expectation = b"\r\nexpect: 100-continue"
    if (at := head.lower().find(expectation)) >= 0:
        head = head[:at] + head[at + len(expectation) :]
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return Message(head, await _read_body(reader, Message(head, b"").fields))


async def _read(reader: asyncio.StreamReader, *, bodiless: bool) -> Message:
    answer = Message(await reader.readuntil(b"\r\n\r\n"), b"")
    if not bodiless and answer.head.split(b" ")[1] not in {b"204", b"304"}:
        answer.body = await _read_body(reader, answer.fields)
    return answer


async def _read_body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding") == "chunked":
        return await _read_chunks(reader)
    return await reader.readexactly(int(fields.get("content-length", "0")))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """As they came, with their lengths."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(line.split(b";")[0], 16) + 2)
        body += line + chunk
        if len(chunk) == 2:
            return body
