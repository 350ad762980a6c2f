"""A server as a child process in a folder of its own.

In: what to run and how to ask whether it answers, from a subclass. Out: start, stop, kill, close, and a context
that does both ends. Leaves no process and no folder behind, however this process ends. Knows no server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from archiver.child_environment import server_environment
from archiver.errors import ArchiverError

START_LIMIT = 60.0
NEW_PORTS = 3  # attempts to start a new server
STOP_LIMIT = 20.0
POLL = 0.02
LOG_TAIL = 15
INSTALL = "Install the embedded parts: pip install 'pg-archiver[embedded]'"

# Waits on a pipe that only this process holds open. However this process ends, kill -9 included, the pipe closes,
# and the server and its folder go. PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the child
# ends, which for asyncio.to_thread is any time, and it needs code between fork and exec in a threaded process.
_LIFELINE = """
read -r _
kill -"$1" "$2"
n=0; while kill -0 "$2" 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
kill -KILL "$2" 2>/dev/null
rm -rf "$3"
"""


class Server:
    """A child process in a temporary folder: started, awaited, stopped, killed, restarted, removed."""

    label = "server"
    # How the lifeline ends the server, and how `stop` does.
    last_signal = "KILL"
    error: type[ArchiverError] = ArchiverError

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The server's folder; it exists from the first start to `close`."""
        if self._folder is None:
            raise self.error(f"the {self.label} was not started")
        return self._folder

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process and running else None

    def start(self) -> None:
        """Start, on the same port and data if there are any, and return when requests are answered."""
        with self._lock:
            if self.pid:
                return
            if self._folder is not None:
                self._start(new=False)
                return
            for attempt in range(NEW_PORTS):
                try:
                    self._start(new=True)
                except self.error:
                    if attempt == NEW_PORTS - 1:
                        raise
                    self._choose_ports()  # another process may have taken one meanwhile
                else:
                    return

    def _start(self, *, new: bool) -> None:
        try:
            if new:
                self._folder = _temporary_folder()
                self._create()
            self._launch()
            self._await_ready()
        except BaseException:
            self.close() if new else self.kill()
            raise

    def kill(self) -> None:
        """End the server at once, as a crash would; data stays for `start`."""
        with self._lock:
            self._end(signal.SIGKILL)

    def close(self) -> None:
        """End the server if it runs, and remove all it kept."""
        with self._lock:
            self.kill()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    async def __aenter__(self) -> Self:
        try:
            await to_the_end(self.start)
        except BaseException:
            await to_the_end(self.close)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await to_the_end(self.close)

    def _choose_ports(self) -> None:
        """Others than before, for a server that has never run."""

    def _create(self) -> None:
        """Prepare the new folder."""

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _ping(self) -> bool:
        """Whether the server answers requests."""
        raise NotImplementedError

    def _user(self) -> Mapping[str, Any]:
        """Arguments to subprocess that choose whom the server runs as."""
        return {}

    def _environment(self) -> dict[str, str]:
        return server_environment(str(self.folder))

    def _launch(self) -> None:
        with self._open_log(os.O_WRONLY | os.O_APPEND | os.O_CREAT) as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: we then stop the server in order
                **self._user(),
            )
        self._lifeline = subprocess.Popen(
            ["/bin/sh", "-c", _LIFELINE, "lifeline", self.last_signal, str(self._process.pid), str(self.folder)],
            cwd="/",
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_ready(self) -> None:
        until = time.monotonic() + START_LIMIT
        while not self._ping():
            if self.pid is None:
                raise self.error(f"the {self.label} ended while starting:\n{self._tail()}")
            if time.monotonic() > until:
                raise self.error(f"the {self.label} did not start in {START_LIMIT:.0f} s:\n{self._tail()}")
            time.sleep(POLL)

    def _open_log(self, flags: int) -> BinaryIO:
        """Never what a link leads to: the folder may belong to the server's user, who is not trusted with our files."""
        mode = "ab" if flags & os.O_APPEND else "rb"
        return cast(BinaryIO, os.fdopen(os.open(self.log, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), mode))

    def _tail(self) -> str:
        with self._open_log(os.O_RDONLY) as log:
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL:])

    def _end(self, how: signal.Signals) -> None:
        """Send `how` and wait; SIGKILL follows if it takes too long."""
        process, lifeline = self._process, self._lifeline
        self._process = self._lifeline = None
        # The lifeline goes first: until the server is waited for, its pid cannot belong to another process.
        if lifeline is not None:
            lifeline.kill()
            lifeline.communicate()
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> Sequence[int]:
    """Ports on 127.0.0.1 that nothing listens on, from below the range that outgoing connections use.

    So that a server finds its port free when it restarts. (Linux: ip_local_port_range starts at 32768.)
    """
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(10_240, 32_768)  # noqa: S311
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return tuple(ports)


async def to_the_end(work: Callable[[], None]) -> None:
    """Run `work` in a thread, to its end even if cancelled; the cancellation is raised then."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as exc:
            cancelled = exc
    running.result()
    if cancelled:
        raise cancelled


def _temporary_folder() -> Path:
    # Below /tmp when root, since TMPDIR may be a folder that `nobody` cannot enter; a long path would not do for
    # Unix sockets (108 bytes).
    parent = tempfile.gettempdir()
    if os.geteuid() == 0 or len(parent) > 60:
        parent = "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="archiver-", dir=parent))  # mode 0700: rows, keys and a socket are in it
