"""The walsender's other end: one logical replication stream over psycopg's `pgconn`.

psycopg has no replication API; what this needs of libpq is START_REPLICATION as text, then `get_copy_data` without
waiting. Frames are handed on as they came; what they mean is policy/stream.py's. Nothing is confirmed here
but what the caller says is durable.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import pq

from archiver.errors import PostgresUnavailable, StreamBroken
from archiver.lsn import Lsn
from archiver.postgres.replication_slot import SystemIdentity, identify_system
from archiver.postgres.server_words import message_of
from archiver.postgres.session import connect, is_lasting, postgres_error

GATHER_SECONDS = 0.005  # fewer, larger reads: a reader that wakes for every arrival takes five times the CPU
MAX_RECEIVE_BYTES = 1 << 20  # then the event loop gets its turn
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_STATUS = struct.Struct(">cQQQq?")  # written, flushed, applied, clock, reply wanted
_START = (
    "START_REPLICATION SLOT {slot} LOGICAL {lsn}"
    " (proto_version '2', publication_names {publications}, streaming '{streaming}')"
)
"""Without logical messages: anybody may write those, of any size."""


class ReplicationStream:
    """An open COPY BOTH. Use `start`; `close` ends the connection without ceremony. `system`: who sends."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], system: SystemIdentity) -> None:
        self.system = system
        self._conn = conn
        self._pgconn = conn.pgconn
        self._readable = asyncio.Event()
        self._write_lock = asyncio.Lock()
        self._given_up: str | None = None
        self._ended: PostgresUnavailable | None = None
        self._fileno: int | None = None

    @classmethod
    async def start(
        cls, dsn: str, slot: str, publication: str, lsn: Lsn, *, in_progress: bool = True
    ) -> ReplicationStream:
        """Connect and stream from `lsn`, or from what the slot has confirmed if that is later.

        `in_progress`: large transactions are sent before they are committed; otherwise the server's disk holds them.
        """
        conn = await connect(dsn, purpose="capture", replication=True)
        try:
            stream = cls(conn, await identify_system(conn))
        except BaseException:
            await conn.close()
            raise
        try:
            await stream._start(slot, publication, lsn, "on" if in_progress else "off")
        except BaseException:
            await stream.close()
            raise
        return stream

    async def _start(self, slot: str, publication: str, lsn: Lsn, streaming: str) -> None:
        quoted = '"' + publication.replace('"', '""') + '"'
        literal = "'" + quoted.replace("'", "''") + "'"
        query = _START.format(slot=f'"{slot}"', lsn=lsn, publications=literal, streaming=streaming)
        self._fileno = self._pgconn.socket
        asyncio.get_running_loop().add_reader(self._fileno, self._readable.set)
        with self._errors():
            self._pgconn.send_query(query.encode())
            await self._flush()
            while self._pgconn.is_busy():
                await self._wait_readable(1.0)
                self._pgconn.consume_input()
            result = self._pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise _refused(result, slot)

    async def receive(self, patience: float) -> list[bytes]:
        """CopyData payloads that have arrived, after at most `patience` seconds: perhaps none.

        Raises StreamBroken when the server ends the stream with an error, after all that came before it;
        PostgresUnavailable when it ends it without one, or the connection breaks.
        """
        with self._errors():
            frames = self._drain()
            if not frames:
                await self._wait_readable(patience)
                await asyncio.sleep(GATHER_SECONDS)
                frames = self._drain()
            return frames

    def give_up(self, why: str) -> None:
        """End a connection that the server will not end: `receive` and `send_status` raise PostgresUnavailable."""
        self._given_up = why
        self._readable.set()

    def _require_wanted(self) -> None:
        if self._given_up:
            raise PostgresUnavailable(self._given_up)

    def _drain(self) -> list[bytes]:
        self._require_wanted()
        if self._ended is not None:
            raise self._ended
        frames: list[bytes] = []
        take = frames.append
        get = self._pgconn.get_copy_data
        size = 0
        fresh = False
        while size < MAX_RECEIVE_BYTES:
            count, data = get(1)
            if count > 0:
                take(bytes(data))
                del data  # libpq's copy of it goes now, and not with the next one
                size += count
                fresh = False
            elif count == 0 and not fresh:
                self._pgconn.consume_input()
                fresh = True
            elif count == 0:
                self._readable.clear()
                break
            else:
                self._ended = self._end()
                break
        if self._ended is not None and not frames:
            raise self._ended
        return frames

    async def send_status(self, written: Lsn, flushed: Lsn) -> None:
        """Report progress and ask for the server's position. `flushed` must be durable in the archive."""
        if self._ended is not None:  # nobody listens any more
            return
        self._require_wanted()
        clock = int((datetime.now(UTC) - _EPOCH).total_seconds() * 1_000_000)
        message = _STATUS.pack(b"r", written, flushed, flushed, clock, True)
        async with self._write_lock:
            with self._errors():
                self._pgconn.put_copy_data(message)
                await self._flush()

    async def close(self) -> None:
        self._stop_reading()
        await self._conn.close()

    def _stop_reading(self) -> None:
        """Once libpq has closed the socket its number may be another's: the event loop must know by then."""
        if self._fileno is not None:
            asyncio.get_running_loop().remove_reader(self._fileno)
            self._fileno = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as exc:
            self._stop_reading()
            raise postgres_error(exc) from exc

    async def _flush(self) -> None:
        while self._pgconn.flush():
            await _writable(self._pgconn.socket)

    async def _wait_readable(self, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await self._readable.wait()
        except TimeoutError:
            pass
        self._readable.clear()

    def _end(self) -> PostgresUnavailable:
        result = self._pgconn.get_result()
        error = psycopg.errors.error_from_result(result) if result and result.error_message else None
        said = f"the server ended the replication stream: {message_of(error) if error else 'no reason given'}"
        if error is None or error.sqlstate is None or error.diag.severity_nonlocalized != "ERROR":
            return PostgresUnavailable(said)  # FATAL: the server, or its walsender, is being ended
        return StreamBroken(said, state=error.sqlstate, lasting=is_lasting(error.sqlstate))


async def _writable(fileno: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fileno, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fileno)


def _refused(result: pq.abc.PGresult | None, slot: str) -> Exception:
    if result is None:
        return PostgresUnavailable("the server closed the connection", where=f"slot {slot}")
    return postgres_error(psycopg.errors.error_from_result(result), where=f"slot {slot}")
