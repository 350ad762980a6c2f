"""Where a drill restores to: a disposable server, a database of its own on a given server, or a given database.

In: what the command line and the configuration say. Out: an empty database, and after `destroy` the evidence that
nothing of it is left. A database that the operator gave is never dropped or emptied. Nothing here reads the archive.
A restore runs code of the source's roles, and its superusers may run programs: a disposable server is contained.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from archiver.config import DrillSection
from archiver.embedded import PostgresServer
from archiver.embedded.postgres import NOBODY, require_account
from archiver.embedded.process import INSTALL, to_the_end
from archiver.errors import ConfigError
from archiver.format.drill import Copy
from archiver.format.roles import Globals, Role
from archiver.postgres import load
from archiver.postgres.client_programs import candidates, inspect
from archiver.postgres.roles import create_roles
from archiver.postgres.session import connect, connection_params, postgres_error, where_of
from archiver.postgres.snapshot import DatabaseInfo

_DATABASE: Final = "drill"
_SETTINGS: Final[dict[str, str | int | bool]] = {
    "fsync": False,  # nothing of it is to last
    "full_page_writes": False,
    "synchronous_commit": False,
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_wal_size": "4GB",
    "maintenance_work_mem": "256MB",
    "max_locks_per_transaction": 1024,  # the schema is made in one transaction
}


_OVER_THE_HOST: Final = frozenset({"pg_execute_server_program", "pg_read_server_files", "pg_write_server_files"})
"""What they gave at the source they gave on another host (PostgreSQL documentation, 21.5 Predefined Roles)."""


class Place(Protocol):
    """A place for the copy. `deviations` are differences from the source that the record must tell of."""

    deviations: list[str]

    async def check(self) -> None:
        """Raise PostgresError if the place cannot be used, before anything is done."""

    async def start(self, database: DatabaseInfo, roles: Globals | None) -> str:
        """The connection string of an empty database, as like `database` as can be. Raises PostgresError.

        `roles` are the source's, None where its base snapshot does not have them.
        """

    async def destroy(self) -> None:
        """Remove what `start` made, however far it came."""

    async def describe(self) -> Copy:
        """Where it stood, and after `destroy` what was found when looking for it."""


async def choose(into: str | None, settings: DrillSection, source_version: int) -> Place:
    """What was given, else the configured server, else a disposable one. Raises ConfigError."""
    if into is not None:
        return GivenDatabase(into)
    if settings.dsn is not None:
        return OwnDatabase(settings.dsn)
    return DisposableServer(await find_server(source_version // 10000), settings.user)


async def find_server(source_major: int) -> Path:
    """The folder of an installed PostgreSQL server of the source's major version, else the lowest above it."""
    paths = [path.resolve() for path in candidates("postgres")]
    programs = [found for path in paths if (path.parent / "initdb").is_file() and (found := await inspect(path))]
    fitting = sorted((program for program in programs if program.major >= source_major), key=lambda each: each.major)
    if not fitting:
        raise ConfigError(
            f"no PostgreSQL server of version {source_major} or later is installed here",
            hint=f"Install one, or give --into an empty database elsewhere. {INSTALL}",
        )
    return fitting[0].path.parent


AS_OURSELVES: Final = (
    "the drill's server ran as the same user as archiver: code of the source's superusers could read its files"
)


class DisposableServer:
    """A server of this process's own, in a temporary folder, that lets in nobody else.

    As root it runs as `account`. Its superuser has a name of its own, so that no role of the source is mistaken for it.
    """

    def __init__(self, bindir: Path, account: str = NOBODY) -> None:
        self.deviations: list[str] = [] if os.geteuid() == 0 else [AS_OURSELVES]
        superuser = f"archiver_drill_{secrets.token_hex(8)}"
        self._account = account
        self._server = PostgresServer(
            settings=_SETTINGS, bindir=bindir, contained=True, superuser=superuser, account=account
        )
        self._folder: Path | None = None
        self._pid: int | None = None
        self._version: int | None = None

    async def check(self) -> None:
        """The server is our own; whom it would run as must exist. Raises ConfigError."""
        require_account(self._account)

    async def start(self, database: DatabaseInfo, roles: Globals | None) -> str:
        await to_the_end(self._server.start)
        self._folder, self._pid = self._server.folder, self._server.pid
        async with await connect(self._server.dsn(), purpose="drill") as conn:
            self._version = conn.info.server_version
            self.deviations += await _create_roles(conn, database.roles, roles)
            self.deviations += await create_database(conn, _DATABASE, database)
        return self._server.dsn(_DATABASE)

    async def destroy(self) -> None:
        await to_the_end(self._server.close)

    async def describe(self) -> Copy:
        left = self._left()
        found = "; ".join(left) or f"folder {self._folder} and process {self._pid} are gone"
        where = "disposable server on a Unix socket of its own"
        return Copy(where=where, server_version=self._version, destroyed=not left, evidence=found)

    def _left(self) -> list[str]:
        left = [f"folder {self._folder} is still there"] if self._folder and self._folder.exists() else []
        return left + ([f"process {self._pid} still runs"] if self._pid and _runs(self._pid) else [])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class OwnDatabase:
    """A database that is made for this drill on a server that the configuration names, and dropped at its end."""

    def __init__(self, dsn: str) -> None:
        self.deviations: list[str] = []
        self._dsn = dsn
        self._name = f"archiver_drill_{secrets.token_hex(4)}"
        self._version: int | None = None

    async def check(self) -> None:
        async with await connect(self._dsn, purpose="drill"):
            pass

    async def start(self, database: DatabaseInfo, roles: Globals | None) -> str:  # noqa: ARG002 - its server has its own
        async with await connect(self._dsn, purpose="drill") as conn:
            self._version = conn.info.server_version
            self.deviations += await create_database(conn, self._name, database)
        return make_conninfo(self._dsn, dbname=self._name)

    async def destroy(self) -> None:
        async with await connect(self._dsn, purpose="drill") as conn:
            await _run(conn, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self._name)))

    async def describe(self) -> Copy:
        async with await connect(self._dsn, purpose="drill") as conn:
            query = sql.SQL("SELECT FROM pg_catalog.pg_database WHERE datname = {}").format(self._name)
            gone = await (await _run(conn, query)).fetchone() is None
        evidence = f"database {self._name} is {'gone' if gone else 'still there'}"
        where = f"{self._name} on {where_of(connection_params(self._dsn, purpose='drill'))}"
        return Copy(where=where, server_version=self._version, destroyed=gone, evidence=evidence)


class GivenDatabase:
    """An empty database that the operator gave with --into, and keeps."""

    def __init__(self, dsn: str) -> None:
        self.deviations: list[str] = []
        self._dsn = dsn
        self._version: int | None = None

    async def check(self) -> None:
        async with await connect(self._dsn, purpose="drill") as conn:
            await load.ensure_empty(conn)

    async def start(self, database: DatabaseInfo, roles: Globals | None) -> str:  # noqa: ARG002 - it is as it was made
        async with await connect(self._dsn, purpose="drill") as conn:
            self._version = conn.info.server_version
            await load.ensure_empty(conn)
        return self._dsn

    async def destroy(self) -> None:
        self.deviations.append("the restored copy was left where --into said: it is not destroyed")

    async def describe(self) -> Copy:
        where = where_of(connection_params(self._dsn, purpose="drill"))
        return Copy(where=where, server_version=self._version, destroyed=None, evidence="left to the operator")


# --- Making ---------------------------------------------------------------------------------------------


async def _create_roles(conn: psycopg.AsyncConnection[Any], names: Sequence[str], known: Globals | None) -> list[str]:
    """The source's roles with what they might do there, so that statements replay as theirs; none of them can log in.

    Returns what is different.
    """
    if known is None:
        known = Globals(False, tuple(Role(name, ("NOINHERIT",)) for name in names), ())
    return [each.warning for each in await create_roles(conn, for_drill(known))]


def for_drill(roles: Globals) -> Globals:
    """Without logins, passwords and settings, which nothing uses, and without rights over the host."""
    made = tuple(Role(role.name, tuple(word for word in role.attributes if word != "LOGIN")) for role in roles.roles)
    kept = tuple(each for each in roles.memberships if each.role not in _OVER_THE_HOST)
    return Globals(False, made, kept)


async def create_database(conn: psycopg.AsyncConnection[Any], name: str, database: DatabaseInfo) -> list[str]:
    """Make an empty database with the source's encoding and locale; where the server lacks them, with its own.

    Returns what is different.
    """
    create = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    try:
        await conn.execute(create + _locale(database))
    except psycopg.Error as exc:
        await _run(conn, create)
        return [f"the copy has its server's locale, not {database.collation}: {postgres_error(exc).message}"]
    return []


def _locale(database: DatabaseInfo) -> sql.Composed:
    """CREATE DATABASE's options. Providers have one letter in pg_database.datlocprovider; libc needs no more."""
    options = sql.SQL(" ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
        database.encoding, database.collation, database.character_type
    )
    if database.locale_provider == "i":
        options += sql.SQL(" LOCALE_PROVIDER icu ICU_LOCALE {}").format(database.locale)
    elif database.locale_provider == "b":
        options += sql.SQL(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {}").format(database.locale)
    return options


async def _run(conn: psycopg.AsyncConnection[Any], statement: sql.Composed) -> psycopg.AsyncCursor[Any]:
    try:
        return await conn.execute(statement)
    except psycopg.Error as exc:
        raise postgres_error(exc, "the drill's server") from exc
