"""Connections: one way to open them, one session for all, one place where psycopg's errors become ours.

In: a connection string. Out: an open psycopg connection whose session writes and reads every value in one
canonical form, so that the text of a row is the same on the source and on the target.
Never: a plain connection to another machine that the connection string does not ask for in so many words,
and never a password, a row or a parameter in a message.
"""

from __future__ import annotations

import re
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archiver.errors import ConfigError, InTheWay, PostgresError, PostgresUnavailable
from archiver.postgres import search_path, tls_policy
from archiver.postgres.server_words import hint_of, message_of
from archiver.postgres.session_settings import NEWER, as_options

_DEFAULTS: Final[dict[str, str]] = {"client_encoding": "UTF8"}
_PATIENCE: Final[dict[str, str]] = {
    "connect_timeout": "15",  # seconds; also those below: a dead peer is noticed within a minute
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",  # milliseconds; keepalives are not sent while what was sent is not acknowledged
}


async def connect(dsn: str, *, purpose: str, replication: bool = False) -> psycopg.AsyncConnection[Any]:
    """Open a connection in autocommit, in the canonical session.

    Raises ConfigError for an unreadable connection string, PostgresError or PostgresUnavailable otherwise.
    """
    params = connection_params(dsn, purpose=purpose, replication=replication)
    try:
        conn = await psycopg.AsyncConnection.connect(**params, autocommit=True)
    except psycopg.Error as exc:
        raise postgres_error(exc, where_of(params), secrets=_secrets(params)) from None
    if (objection := tls_policy.objection(conn, _parse(dsn))) is not None:
        await conn.close()
        raise PostgresError(objection, where=where_of(params), hint=_ENCRYPT)
    await _settle(conn, where_of(params), replication=replication)
    return conn


_ENCRYPT: Final = (
    "Add sslmode=verify-full to the connection string, or sslmode=disable if a plain connection is what you want."
)


async def _settle(conn: psycopg.AsyncConnection[Any], where: str, *, replication: bool) -> None:
    try:
        if conn.info.server_version >= 170000:
            await conn.execute("SET transaction_timeout = 0")  # first: one of a millisecond ends what takes longer
        if not replication:
            await search_path.put_aside(conn)
        if not replication or conn.info.server_version >= 170000:
            await conn.execute(NEWER)  # behind it: operators of users' might stand in theirs
    except psycopg.Error as exc:
        await conn.close()
        raise postgres_error(exc, where) from exc


async def fetch(
    conn: psycopg.AsyncConnection[Any], query: LiteralString | sql.Composed, where: str | None = None
) -> list[tuple[Any, ...]]:
    """The rows of a query. Raises PostgresError, PostgresUnavailable."""
    try:
        return await (await conn.execute(query)).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc, where) from exc


def connection_params(dsn: str, *, purpose: str, replication: bool = False) -> dict[str, Any]:
    """libpq parameters for a connection string: the canonical session, the TLS policy, the time limits."""
    given = _parse(dsn)
    params = {**_PATIENCE, **given, **tls_policy.additions(given), **_DEFAULTS}
    params["application_name"] = application_name(purpose)
    later = frozenset() if replication else frozenset({"search_path"})
    params["options"] = f"{given.get('options', '')} {as_options(later)}".strip()
    if replication:
        params["replication"] = "database"
    return params


def application_name(purpose: str) -> str:
    """Under which name the server shows a session of ours."""
    return f"archiver {purpose}"


def conninfo_without_secrets(params: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """A connection string for the command line of a client program, and its password as environment."""
    public = {name: value for name, value in params.items() if name not in {"password", "sslpassword"}}
    password = params.get("password")
    return make_conninfo("", **public), {} if password is None else {"PGPASSWORD": str(password)}


def where_of(params: dict[str, Any]) -> str:
    """`host:port/database`, as messages name a server."""
    known = tls_policy.resolve(params) or params
    host = known.get("host") or known.get("hostaddr") or "local socket"
    return f"{host}:{known.get('port') or 5432}/{known.get('dbname') or ''}".rstrip("/")


def holds_password(dsn: str) -> bool:
    """Whether the connection string itself has a secret in it. Raises ConfigError."""
    return bool(_secrets(_parse(dsn)))


def _parse(dsn: str) -> dict[str, Any]:
    try:
        params = dict(conninfo_to_dict(dsn))
    except psycopg.Error:
        # libpq's own message would repeat parts of the string, and with them the password
        raise _unreadable() from None
    if "@" in str(params.get("host", "")).lstrip("@"):
        raise _unreadable()  # an unescaped @ in the password: what follows it is taken for the host
    return params


def _unreadable() -> ConfigError:
    return ConfigError(
        "the connection string cannot be read",
        hint="Write it as postgresql://user@host:5432/database?sslmode=verify-full, "
        "with special characters percent-encoded.",
    )


def _secrets(params: dict[str, Any]) -> list[str]:
    return [str(params[name]) for name in ("password", "sslpassword") if params.get(name)]


# --- Errors --------------------------------------------------------------------------------------------

_TRANSIENT_STATES: Final = re.compile(r"08...|53[123]00|57P0[123]|57014|40001|40P01|55006|55P03|58000|58030")
"""SQLSTATEs after which the same request may succeed (PostgreSQL documentation, appendix A)."""

_LOCK_NOT_AVAILABLE: Final = "55P03"


def is_lasting(state: str) -> bool:
    """Whether the same request will fail with this SQLSTATE again."""
    return _TRANSIENT_STATES.fullmatch(state) is None


_HINTS_BY_STATE: Final[dict[str, str]] = {
    "28P01": "Check the password: in the connection string, PGPASSWORD or ~/.pgpass.",
    "28000": "Allow this user, database and address in pg_hba.conf or the provider's network settings.",
    "3D000": "Create the database, or correct its name in the connection string.",
    "42501": "Grant the role what it lacks; archiver check names each privilege.",
    "53300": "Raise max_connections, or close other connections.",
}

_CONNECTION_REFUSALS: Final[tuple[tuple[str, str], ...]] = (
    (r"password authentication failed|no password supplied", _HINTS_BY_STATE["28P01"]),
    (r"authentication failed|pg_hba\.conf", _HINTS_BY_STATE["28000"]),
    (r"not permitted to log in", "Give the role LOGIN."),
    (r"replication role|start wal sender", "Give the role what it lacks: ALTER ROLE … REPLICATION."),
    (r"role .* does not exist", "Create the role, or correct the user in the connection string."),
    (r"database .* does not exist", _HINTS_BY_STATE["3D000"]),
    (r"permission denied for database", "Grant the role CONNECT on the database."),
    (r"certificate", "Point sslrootcert at the certificate of the authority that signed the server's."),
    (r"does not support ssl", "Switch TLS on at the server, or add sslmode=disable if a plain connection is meant."),
    (
        r"tls.*version|tls alert|ssl error: .*protocol",
        "Add ssl_min_protocol_version=TLSv1.2 if the server has no TLS 1.3.",
    ),
)
"""What libpq says of a refusal that asking again will not change. It gives no SQLSTATE for these."""


def is_shutting_down(error: PostgresError) -> bool:
    """Whether the server refuses a connection since it is about to end. Only its words tell: 57P03 means more."""
    return "shutting down" in str(error)


_STILL_COMING: Final = ("starting up", "shutting down", "recovery mode", "too many", "remaining connection slots")


def postgres_error(exc: psycopg.Error, where: str | None = None, *, secrets: list[str] | None = None) -> PostgresError:
    """The error of ours for one of psycopg's. Every module of this package maps through here.

    DETAIL and CONTEXT may quote rows, and the primary message as well: see archiver.postgres.server_words.
    """
    message = _clean(exc, secrets or [])
    if exc.sqlstate is not None:
        kind = PostgresUnavailable if _TRANSIENT_STATES.fullmatch(exc.sqlstate) else PostgresError
        kind = InTheWay if exc.sqlstate == _LOCK_NOT_AVAILABLE else kind
        return kind(message, where=where, hint=_HINTS_BY_STATE.get(exc.sqlstate) or hint_of(exc))
    if not isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError):
        return PostgresError(message, where=where)
    hint = _refusal_hint(message.lower())
    if hint is not None:
        return PostgresError(message, where=where, hint=hint)
    return PostgresUnavailable(message, where=where, hint="Check that the server runs and can be reached from here.")


_PREAMBLE: Final = re.compile(r"(connection failed: )?(connection to server .*? failed: )?(FATAL: )?", re.DOTALL)
"""What libpq puts before the server's own words; `where` says the same in fewer."""


def _refusal_hint(message: str) -> str | None:
    if any(text in message for text in _STILL_COMING):
        return None
    return next((hint for shape, hint in _CONNECTION_REFUSALS if re.search(shape, message)), None)


def _clean(exc: psycopg.Error, secrets: list[str]) -> str:
    text = message_of(exc)
    for secret in secrets:
        text = text.replace(secret, "***")
    return _PREAMBLE.sub("", text).strip()
