"""How a connection is encrypted: what the operator wrote counts, what is a default does not.

In: what a connection string says. Out: what must be added to it before anything is sent, the password above all; and
what is wrong with a connection that was made. Beyond this machine that is verify-full and TLS 1.3, unless the
connection string or the service that it names says otherwise in so many words. The environment never weakens it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

REMOTE: Final[dict[str, str]] = {
    "sslmode": "verify-full",
    "ssl_min_protocol_version": "TLSv1.3",
    "gssencmode": "disable",  # libpq would try Kerberos first, and what is encrypted so is not TLS
}
_PLAIN: Final = frozenset({"disable", "allow", "prefer"})
_DEFAULT: Final = "prefer"
"""libpq's own sslmode. In a service file it says no more than silence does."""


def is_local(host: str) -> bool:
    """Whether a libpq host is this machine: empty or a path (a Unix socket), localhost, a loopback address."""
    if host in {"", "localhost"} or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def additions(given: Mapping[str, Any]) -> dict[str, str]:
    """What the policy adds to a connection string, as parameters that beat the environment and a service file."""
    if all(is_local(host) for host in hosts(resolve(given))):
        return {}
    said = words_of(given)
    return {name: value for name, value in REMOTE.items() if name not in said}


def words_of(given: Mapping[str, Any]) -> dict[str, str]:
    """What the connection string, or else its service, says of encryption."""
    services = service_of(given)
    if services.get("sslmode") == _DEFAULT:
        del services["sslmode"]
    said = {**services, **{name: str(value) for name, value in given.items()}}
    return {name: said[name] for name in REMOTE if name in said}


def resolve(given: Mapping[str, Any]) -> dict[str, str]:
    """All parameters as libpq will have them, from the string, a service file, the environment and its defaults.

    libpq is asked itself: it stops at an impossible value before it looks for the host. Empty where it cannot say.
    """
    asked = make_conninfo("", **{**given, "target_session_attrs": "none of these"})
    stopped = pq.PGconn.connect_start(asked.encode())
    try:
        return _options(stopped)
    finally:
        stopped.finish()


def hosts(params: Mapping[str, str]) -> list[str]:
    return str(params.get("hostaddr") or params.get("host") or "").split(",")


def _options(conn: Any) -> dict[str, str]:
    return {option.keyword.decode(): option.val.decode() for option in conn.info if option.val is not None}


# --- A connection that was made ---------------------------------------------------------------------------


def objection(conn: psycopg.AsyncConnection[Any], given: Mapping[str, Any]) -> str | None:
    """Why this connection may not be used, though it was made: the last look, whatever libpq made of the parameters."""
    if inside(conn):
        return None
    found, said = _options(conn.pgconn), words_of(given)
    if said.get("gssencmode") == "require":
        return None
    if not conn.pgconn.ssl_in_use and said.get("sslmode") not in _PLAIN:
        return "the connection is not encrypted"
    differing = [name for name, value in {**REMOTE, **said}.items() if found.get(name, value) != value]
    return f"the connection was not made with {', '.join(differing)} as wanted" if differing else None


def inside(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the connection stays on this machine. Its address counts: a name may stand for any."""
    return is_local(conn.info.hostaddr or conn.info.host)


def weaknesses(conn: psycopg.AsyncConnection[Any]) -> list[str]:
    """What of the policy the operator gave up, in words for `check`; nothing for a connection inside this machine."""
    if inside(conn):
        return []
    found = _options(conn.pgconn)
    if not conn.pgconn.ssl_in_use:
        return [f"the connection is not encrypted with TLS, as sslmode={found.get('sslmode')} allows"]
    mode, version = found.get("sslmode"), found.get("ssl_min_protocol_version")
    unverified = [f"sslmode={mode} does not verify which server answers"] if mode != REMOTE["sslmode"] else []
    older = [f"ssl_min_protocol_version={version} allows less than TLS 1.3"] if version != "TLSv1.3" else []
    return unverified + older


# --- Service files ----------------------------------------------------------------------------------------


def service_of(given: Mapping[str, Any]) -> dict[str, str]:
    """What a service file says for the service of this connection string, or of the environment.

    Only what is found here can weaken the policy; the file in libpq's own folder, of which we do not know, cannot.
    (PostgreSQL documentation, 34.17 The Connection Service File)
    """
    name = given.get("service") or os.environ.get("PGSERVICE")
    if not name:
        return {}
    files = (_read(path, str(name)) for path in _service_files(given))
    return next((found for found in files if found is not None), {})


def _service_files(given: Mapping[str, Any]) -> Iterator[Path]:
    named = given.get("servicefile") or os.environ.get("PGSERVICEFILE")
    yield Path(named) if named else Path(os.path.expanduser("~")) / ".pg_service.conf"  # noqa: PTH111 - never raises
    if "PGSYSCONFDIR" in os.environ:
        yield Path(os.environ["PGSYSCONFDIR"]) / "pg_service.conf"


def _read(path: Path, service: str) -> dict[str, str] | None:
    """The parameters of a service, the first of each name, as libpq reads them; None if it is not in this file."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found: dict[str, str] | None = None
    inside = False
    for line in map(str.strip, lines):
        if line.startswith("["):
            inside = found is None and line == f"[{service}]"
            found = {} if inside else found
        elif inside and found is not None and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, value)
    return found
